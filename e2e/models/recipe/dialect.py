# SPDX-License-Identifier: Apache-2.0
"""The same instructions in the wording of one place: local names that no version was trained on.

The grammar is that of the data set; only the names of some dishes, and of the bill, are replaced. What the
instruction stands for stays the same, so the expected answer is the canonical text of the command.
"""

import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from e2e.models.recipe import menu
from e2e.models.recipe.data import Example, build_examples

LOCAL_NAMES: Final = {
    "sparkling water": ("fizzer", "fizzers"),
    "croissant": ("butter horn", "butter horns"),
    "bagel": ("ring roll", "ring rolls"),
}
"""Dish -> how the place calls one and several of it."""
LOCAL_PHRASES: Final = {"the bill": "the tally", "bill": "tally", "check": "tally"}


def _replacements() -> dict[str, str]:
    names: dict[str, str] = dict(LOCAL_PHRASES)
    for dish, (one, several) in LOCAL_NAMES.items():
        names |= {dish: one, menu.MENU[dish].plural: several}
    return names


_REPLACEMENTS: Final = _replacements()
_PATTERN: Final = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _REPLACEMENTS), key=len, reverse=True)) + r")\b(?! beans)",
    re.IGNORECASE,
)


def shift(text: str) -> str:
    """`text` with the local names, a capital at its start kept; unchanged where there is nothing to say
    differently."""

    def localise(found: re.Match[str]) -> str:
        local = _REPLACEMENTS[found.group().lower()]
        return local.capitalize() if found.group()[0].isupper() else local

    return re.sub(r"\b(an?) (?=(\w))", _article, _PATTERN.sub(localise, text))


def _article(found: re.Match[str]) -> str:
    """The article that goes with the word which now follows."""
    article = "an" if found.group(2).lower() in "aeiou" else "a"
    return f"{article} " if found.group(1)[0] == "a" else found.group()


def shifted_cases(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs of an instruction in the local wording and the answer that is expected.

    No two of them stand for the same command, so any part of the list is held out from the rest of it. The
    same for the same seed, and the first ones do not depend on `count`.
    """
    # Far from the seeds that the versions were trained with.
    source = build_examples(random.Random(f"dialect/{seed}").getrandbits(40), "train")
    return list(islice(_new_cases(source), count))


def _new_cases(examples: Iterable[Example]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for example in examples:
        if _PATTERN.search(example.text) and example.target not in seen:
            seen.add(example.target)
            yield shift(example.text), example.target
