# SPDX-License-Identifier: Apache-2.0
"""Which tokens each row of the engine's attention cache holds, and how they are used again.

A row that a request has left keeps its tokens until another needs the place, the one unused for
longest first. A prompt that begins as some row does, free or in use, gets that part by a copy, which
costs a few hundredths of computing it at most, or takes the free row over as it is.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.engines.base import AdapterEngine, Engine, Reuse
from slmserve.generation import Generation

_LEAST_TOKENS: Final = 8
"""Fewer tokens are computed as fast as they are found, copied and kept."""
_EMPTY: Final = 0
_NO_ROW: Final = -1


class Rows:
    """Rows 0..slots+spare_rows-1 of `engine`; only the scheduler's thread uses it.

    `holders[row]` is the request that has the row; a free row may still hold tokens.
    """

    def __init__(self, engine: Engine, *, spare_rows: int, reuse: Reuse) -> None:
        count = engine.slots + spare_rows
        self.holders: list[Generation | None] = [None] * count
        self._engine = engine
        self._assign_adapter = engine.assign_adapter if isinstance(engine, AdapterEngine) else None
        self._reuse = reuse
        self._tokens = np.zeros((count, engine.max_length), np.int32)
        self._heads = self._tokens[:, :_LEAST_TOKENS]
        self._lengths = [0] * count
        """Of what is noted in `_tokens`; decoded tokens are noted when somebody looks (`_sync`)."""
        self._adapters = [""] * count
        self._used = [_EMPTY] * count
        """Larger means used later; _EMPTY: nothing worth keeping."""
        self._tick = _EMPTY

    @property
    def free(self) -> int:
        """Rows that no request has."""
        return self.holders.count(None)

    def take(self, generation: Generation, place: int) -> None:
        """Give `generation` a free row, and in it what is known of its prompt; there has to be one.

        `place` is where it would decode now: taken where possible, so that it need not move later.
        """
        source, shared = self.find(generation)
        if shared and self.holders[source] is None and self._lengths[source] - shared < _LEAST_TOKENS:
            row = source
        elif self.holders[place] is None:
            row = place
            if shared:
                self._touch(source)
            if self.make_room(place):
                source, shared = self.find(generation)
        else:
            row = min(self._list_free(), key=self._used.__getitem__)
            if row == source and self._lengths[row] - shared >= _LEAST_TOKENS and self.make_room(row):
                source, shared = self.find(generation)
        self.holders[row], generation.row = generation, row
        if row != source:
            self._lengths[row] = 0
        self._adapters[row] = generation.adapter
        if self._assign_adapter is not None:
            self._assign_adapter(row, generation.adapter)
        self._fill(generation, source, shared)

    def catch_up(self, generation: Generation) -> None:
        """Copy into the row of `generation` what another row knows more of its prompt."""
        self._fill(generation, *self.find(generation))

    def find(self, generation: Generation) -> tuple[int, int]:
        """The row that holds most of the prompt, and how many tokens; (-1, 0) when none has enough.

        The last token is never among them: the logits after it are what a prefill is for.
        """
        count = len(generation.prompt) - 1
        if self._reuse is Reuse.NONE or count < _LEAST_TOKENS:
            return _NO_ROW, 0
        prompt, best, most = generation.prompt[:-1], _NO_ROW, _LEAST_TOKENS - 1
        alike = (self._heads == prompt[:_LEAST_TOKENS]).all(axis=1)
        for row in np.flatnonzero(alike).tolist() if alike.any() else ():
            if self._adapters[row] != generation.adapter:
                continue
            shared = _count_same(self._tokens[row, : min(self._sync(row), count)], prompt)
            if shared > most:
                best, most = row, shared
        return (best, most) if best != _NO_ROW else (_NO_ROW, 0)

    def _sync(self, row: int) -> int:
        """Note what the row's request has decoded since; returns how many tokens the row holds."""
        holder, known = self.holders[row], self._lengths[row]
        if holder is not None and holder.length > known:
            begin = known - len(holder.prompt)
            decoded = holder.output[begin : begin + holder.length - known]
            self._tokens[row, known : holder.length] = decoded
            self._lengths[row] = holder.length
        return self._lengths[row]

    def count_shared(self, one: Generation, other: Generation) -> int:
        """Tokens at the beginning of `other`'s prompt, but for its last, that `one`'s begins with too."""
        if self._reuse is Reuse.NONE or one.adapter != other.adapter:
            return 0
        count = min(len(one.prompt), len(other.prompt) - 1)
        shared = _count_same(one.prompt[:count], other.prompt)
        return shared if shared >= _LEAST_TOKENS else 0

    def _fill(self, generation: Generation, source: int, shared: int) -> None:
        row, held = generation.row, generation.length
        if shared <= held:
            return
        if source != row:
            self._copy(source, row, shared)
        self._lengths[row] = shared
        self._touch(source)
        generation.length = shared
        generation.cached_tokens += shared - held

    def append_prompt(self, row: int, tokens: NDArray[np.int64], offset: int) -> None:
        """`tokens` were prefilled into `row` at `offset`."""
        end = offset + len(tokens)
        self._tokens[row, offset:end] = tokens
        self._lengths[row] = end

    def release(self, row: int) -> None:
        """The request has left; its tokens stay until the place is needed."""
        length, holder = self._sync(row), self.holders[row]
        if holder is not None:
            holder.row = _NO_ROW
        self.holders[row] = None
        if length < _LEAST_TOKENS or self._reuse is Reuse.NONE:
            self.forget(row)
        else:
            self._touch(row)

    def forget(self, row: int) -> None:
        """The row is free and empty."""
        self.holders[row] = None
        self._lengths[row] = 0
        self._used[row] = _EMPTY

    def forget_all(self) -> None:
        """Every row is free and empty."""
        for row in range(len(self.holders)):
            self.forget(row)

    def make_room(self, row: int) -> bool:
        """Let what `row` holds go on elsewhere: a request must, what is only kept may be dropped.

        Returns whether it was moved.
        """
        holder = self.holders[row]
        if holder is None and self._used[row] == _EMPTY:
            return False
        free = [other for other in self._list_free() if other != row]
        if holder is None:
            free = [other for other in free if self._used[other] < self._used[row]]
        if free:
            self.move(row, min(free, key=self._used.__getitem__))
        return bool(free)

    def _list_free(self) -> list[int]:
        return [row for row, holder in enumerate(self.holders) if holder is None]

    def move(self, source: int, target: int) -> None:
        """Move tokens and request of `source` to the free row `target`; `source` is empty then."""
        length = self._sync(source)
        if length:
            self._copy(source, target, length)
        holder = self.holders[source]
        self.holders[target], self._lengths[target] = holder, length
        self._adapters[target], self._used[target] = self._adapters[source], self._used[source]
        if holder is not None:
            holder.row = target
        self.forget(source)

    def _copy(self, source: int, target: int, length: int) -> None:
        # While the engine writes, nobody may find the target's old tokens.
        self._lengths[target] = 0
        self._engine.move(source, target, length)
        self._tokens[target, :length] = self._tokens[source, :length]

    def _touch(self, row: int) -> None:
        self._tick += 1
        self._used[row] = self._tick


def _count_same(known: NDArray[np.int32] | NDArray[np.int64], prompt: NDArray[np.int64]) -> int:
    """Length of the common beginning; `known` is not longer than `prompt`."""
    same = known == prompt[: len(known)]
    return len(known) if same.all() else int(same.argmin())
