# SPDX-License-Identifier: Apache-2.0
"""The port between the scheduler and whatever computes logits."""

from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Reuse(StrEnum):
    """What a row's cache is good for once its request has left."""

    PREFIX = "prefix"
    """A row can be cut back to any length and go on from there; `move` may copy a part of it."""
    NONE = "none"
    """A row begins at offset 0 or goes on at its end: recurrent state cannot be cut back."""


class Engine(Protocol):
    """A model with rows of attention cache; one thread calls it.

    It has `slots` rows, and beyond them as many spare ones as `engines.logits.with_scheduler` is
    told of: those are prefilled, read and written by `move`, and never decoded. The scheduler keeps
    the rows that decode at 0..k-1, so that an engine pays for k rows only. Any method may raise;
    then the rows it was working on are lost, and the others still hold.
    """

    @property
    def name(self) -> str:
        """Short name of the engine, for people and metrics."""

    @property
    def version(self) -> str:
        """Version of the engine's library."""

    @property
    def slots(self) -> int:
        """Number of rows that can decode together."""

    @property
    def max_length(self) -> int:
        """Tokens one row can hold, prompt and answer together."""

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""

    @property
    def prefill_chunk(self) -> int:
        """Most prompt tokens that one `prefill` call should get."""

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """Append prompt `tokens` [n] to the first `offset` tokens of `row`.

        A row that holds more forgets what comes after `offset` (with Reuse.NONE only at offset 0).
        Returns the logits [vocab] after the last of them, valid until the next call.
        """

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to each of the rows 0..k-1; `tokens` [k], `lengths` [k] held before.

        The other rows keep what they hold.
        Returns the logits [k, vocab], valid until the next call.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens' cache of row `source` to row `target`.

        `source` keeps all it holds, `target` holds these tokens and nothing else. With Reuse.PREFIX
        `length` may be less than `source` holds.
        """


@runtime_checkable
class AdapterEngine(Engine, Protocol):
    """An engine whose rows can use LoRA adapters; `move` carries a row's adapter along."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that rows can be given."""

    def assign_adapter(self, row: int, name: str) -> None:
        """Use adapter `name` (empty: none) for what is appended to `row` from now on.

        Raises KeyError when there is no such adapter.
        """
