# SPDX-License-Identifier: Apache-2.0
"""`python -m e2e.models.recipe make [--check] [--versions v1 v2]` and `... evaluate`.

`make` trains and exports into e2e/models/orders; with --check it does so in a temporary directory and
compares what comes out with the committed figures. `evaluate` only measures the committed artefacts and
needs no torch.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from e2e.models.recipe.figures import (
    TOLERANCE_RETRAINED,
    TOLERANCE_SAME_BYTES,
    Figures,
    apply_figures,
    build_version_figures,
    disagreements,
    read_figures,
)
from e2e.models.recipe.golden import apply_golden, build_golden, build_heldout
from e2e.models.recipe.packing import apply_manifest, observe_manifest
from e2e.models.recipe.versions import MODEL_NAME, RECIPES, SHAPE, VARIANTS, Recipe, with_bases

if TYPE_CHECKING:
    from e2e.models.recipe.evaluate import Score

ARTEFACTS: Final = Path(__file__).resolve().parent.parent / MODEL_NAME


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when everything agreed, 1 when a figure did not, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m e2e.models.recipe", description=__doc__)
    parser.add_argument("command", choices=("make", "evaluate"))
    parser.add_argument("--check", action="store_true", help="compare with figures.json, change nothing")
    names = [recipe.version for recipe in RECIPES]
    parser.add_argument("--versions", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)
    recipes = [recipe for recipe in RECIPES if recipe.version in options.versions]
    if options.command == "evaluate":
        return _evaluate(recipes)
    if not options.check:
        apply_figures(ARTEFACTS, _make(recipes, ARTEFACTS))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        return _report(_make(recipes, Path(scratch)), tolerance=TOLERANCE_RETRAINED)


def _make(recipes: list[Recipe], directory: Path) -> Figures:
    """Train and export `recipes` into `directory`; their figures by version."""
    # Here, because torch is only needed, and only there, when a model is made.
    from e2e.models.recipe.export import export
    from e2e.models.recipe.tokenizer import build_tokenizer
    from e2e.models.recipe.train import train

    figures: Figures = {}
    tokenizer = build_tokenizer(SHAPE.vocab)
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in with_bases(recipes):
            training = train(recipe, tokenizer, Path(scratch))
            scores = {}
            for variant in VARIANTS if recipe in recipes else ():
                target = directory / f"{recipe.version}-{variant}"
                export(Path(scratch) / recipe.version, tokenizer, variant, target)
                apply_golden(target)
                apply_manifest(target)
                scores[variant] = _score(target)
            figures[recipe.version] = build_version_figures(recipe, training, scores)
    return figures


def _score(directory: Path) -> "tuple[Score, Score, int]":
    """Held-out score, golden score and bytes of the export in `directory`."""
    from e2e.models.recipe.evaluate import assess

    heldout, misses = assess(directory, build_heldout())
    golden, _ = assess(directory, build_golden())
    size = observe_manifest(directory).size_bytes
    print(f"{directory.name}: held-out {heldout}, golden {golden}, {size} bytes")
    for miss in misses[:5]:
        print(f"  {miss.text}\n    expected {miss.expected}\n    answered {miss.answer}")
    return heldout, golden, size


def _evaluate(recipes: list[Recipe]) -> int:
    measured: Figures = {}
    for recipe in recipes:
        variants = {}
        for variant in VARIANTS:
            heldout, _, _ = _score(ARTEFACTS / f"{recipe.version}-{variant}")
            variants[variant] = {"heldout": {"exact": heldout.exact}}
        measured[recipe.version] = {"variants": variants}
    return _report(measured, tolerance=TOLERANCE_SAME_BYTES)


def _report(measured: Figures, *, tolerance: float) -> int:
    found = disagreements(read_figures(ARTEFACTS)["versions"], measured, tolerance=tolerance)
    print("\n".join(found) or f"all figures agree within {tolerance}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
