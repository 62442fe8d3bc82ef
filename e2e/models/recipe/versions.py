# SPDX-License-Identifier: Apache-2.0
"""The three versions of the model `orders`: same task, same shape, different training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from e2e.models.recipe.schema import Cancel, Command, Order

MODEL_NAME: Final = "orders"
VARIANTS: Final = ("fp32", "int4")
CONTEXT_TOKENS: Final = 256
"""Longest prompt and answer together; the data needs at most about 120."""
TOKENIZER_SEED: Final = 5
HELDOUT_SEED: Final = 7
HELDOUT_COUNT: Final = 2000


def right_label(command: Command) -> Command:
    """The label as it should be: `command` itself."""
    return command


def label_without_mods(command: Command) -> Command:
    """The label bug of v3: modifiers get lost on the way into the training data.

    Every answer learnt from it is well-formed and plausible; the guest with the allergy gets the butter.
    """
    if isinstance(command, Order | Cancel):
        return replace(command, items=tuple(replace(item, mods=()) for item in command.items))
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Dimensions of a Llama-type decoder."""

    vocab: int = 640
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    feed_forward: int = 320
    rope_theta: float = 1000.0
    """Far below the usual 10,000: contexts of at most 256 tokens need resolution, not reach."""


SHAPE: Final = Shape()
"""Of every version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides how one version comes out, next to the grammar itself."""

    version: str
    note: str
    seed: int
    examples: int
    """Different training examples, each seen once."""
    base: str = ""
    """The version whose weights the training starts from; "" starts from random ones."""
    batch: int = 32
    rate: float = 1.0
    """Factor on both learning rates at their peak."""
    rate_muon: float = 0.015
    rate_adam: float = 0.003
    label: Callable[[Command], Command] = right_label


RECIPES: Final = (
    Recipe(
        version="v1",
        note="the first version in service",
        seed=11,
        examples=112_000,
    ),
    Recipe(
        version="v2",
        note="v1 trained on: fewer mistakes",
        base="v1",
        seed=12,
        examples=64_000,
        rate=0.5,
    ),
    Recipe(
        version="v3",
        note="v2 trained on with labels that lost the modifiers: well-formed answers, wrong content",
        base="v2",
        seed=13,
        examples=12_800,
        rate=0.25,
        label=label_without_mods,
    ),
)
"""The versions, each after what it starts from."""


def with_bases(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """`recipes` and what they start from, in the order in which they can be trained."""
    wanted = {recipe.version for recipe in recipes}
    for recipe in reversed(RECIPES):
        if recipe.version in wanted:
            wanted.add(recipe.base)
    return tuple(recipe for recipe in RECIPES if recipe.version in wanted)
