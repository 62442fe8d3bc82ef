# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: one thread drives the engine, requests join and leave between steps.

Rows 0..k-1 decode together; the request that is being prefilled has row k. When a row in the middle
ends, the last one moves into it, so the engine never computes an idle row. Prompts are prefilled in
chunks, one request at a time, and between two decode steps only for a bounded number of tokens: a
long prompt delays the others by a chunk, not by its length.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import ClosedError, Deliver, QueueFullError
from slmserve.engines.base import Engine
from slmserve.generation import Finish, Generation, Step, TokenLogprobs
from slmserve.journal import describe_exception
from slmserve.sampling import NOT_A_NUMBER, choose_tokens, log_probabilities

_log = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 1.0
_FAILURES_UNTIL_BROKEN: Final = 3
_GATHER_SECONDS: Final = 0.002
"""A tiny model makes thousands of tokens a second; handing over each costs more than making it."""
_PREFILL_SHARE: Final = 1
"""Chunks of prompt between two decode steps while others decode."""


class Scheduler:
    """Owns the engine's thread. `submit`, `close` and the properties are for any thread.

    `deliver` is called on the engine's thread, with the steps of one round or of `gather_seconds`
    of them; first tokens and ends never wait. It must not block.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue: int,
        deliver: Deliver,
        gather_seconds: float = _GATHER_SECONDS,
    ) -> None:
        self._engine = engine
        self._max_queue = max_queue
        self._deliver = deliver
        self._wake = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._decoding: list[Generation] = []
        self._prefilling: Generation | None = None
        self._out: list[Step] = []
        self._gather_seconds = gather_seconds
        self._urgent = False
        self._flushed = 0.0
        self._closed = False
        self._failures = 0
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work; call once."""
        self._beat = time.monotonic()
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Rows in use."""
        return len(self._decoding) + (self._prefilling is not None)

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        """The thread lives, has ended a round within `stuck_seconds`, and the engine still works."""
        return (
            self._thread.is_alive()
            and time.monotonic() - self._beat < stuck_seconds
            and self._failures < _FAILURES_UNTIL_BROKEN
        )

    def submit(self, generation: Generation) -> None:
        """Queue a request; raises QueueFullError or ClosedError."""
        with self._wake:
            if self._closed:
                raise ClosedError
            if len(self._waiting) + self.busy >= self._engine.slots + self._max_queue:
                raise QueueFullError
            self._waiting.append(generation)
            self._wake.notify()

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """End all requests as cancelled, then the thread; waits at most `timeout_seconds`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._decoding or self._prefilling or self._closed):
                    self._wake.wait(_IDLE_SECONDS)
                    self._beat = time.monotonic()
                closed = self._closed
            if closed:
                break
            try:
                self._drop_cancelled()
                self._prefill_round()
                self._decode_round()
            except Exception as error:  # a defect of ours: fail the requests, keep the server
                self._fail_all(error)
            self._flush()
            self._beat = time.monotonic()
        self._end_everything(Finish.CANCELLED)
        self._flush()

    def _flush(self) -> None:
        """Deliver what has happened; tokens in the middle of an answer may wait for some more."""
        if not self._out:
            return
        now = time.monotonic()
        if self._urgent or now - self._flushed >= self._gather_seconds:
            steps, self._out = self._out, []
            self._urgent, self._flushed = False, now
            self._deliver(steps)

    def _drop_cancelled(self) -> None:
        for row in range(len(self._decoding) - 1, -1, -1):
            if self._decoding[row].cancelled:
                self._end(self._decoding[row], Finish.CANCELLED)
                self._vacate(row)
        if self._prefilling is not None and self._prefilling.cancelled:
            self._end(self._prefilling, Finish.CANCELLED)
            self._prefilling = None

    def _prefill_round(self) -> None:
        budget = self._engine.prefill_chunk * _PREFILL_SHARE
        spent = 0
        while spent < budget or not self._decoding:
            generation = self._prefilling or self._admit()
            if generation is None:
                break
            chunk = min(self._engine.prefill_chunk, len(generation.prompt) - generation.length)
            self._prefilling = generation
            if not self._prefill_chunk(generation, chunk):
                self._prefilling = None
            spent += chunk
            self._beat = time.monotonic()
        self._flush()

    def _admit(self) -> Generation | None:
        with self._wake:
            while self._waiting and len(self._decoding) < self._engine.slots:
                generation = self._waiting.popleft()
                if not generation.cancelled:
                    return generation
                self._end(generation, Finish.CANCELLED)
        return None

    def _prefill_chunk(self, generation: Generation, chunk: int) -> bool:
        """Returns whether the request still prefills."""
        row, start = len(self._decoding), generation.length
        part = generation.prompt[start : start + chunk]
        try:
            logits = self._engine.prefill(row, part, start)
        except Exception as error:
            self._count_failure("prefill", error)
            self._end(generation, Finish.ERROR)
            return False
        self._failures = 0
        generation.length += chunk
        if generation.cancelled:
            self._end(generation, Finish.CANCELLED)
            return False
        if generation.length < len(generation.prompt):
            return True
        chosen = self._choose(logits[None], [generation])
        if self._take(generation, *chosen[0], time.perf_counter()):
            self._decoding.append(generation)
        return False

    def _decode_round(self) -> None:
        active = self._decoding
        if not active:
            return
        tokens = np.array([g.last_token for g in active], np.int64)
        lengths = np.array([g.length for g in active], np.int64)
        try:
            logits = self._engine.decode(tokens, lengths)
        except Exception as error:
            self._count_failure("decode", error)
            for generation in active:
                self._end(generation, Finish.ERROR)
            self._abandon_rows()
            return
        self._failures = 0
        chosen = self._choose(logits, active)
        now = time.perf_counter()
        ended = []
        for row, (generation, (token, logprobs)) in enumerate(zip(active, chosen, strict=True)):
            generation.length += 1
            if not self._take(generation, token, logprobs, now):
                ended.append(row)
        for row in reversed(ended):
            self._vacate(row)

    def _choose(
        self, logits: NDArray[np.float32], generations: Sequence[Generation]
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """Next token of each row, as its constraint allows, with log probabilities where asked for."""
        masked = logits
        for row, generation in enumerate(generations):
            if generation.constraint is None:
                continue
            allowed = generation.constraint.allowed()
            if allowed is not None:
                if masked is logits:
                    masked = logits.copy()
                masked[row, ~allowed[: logits.shape[1]]] = -np.inf
        tokens = choose_tokens(masked, [g.sampler for g in generations])
        chosen: list[tuple[int, TokenLogprobs | None]] = []
        for row, (generation, token) in enumerate(zip(generations, tokens, strict=True)):
            logprobs = None
            if token != NOT_A_NUMBER:
                if generation.constraint is not None:
                    generation.constraint.accept(token)
                if generation.top_logprobs is not None:
                    own, top = log_probabilities(logits[row], token, generation.top_logprobs)
                    logprobs = TokenLogprobs(chosen=own, top=tuple(top))
            chosen.append((token, logprobs))
        return chosen

    def _take(self, generation: Generation, token: int, logprobs: TokenLogprobs | None, now: float) -> bool:
        """Record a chosen token; returns whether the request goes on."""
        if token == NOT_A_NUMBER:
            _log.error("the model gave logits that are not finite")
            self._end(generation, Finish.ERROR)
            return False
        generation.generated += 1
        generation.last_token = token
        finish: Finish | None = None
        if token in generation.end_tokens:
            finish = Finish.END_TOKEN
        elif generation.generated >= generation.max_tokens or generation.length >= self._engine.max_length:
            finish = Finish.LENGTH
        self._out.append(Step(generation, token, finish, now, logprobs))
        self._urgent = self._urgent or finish is not None or generation.generated == 1
        return finish is None

    def _vacate(self, row: int) -> None:
        """Free a decoding row and close the gap, so that rows 0..k-1 stay the decoding ones."""
        last = len(self._decoding) - 1
        mover = self._decoding.pop()
        if row != last:
            self._engine.move(last, row, mover.length)
            self._decoding[row] = mover
        if self._prefilling is not None and self._prefilling.length:
            self._engine.move(last + 1, last, self._prefilling.length)

    def _abandon_rows(self) -> None:
        """Forget all decoding rows; a request in prefill begins again on the first row."""
        self._decoding.clear()
        if self._prefilling is not None:
            self._prefilling.length = 0

    def _count_failure(self, where: str, error: Exception) -> None:
        self._failures += 1
        _log.error("the engine failed in %s: %s", where, describe_exception(error))

    def _fail_all(self, error: Exception) -> None:
        self._count_failure("a round", error)
        self._end_everything(Finish.ERROR)

    def _end_everything(self, finish: Finish) -> None:
        with self._wake:
            ending = [*self._decoding, *([self._prefilling] if self._prefilling else []), *self._waiting]
            self._waiting.clear()
        self._prefilling = None
        self._decoding.clear()
        for generation in ending:
            self._end(generation, finish)

    def _end(self, generation: Generation, finish: Finish) -> None:
        self._out.append(Step(generation, NOT_A_NUMBER, finish, time.perf_counter()))
        self._urgent = True
