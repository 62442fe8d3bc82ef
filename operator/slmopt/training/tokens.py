# SPDX-License-Identifier: Apache-2.0
"""Examples as token ids, and batches of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from slmopt.autodiff.node import Array
from slmopt.errors import JobError, unfit

MAX_ROWS: Final = 2
"""There are few examples, and many small steps learn more of them than few large ones."""
MAX_BATCH_TOKENS: Final = 1024
"""Of one batch, padding included; a longer example is a batch of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question and the answer that it should get, end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Of what goes into the model: the last token is only ever predicted."""
        return len(self.prompt) + len(self.answer) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some examples side by side."""

    ids: Array
    """[examples, length], zeros behind the shorter ones."""
    lengths: tuple[int, ...]
    rows: Array
    """Positions before the answers' tokens, in ids laid out as one row."""
    targets: Array
    """The answers' tokens, one for each of `rows`."""


def read_examples(path: Path, *, vocab: int, context: int) -> tuple[list[Example], int]:
    """The examples of a file and how many were left out, as they are longer than the model's context.

    Raises JobError when there is no file, OptimizeError (Unfit) for lines that are no examples of this model;
    no message has a token in it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise JobError(
            f"{path} cannot be read ({error.strerror}); the container before has to write it"
        ) from error
    found = [_parse(line, number, path.name, vocab) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise unfit(
            f"{path.name} holds no example; collect some, or lower spec.adaptation.training.minExamples"
        )
    fitting = [example for example in found if example.length < context]
    if not fitting:
        raise unfit(f"{path.name}: every example is longer than the model's context of {context} tokens")
    return fitting, len(found) - len(fitting)


def _parse(line: bytes, number: int, name: str, vocab: int) -> Example:
    try:
        body = json.loads(line)
        prompt, answer = (_ids(body[key], vocab) for key in ("prompt", "answer"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise unfit(
            f"{name}, line {number} is no example: it takes prompt and answer, each a list of token ids "
            f"below {vocab} and neither empty"
        ) from error
    return Example(prompt=prompt, answer=answer)


def _ids(value: Any, vocab: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and value and all(type(item) is int for item in value)
    if not whole or min(value) < 0 or max(value) >= vocab:
        raise ValueError
    return tuple(value)


def split_examples(
    examples: Sequence[Example], rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """A part to learn from, and about a tenth to tell when to stop: none of fewer than ten examples."""
    order = [examples[i] for i in rng.permutation(len(examples))]
    held = len(order) // 10
    return order[held:], order[:held]


def build_batches(examples: Sequence[Example], rng: np.random.Generator) -> list[Batch]:
    """All examples, those of like length together, which saves padding; batches in random order."""
    order = [examples[i] for i in rng.permutation(len(examples))]
    groups = list(_groups(sorted(order, key=lambda example: example.length)))
    return [_pack(groups[i]) for i in rng.permutation(len(groups))]


def _groups(examples: Sequence[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in examples:
        if group and (len(group) == MAX_ROWS or (len(group) + 1) * example.length > MAX_BATCH_TOKENS):
            yield group
            group = []
        group.append(example)
    yield group


def _pack(group: Sequence[Example]) -> Batch:
    length = max(example.length for example in group)
    ids = np.zeros((len(group), length), np.int64)
    rows: list[int] = []
    for row, example in enumerate(group):
        ids[row, : example.length] = (example.prompt + example.answer)[:-1]
        start = row * length + len(example.prompt) - 1
        rows += range(start, start + len(example.answer))
    return Batch(
        ids=ids,
        lengths=tuple(example.length for example in group),
        rows=np.array(rows),
        targets=np.array([token for example in group for token in example.answer]),
    )
