# SPDX-License-Identifier: Apache-2.0
"""The port between the scheduler and whatever computes logits."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A model with `slots` rows of attention cache; one thread calls it.

    The scheduler keeps the rows that decode at 0..k-1, so that an engine pays for k rows only.
    Any method may raise; then the rows it was working on are lost, and the others still hold.
    """

    @property
    def name(self) -> str:
        """Short name of the engine, for people and metrics."""

    @property
    def version(self) -> str:
        """Version of the engine's library."""

    @property
    def slots(self) -> int:
        """Number of rows."""

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
        """Append prompt `tokens` [n] to `row`, which holds `offset` tokens.

        Returns the logits [vocab] after the last of them, valid until the next call.
        """

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to each of the rows 0..k-1; `tokens` [k], `lengths` [k] held before.

        Returns the logits [k, vocab], valid until the next call.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens' cache of row `source` to row `target`."""
