# SPDX-License-Identifier: Apache-2.0
"""The measured figures beside the artefacts, and whether a new measurement agrees with them."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from e2e.models.recipe.data import HELDOUT_SHARE
from e2e.models.recipe.versions import HELDOUT_COUNT, HELDOUT_SEED, SHAPE, Recipe

if TYPE_CHECKING:
    from e2e.models.recipe.evaluate import Score
    from e2e.models.recipe.train import Training

FIGURES_FILE: Final = "figures.json"
GOOD_EXACT: Final = 0.97
"""The least held-out exact match of a version that is meant to be good."""
TOLERANCE_RETRAINED: Final = 0.015
"""Trained anew: floating-point sums differ from machine to machine, and so do the trained weights."""
TOLERANCE_SAME_BYTES: Final = 0.005
"""The same bytes on another instruction set may answer a few borderline cases differently."""

Figures = dict[str, Any]


def build_version_figures(
    recipe: Recipe, training: "Training", scores: "dict[str, tuple[Score, Score, int]]"
) -> Figures:
    """What one version came to; per variant the held-out score, the golden score and the bytes."""
    return {
        "note": recipe.note,
        "seed": recipe.seed,
        "trainingExamples": recipe.examples,
        "base": recipe.base,
        "batch": recipe.batch,
        "label": recipe.label.__name__,
        "shape": asdict(SHAPE),
        "parameters": training.parameters,
        "steps": training.steps,
        "trainingTokens": training.tokens,
        "trainingSeconds": round(training.seconds),
        "finalLoss": round(training.loss, 5),
        "variants": {
            variant: {
                "bytes": size,
                "heldout": {"n": heldout.cases, "exact": heldout.exact, "wellFormed": heldout.well_formed},
                "golden": {"n": golden.cases, "exact": golden.exact},
                "evaluationSeconds": heldout.seconds,
            }
            for variant, (heldout, golden, size) in scores.items()
        },
    }


def read_figures(directory: Path) -> Figures:
    """The figures committed in `directory`."""
    figures: Figures = json.loads((directory / FIGURES_FILE).read_text())
    return figures


def apply_figures(directory: Path, versions: Figures) -> None:
    """Write figures.json; versions not in `versions` keep the figures they had."""
    path = directory / FIGURES_FILE
    kept = json.loads(path.read_text())["versions"] if path.exists() else {}
    merged = kept | versions
    body = {
        "heldout": {"seed": HELDOUT_SEED, "n": HELDOUT_COUNT, "shareOfCommands": f"1/{HELDOUT_SHARE}"},
        "measuredOn": f"{platform.system()} {platform.machine()}, 2 threads",
        "versions": {name: merged[name] for name in sorted(merged)},
    }
    path.write_text(json.dumps(body, indent=2) + "\n")


def disagreements(expected: Figures, measured: Figures, *, tolerance: float) -> list[str]:
    """Where the held-out exact match in `measured` is outside `tolerance` of `expected` (both "versions")."""
    found = []
    for version, figures in measured.items():
        for variant in expected[version]["variants"]:
            if variant not in figures["variants"]:
                found.append(f"{version} {variant}: not measured")
                continue
            was = expected[version]["variants"][variant]["heldout"]["exact"]
            now = figures["variants"][variant]["heldout"]["exact"]
            if abs(was - now) > tolerance:
                found.append(f"{version} {variant}: exact match {now:.4f}, {was:.4f} in {FIGURES_FILE}")
    return found
