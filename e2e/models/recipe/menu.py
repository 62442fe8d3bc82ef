# SPDX-License-Identifier: Apache-2.0
"""What the café of the data set sells, how it can be prepared, what it stocks; and how people spell it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Dish:
    """One thing on the menu: its plural, the ways to have it, and the misspellings people type."""

    plural: str
    mods: tuple[str, ...]
    misspelt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mod:
    """How a modifier is said: before the name, after the name, or in a clause at the end of the sentence."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    clause: tuple[str, ...]


_MILK: Final = ("decaf", "extra hot", "large", "no sugar", "oat milk", "soy milk")
_BLACK: Final = ("decaf", "double shot", "large", "no sugar")
_TEA: Final = ("extra hot", "large", "lemon", "no sugar", "oat milk")
_COLD: Final = ("large", "lemon", "no ice")
_BREAD: Final = ("gluten free", "no butter", "no cheese", "no onions", "warm")
_CAKE: Final = ("cream", "gluten free", "warm")

MODS: Final[dict[str, Mod]] = {
    "decaf": Mod(before=("decaf", "decaffeinated"), after=("decaf",), clause=("decaf", "without caffeine")),
    "double shot": Mod(
        before=("double shot",), after=("with a double shot",), clause=("with a double shot",)
    ),
    "extra hot": Mod(before=("extra hot",), after=("extra hot",), clause=("extra hot",)),
    "large": Mod(before=("large", "big"), after=("in large",), clause=("large",)),
    "no sugar": Mod(before=("sugar free",), after=("without sugar", "no sugar"), clause=("without sugar",)),
    "oat milk": Mod(before=("oat milk", "oat"), after=("with oat milk", "on oat"), clause=("with oat milk",)),
    "soy milk": Mod(before=("soy",), after=("with soy milk", "on soy"), clause=("with soy milk",)),
    "lemon": Mod(before=(), after=("with lemon", "with a slice of lemon"), clause=("with lemon",)),
    "no ice": Mod(before=(), after=("without ice", "no ice"), clause=("without ice", "no ice")),
    "gluten free": Mod(before=("gluten free",), after=("gluten free",), clause=("gluten free",)),
    "no butter": Mod(before=(), after=("without butter", "no butter"), clause=("without butter",)),
    "no cheese": Mod(before=(), after=("without cheese", "hold the cheese"), clause=("without cheese",)),
    "no onions": Mod(before=(), after=("without onions", "no onions"), clause=("without onions",)),
    "warm": Mod(before=("warm",), after=("warmed up",), clause=("warm", "warmed up")),
    "cream": Mod(before=(), after=("with cream", "with whipped cream"), clause=("with cream",)),
}

MENU: Final[dict[str, Dish]] = {
    "espresso": Dish(plural="espressos", mods=_BLACK, misspelt=("expresso", "espreso")),
    "americano": Dish(plural="americanos", mods=_BLACK, misspelt=("amercano",)),
    "cappuccino": Dish(plural="cappuccinos", mods=_MILK, misspelt=("capuccino", "cappucino", "capucino")),
    "latte": Dish(plural="lattes", mods=_MILK, misspelt=("late", "lattte")),
    "flat white": Dish(plural="flat whites", mods=_MILK, misspelt=("flatwhite", "flat wite")),
    "mocha": Dish(plural="mochas", mods=_MILK, misspelt=("moca",)),
    "hot chocolate": Dish(plural="hot chocolates", mods=("cream", "extra hot", "large", "oat milk")),
    "black tea": Dish(plural="black teas", mods=_TEA),
    "green tea": Dish(plural="green teas", mods=_TEA, misspelt=("gren tea",)),
    "mint tea": Dish(plural="mint teas", mods=_TEA),
    "iced tea": Dish(plural="iced teas", mods=_COLD, misspelt=("ice tea",)),
    "still water": Dish(plural="still waters", mods=_COLD),
    "sparkling water": Dish(plural="sparkling waters", mods=_COLD, misspelt=("sparkeling water",)),
    "orange juice": Dish(plural="orange juices", mods=("large", "no ice"), misspelt=("orange juce",)),
    "apple juice": Dish(plural="apple juices", mods=("large", "no ice")),
    "lemonade": Dish(plural="lemonades", mods=("large", "no ice"), misspelt=("lemonad",)),
    "cola": Dish(plural="colas", mods=_COLD),
    "croissant": Dish(plural="croissants", mods=("no butter", "warm"), misspelt=("croisant", "crossaint")),
    "bagel": Dish(plural="bagels", mods=_BREAD, misspelt=("bagle",)),
    "cheese sandwich": Dish(
        plural="cheese sandwiches", mods=("gluten free", "no butter", "no onions", "warm")
    ),
    "ham sandwich": Dish(plural="ham sandwiches", mods=_BREAD, misspelt=("ham sandwhich",)),
    "soup": Dish(plural="soups", mods=("cream", "extra hot", "no onions")),
    "muffin": Dish(plural="muffins", mods=_CAKE, misspelt=("mufin",)),
    "brownie": Dish(plural="brownies", mods=_CAKE, misspelt=("browny",)),
    "carrot cake": Dish(plural="carrot cakes", mods=_CAKE, misspelt=("carot cake",)),
}

UNITS: Final[dict[str, str]] = {
    "bag": "bags",
    "bottle": "bottles",
    "box": "boxes",
    "carton": "cartons",
    "crate": "crates",
    "pack": "packs",
}

STOCK: Final[dict[str, tuple[str, ...]]] = {
    "espresso beans": ("bag", "box"),
    "decaf beans": ("bag", "box"),
    "milk": ("bottle", "carton", "crate"),
    "oat milk": ("carton", "crate"),
    "soy milk": ("carton", "crate"),
    "still water": ("bottle", "crate"),
    "sparkling water": ("bottle", "crate"),
    "orange juice": ("bottle", "carton"),
    "cola": ("bottle", "crate"),
    "sugar": ("bag", "box", "pack"),
    "lemons": ("bag", "crate"),
    "ice": ("bag",),
    "napkins": ("box", "pack"),
    "paper cups": ("box", "pack"),
    "straws": ("box", "pack"),
    "bagels": ("bag", "box"),
    "muffins": ("box", "pack"),
    "butter": ("box", "pack"),
}
