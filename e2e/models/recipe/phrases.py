# SPDX-License-Identifier: Apache-2.0
"""How people say numbers, tables and things on the menu; politeness, corrections and typing errors."""

import random
import re
from typing import Final

from e2e.models.recipe import menu
from e2e.models.recipe.schema import MAX_TABLE, Item

_WORDS: Final = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
_OPENINGS: Final = (
    "hi, ",
    "hey, ",
    "hello, ",
    "ok, ",
    "ok so ",
    "please ",
    "quick one: ",
    "um, ",
    "good morning, ",
)
_CLOSINGS: Final = (" please", ", please", ", thanks", ", thank you", " when you can", " asap", ", cheers")
_CORRECTIONS: Final = ("sorry, ", "no wait, ", "I mean ", "actually ", "make that ", "no, ")


def number_word(number: int) -> str:
    """`number` (0 to 20) in English words."""
    return _WORDS[number]


_PROTECTED: Final = frozenset(number_word(n) for n in range(MAX_TABLE + 1)) | {"dozen", "couple"}


def pick(rng: random.Random, options: tuple[str, ...]) -> str:
    """One of `options`, all equally likely."""
    return options[rng.randrange(len(options))]


def chance(rng: random.Random, probability: float) -> bool:
    """True with `probability`."""
    return rng.random() < probability


def say_number(rng: random.Random, number: int) -> str:
    """`number` in words or digits."""
    return number_word(number) if chance(rng, 0.6) else str(number)


def say_table(rng: random.Random, table: int) -> str:
    """A table by its number."""
    form = pick(rng, ("table {}", "table {}", "table {}", "table {}", "table number {}", "t{}"))
    return f"t{table}" if form == "t{}" else form.format(say_number(rng, table))


def say_quantity(rng: random.Random, quantity: int, following: str) -> str:
    """`quantity` before the word `following`, with the space between them."""
    if quantity == 1 and chance(rng, 0.65):
        return ("an " if following[0] in "aeiou" else "a ") + following
    if quantity == 2 and chance(rng, 0.12):
        return f"a couple of {following}"
    if quantity == 6 and chance(rng, 0.12):
        return f"half a dozen {following}"
    if quantity == 12 and chance(rng, 0.25):
        return f"a dozen {following}"
    return f"{say_number(rng, quantity)} {following}"


def say_name(rng: random.Random, name: str, quantity: int) -> str:
    """A menu item's name in singular or plural, now and then misspelt."""
    dish = menu.MENU[name]
    if dish.misspelt and chance(rng, 0.06):
        return pick(rng, dish.misspelt) + ("s" if quantity > 1 else "")
    return dish.plural if quantity > 1 else name


def say_item(rng: random.Random, item: Item) -> str:
    """An item with its quantity and modifiers; the quantity is now and then corrected on the way."""
    before: list[str] = []
    after: list[str] = []
    for mod in rng.sample(item.mods, len(item.mods)):
        said = menu.MODS[mod]
        if said.before and chance(rng, 0.55):
            before.append(pick(rng, said.before))
        else:
            after.append(pick(rng, said.after))
    words = " ".join([*before, say_name(rng, item.name, item.qty)])
    tail = f" {' and '.join(after)}" if after else ""
    if item.qty > 1 and chance(rng, 0.04):
        wrong = rng.choice([n for n in range(1, 7) if n != item.qty])
        regret = pick(rng, ("no", "sorry", "no wait"))
        return f"{say_number(rng, wrong)}, {regret}, {say_number(rng, item.qty)} {words}{tail}"
    return say_quantity(rng, item.qty, words) + tail


def say_list(rng: random.Random, parts: list[str]) -> str:
    """`parts` as an enumeration."""
    if len(parts) == 1:
        return parts[0]
    last = pick(rng, (" and ", " and ", ", and ", " plus "))
    return ", ".join(parts[:-1]) + last + parts[-1]


def say_correction(rng: random.Random, correct: str) -> str:
    """A clause that replaces what was said before by `correct`."""
    return f", {pick(rng, _CORRECTIONS)}{correct}"


def corrected_table(rng: random.Random, table: int) -> tuple[str, str]:
    """`table` as said in the sentence and the correction to append to it (mostly none)."""
    if not chance(rng, 0.07):
        return say_table(rng, table), ""
    wrong = rng.choice([n for n in range(1, MAX_TABLE + 1) if n != table])
    return say_table(rng, wrong), say_correction(rng, say_table(rng, table))


def dress(rng: random.Random, sentence: str) -> str:
    """`sentence` with politeness, a typing error, capital and full stop, each now and then."""
    if chance(rng, 0.3):
        sentence = pick(rng, _OPENINGS) + sentence
    if chance(rng, 0.3):
        sentence += pick(rng, _CLOSINGS)
    if chance(rng, 0.06):
        sentence = _mistype(rng, sentence)
    if chance(rng, 0.35):
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + pick(rng, ("", "", "", ".", ".", "!"))


def _mistype(rng: random.Random, sentence: str) -> str:
    """`sentence` with one letter of one longer word dropped, doubled or swapped with the next."""
    spans = [m.span() for m in re.finditer(r"[A-Za-z]{6,}", sentence) if m.group() not in _PROTECTED]
    if not spans:
        return sentence
    start, end = spans[rng.randrange(len(spans))]
    at = rng.randrange(start + 1, end - 1)
    head, here, following, tail = sentence[:at], sentence[at], sentence[at + 1], sentence[at + 2 :]
    return head + rng.choice((following, here + here + following, following + here)) + tail
