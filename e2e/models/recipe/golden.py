# SPDX-License-Identifier: Apache-2.0
"""The held-out set and the golden cases: a fixed, stratified part of it that travels with every version."""

import json
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final

from e2e.models.recipe.data import Example, build_examples
from e2e.models.recipe.schema import Bill, Cancel, Move, Order, Restock
from e2e.models.recipe.versions import HELDOUT_COUNT, HELDOUT_SEED
from slmwire.paths import GOLDEN_FILE

STRATA: Final[tuple[tuple[Callable[[Example], bool], int], ...]] = (
    (lambda e: isinstance(e.command, Order) and '"mods"' not in e.target, 14),
    (lambda e: isinstance(e.command, Order) and '"mods"' in e.target, 18),
    (lambda e: isinstance(e.command, Cancel), 8),
    (lambda e: isinstance(e.command, Bill), 7),
    (lambda e: isinstance(e.command, Move), 6),
    (lambda e: isinstance(e.command, Restock), 7),
)
"""What a case is, and how many golden cases are of that kind; no model's answer plays a part."""


@cache
def build_heldout() -> tuple[Example, ...]:
    """The held-out examples that every quality figure counts."""
    return tuple(islice(build_examples(HELDOUT_SEED, "heldout"), HELDOUT_COUNT))


def build_golden() -> tuple[Example, ...]:
    """The first held-out examples of each stratum."""
    heldout = build_heldout()
    return tuple(e for belongs, count in STRATA for e in list(filter(belongs, heldout))[:count])


def golden_lines() -> str:
    """The golden cases in the form that slmserve reads: one JSON object per line."""
    return "".join(
        json.dumps(
            {
                "expected": example.target,
                "match": "json",
                "messages": [{"content": example.text, "role": "user"}],
            },
            separators=(",", ":"),
            sort_keys=True,
        )
        + "\n"
        for example in build_golden()
    )


def apply_golden(directory: Path) -> None:
    """Write golden.jsonl into `directory`."""
    (directory / GOLDEN_FILE).write_text(golden_lines())
