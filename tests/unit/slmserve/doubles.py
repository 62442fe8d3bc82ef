# SPDX-License-Identifier: Apache-2.0
"""An engine with an arithmetic "model", so that every answer can be told in advance."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slmserve.generation import Constraint, Finish, Generation, Step, TokenLogprobs
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler

VOCAB = 97
END = 96


ADAPTERS = ("a", "b")


def _salt(adapter: str) -> int:
    """What an adapter adds to each token as the cache holds it."""
    return VOCAB * (("", *ADAPTERS).index(adapter))


def next_token(history: Sequence[int]) -> int:
    """Depends on every token and its place, so that a mixed-up cache shows."""
    value = 7
    for token in history:
        value = (value * 31 + token + 1) % 104_729
    return value % (VOCAB - 1)


def expected_answer(prompt: Sequence[int], count: int, adapter: str = "") -> list[int]:
    history, salt = [token + _salt(adapter) for token in prompt], _salt(adapter)
    for _ in range(count):
        history.append(next_token(history) + salt)
    return [token - salt for token in history[len(prompt) :]]


class ScriptedEngine:
    """Rows are lists of tokens; `broken` names the calls that raise, `poisoned` rows give NaN.

    A prefill takes `seconds_per_token` on the engine's own clock, a decode step takes none.
    """

    name = "scripted"
    version = "1"
    vocab_size = VOCAB

    def __init__(
        self,
        *,
        slots: int = 3,
        max_length: int = 64,
        prefill_chunk: int = 8,
        spare_rows: int = 0,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.prefill_chunk = prefill_chunk
        self.spare_rows = spare_rows
        self.seconds_per_token = seconds_per_token
        self.now = 0.0
        self.adapters = ADAPTERS
        self.row_adapters = [""] * (slots + spare_rows)
        self.rows: list[list[int]] = [[] for _ in range(slots + spare_rows)]
        self.batches: list[int] = []
        self.prefills: list[int] = []
        self.calls: list[int] = []
        """Tokens of each prefill, and a 0 for each decode step."""
        self.broken: set[str] = set()
        self.poisoned: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        self.gate.wait(10)
        if "prefill" in self.broken:
            raise RuntimeError("no prefill today")
        assert 0 < len(tokens) <= self.prefill_chunk
        self.prefills.append(len(tokens))
        self.calls.append(len(tokens))
        self.now += self.seconds_per_token * len(tokens)
        assert len(self.rows[row]) >= offset
        self.rows[row] = self.rows[row][:offset] + (tokens + _salt(self.row_adapters[row])).tolist()
        assert len(self.rows[row]) == offset + len(tokens) <= self.max_length
        return self._logits(row)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        self.gate.wait(10)
        if "decode" in self.broken:
            raise RuntimeError("no decode today")
        self.batches.append(len(tokens))
        self.calls.append(0)
        assert len(tokens) <= self.slots
        for row, (token, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            assert len(self.rows[row]) >= length
            self.rows[row] = [*self.rows[row][:length], token + _salt(self.row_adapters[row])]
            assert len(self.rows[row]) == length + 1 <= self.max_length
        return np.stack([self._logits(row) for row in range(len(tokens))])

    def move(self, source: int, target: int, length: int) -> None:
        if "move" in self.broken:
            raise RuntimeError("no move today")
        assert source != target
        assert 0 < length <= len(self.rows[source])
        self.rows[target] = self.rows[source][:length]
        self.row_adapters[target] = self.row_adapters[source]

    def assign_adapter(self, row: int, name: str) -> None:
        self.row_adapters[row] = name

    def _logits(self, row: int) -> NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[next_token(self.rows[row])] = 1
        if row in self.poisoned:
            logits[3] = np.nan
        return logits


class Recorder:
    """Collects steps by generation; `cancel_after` cancels one after so many tokens."""

    def __init__(self) -> None:
        self.tokens: dict[Generation, list[int]] = {}
        self.finishes: dict[Generation, Finish] = {}
        self.cancel_after: dict[Generation, int] = {}
        self.order: list[Generation] = []
        self.logprobs: dict[Generation, list[TokenLogprobs | None]] = {}
        self._changed = threading.Condition()

    def make(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        sampling: SamplingParams | None = None,
        end_tokens: frozenset[int] = frozenset({END}),
        adapter: str = "",
        arrived: float | None = None,
        constraint: Constraint | None = None,
        top_logprobs: int | None = None,
    ) -> Generation:
        generation = Generation(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling or SamplingParams(),
            end_tokens=end_tokens,
            inbox=self._take,
            adapter=adapter,
            arrived=arrived,
            constraint=constraint,
            top_logprobs=top_logprobs,
        )
        self.tokens[generation] = []
        return generation

    def deliver(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.generation.inbox(step)

    def _take(self, step: Step) -> None:
        generation = step.generation
        with self._changed:
            assert generation not in self.finishes, "a step after the end"
            if step.token >= 0:
                self.tokens[generation].append(step.token)
                self.order.append(generation)
                self.logprobs.setdefault(generation, []).append(step.logprobs)
            if len(self.tokens[generation]) == self.cancel_after.get(generation):
                generation.cancel()
            if step.finish is not None:
                self.finishes[generation] = step.finish
            self._changed.notify_all()

    def wait(self, *, finished: int = 0, tokens: int = 0, timeout_seconds: float = 20) -> None:
        def reached() -> bool:
            return len(self.finishes) >= finished and len(self.order) >= tokens

        with self._changed:
            assert self._changed.wait_for(reached, timeout_seconds), "the scheduler did not get there"


def build_scheduler(engine: ScriptedEngine, recorder: Recorder, *, max_queue: int = 100) -> Scheduler:
    return Scheduler(
        engine,
        max_queue=max_queue,
        deliver=recorder.deliver,
        gather_seconds=0,
        spare_rows=engine.spare_rows,
        clock=lambda: engine.now,
    )
