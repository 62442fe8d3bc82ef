# SPDX-License-Identifier: Apache-2.0
"""Rows over models that keep their attention cache inside.

An ExecuTorch program for text holds one stream: it takes tokens and their first position, and its cache
cannot be read or copied. So each row has an instance of the program, and this module knows which tokens each
instance has seen. A row that moves takes its instance along; where an instance does not hold what a row
should, the tokens that differ are computed again: slower, never wrong.
"""

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray


class StatefulModel(Protocol):
    """One instance of a program; one thread calls it."""

    def run(self, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """Append `tokens` [n], n >= 1, behind the first `offset` ones; the logits [vocab] of the last."""


class _Instance:
    __slots__ = ("held", "model")

    def __init__(self, model: StatefulModel) -> None:
        self.model = model
        self.held: NDArray[np.int64] = np.empty(0, np.int64)


def count_shared(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(left), len(right))
    differ = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differ[0]) if len(differ) else shorter


class StatefulRowsEngine:
    """See the module; implements `engines.base.Engine`."""

    name: Final = "executorch"

    def __init__(
        self,
        open_instance: Callable[[], StatefulModel],
        *,
        version: str,
        slots: int,
        max_length: int,
        vocab_size: int,
        call_tokens: int,
    ) -> None:
        """`call_tokens`: most tokens of one `run`. An instance is opened when its row is first used."""
        self.version: Final = version
        self.slots: Final = slots
        self.max_length: Final = max_length
        self.vocab_size: Final = vocab_size
        self.prefill_chunk: Final = max(16, call_tokens)
        self._call_tokens = call_tokens
        self._open = open_instance
        self._instances: list[_Instance | None] = [None] * slots
        self._wanted: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * slots

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """See `Engine.prefill`."""
        return self._advance(row, tokens, offset)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.decode`; the rows run one after the other."""
        steps = enumerate(lengths.tolist())
        return np.stack([self._advance(row, tokens[row : row + 1], length) for row, length in steps])

    def move(self, source: int, target: int, length: int) -> None:
        """See `Engine.move`; the source has to compute its tokens again when it is used again."""
        self._wanted[target] = self._wanted[source][:length]
        instances = self._instances
        instances[source], instances[target] = instances[target], instances[source]

    def _advance(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        wanted = np.concatenate([self._wanted[row][:offset], tokens])
        instance = self._instances[row]
        if instance is None:
            instance = self._instances[row] = _Instance(self._open())
        # The last token always runs: its logits are what is asked for.
        begin = min(count_shared(instance.held, wanted), len(wanted) - 1)
        self._wanted[row] = wanted
        for start in range(begin, len(wanted), self._call_tokens):
            part = wanted[start : start + self._call_tokens]
            # Should the call fail, what it wrote does not count.
            instance.held = wanted[:start]
            logits = instance.model.run(part, start)
            instance.held = wanted[: start + len(part)]
        return logits
