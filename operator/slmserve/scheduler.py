# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: one thread drives the engine, requests join and leave between steps.

Rows 0..k-1 decode together; prompts are prefilled in any of the others, and what ended requests have
left stays there as a cache (see `rows`). When a row in the middle ends, the last one moves into it,
so the engine never computes an idle row. Prompts are prefilled in chunks, and between two decode
steps only for a bounded time (see `pace`): a long prompt delays the others by a chunk, not by its
length. A prompt that begins as one in front of it waits for that part instead of computing it too.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import ClosedError, Deliver, QueueFullError
from slmserve.engines.base import AdapterEngine, Engine, Reuse
from slmserve.generation import Finish, Generation, Step, TokenLogprobs
from slmserve.journal import describe_exception
from slmserve.pace import Pace
from slmserve.rows import Rows
from slmserve.sampling import NOT_A_NUMBER, choose_tokens, log_probabilities

_log = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 1.0
_FAILURES_UNTIL_BROKEN: Final = 3
_LOOK_AHEAD: Final = 8
"""So many of those that wait longest may overtake each other."""
_GATHER_SECONDS: Final = 0.002
"""A tiny model makes thousands of tokens a second; handing over each costs more than making it."""


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
        reuse: Reuse = Reuse.PREFIX,
        spare_rows: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`spare_rows`: rows that the engine has beyond its slots. `clock` counts as `arrived` does."""
        self._engine = engine
        self._adapters = engine.adapters if isinstance(engine, AdapterEngine) else ()
        self._max_queue = max_queue
        self._deliver = deliver
        self._wake = threading.Condition()
        self._waiting: list[Generation] = []
        self._decoding: list[Generation] = []
        self._prefilling: list[Generation] = []
        self._rows = Rows(engine, spare_rows=spare_rows, reuse=reuse)
        self._pace = Pace(most_tokens=engine.prefill_chunk)
        self._clock = clock
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
        return len(self._decoding) + len(self._prefilling)

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        """The thread lives, has ended a round within `stuck_seconds`, and the engine still works."""
        return (
            self._thread.is_alive()
            and time.monotonic() - self._beat < stuck_seconds
            and self._failures < _FAILURES_UNTIL_BROKEN
        )

    def submit(self, generation: Generation) -> None:
        """Queue a request; raises QueueFullError, ClosedError, or ValueError for an unknown adapter."""
        if generation.adapter and generation.adapter not in self._adapters:
            raise ValueError(f"adapter {generation.adapter!r} is not one of {', '.join(self._adapters)}")
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
        if self._prefilling:
            for generation in [g for g in self._prefilling if g.cancelled]:
                self._leave(generation, Finish.CANCELLED)
        if self._waiting:
            with self._wake:
                gone = [g for g in self._waiting if g.cancelled]
                if gone:
                    self._waiting = [g for g in self._waiting if not g.cancelled]
            for generation in gone:
                self._end(generation, Finish.CANCELLED)

    def _prefill_round(self) -> None:
        """Prompt work of one round: for the budget's tokens, or until something decodes."""
        budget, spent = self._pace.budget, 0
        while (spent < budget or not self._decoding) and (self._waiting or self._prefilling):
            generation, most = self._next_prompt()
            if generation is None:
                break
            limit = self._pace.budget if self._others_wait(generation) else self._engine.prefill_chunk
            left = min(most, len(generation.prompt) - generation.length)
            if self._decoding:
                chunk = self._pace.cut(left=left, spent=spent, budget=budget)
            else:
                chunk = min(left, limit)
            if not chunk:
                break
            self._prefill_chunk(generation, chunk)
            spent += chunk
            self._beat = time.monotonic()
        self._flush()

    def _others_wait(self, generation: Generation) -> bool:
        return bool(self._waiting or self._decoding or self._prefilling != [generation])

    def _next_prompt(self) -> tuple[Generation | None, int]:
        """Whose prompt comes next, with a row and all that is known of it, and for how many tokens."""
        self._drop_cancelled()
        with self._wake:
            waiting = self._waiting[:_LOOK_AHEAD] if self._can_admit() else ()
            candidates = [*self._prefilling, *waiting]
        if not candidates:
            return None, 0
        generation = min(candidates, key=self._rank) if len(candidates) > 1 else candidates[0]
        chosen, most = self._find_leader(generation)
        if chosen.row < 0:
            with self._wake:
                self._waiting.remove(chosen)
                self._prefilling.append(chosen)
            self._rows.take(chosen, len(self._decoding))
        elif len(self._prefilling) > 1:
            self._rows.catch_up(chosen)
        return chosen, most

    def _rank(self, generation: Generation) -> float:
        left = len(generation.prompt) - self._count_known(generation)
        return self._pace.rank(arrived=generation.arrived, left=left)

    def _count_known(self, generation: Generation) -> int:
        """Tokens of the prompt that need no computing."""
        return max(generation.length, self._rows.find(generation)[1])

    def _can_admit(self) -> bool:
        """Whether one more request may have a row.

        While several are in prefill one row stays free: without it they could not change places.
        """
        free = self._rows.free
        return self.busy < self._engine.slots and free > min(1, len(self._prefilling))

    def _find_leader(self, generation: Generation) -> tuple[Generation, int]:
        """Who has to compute first what `generation` needs, and at most how many tokens of it.

        That is a prompt in prefill with the same beginning that is ahead in it, or the one that it
        waits for itself. Each is further ahead, or as far and older, so the search ends.
        """
        chosen, most = generation, len(generation.prompt)
        while (found := self._find_ahead(chosen)) is not None:
            chosen, most = found
        return chosen, most

    def _find_ahead(self, generation: Generation) -> tuple[Generation, int] | None:
        known = -1
        for other in self._prefilling:
            shared = self._rows.count_shared(other, generation) if other is not generation else 0
            if shared <= other.length:
                continue
            if known < 0:
                known = self._count_known(generation)
            older = generation.row < 0 or other.arrived < generation.arrived
            if other.length > known or (other.length == known and older):
                return other, shared - other.length
        return None

    def _prefill_chunk(self, generation: Generation, chunk: int) -> None:
        """Compute `chunk` tokens of a prompt; after the last of them the request decodes."""
        row, start = generation.row, generation.length
        part = generation.prompt[start : start + chunk]
        begun = self._clock()
        try:
            logits = self._engine.prefill(row, part, start)
        except Exception as error:
            self._count_failure("prefill", error)
            self._leave(generation, Finish.ERROR)
            self._rows.forget(row)
            return
        self._pace.record(tokens=chunk, seconds=self._clock() - begun)
        self._failures = 0
        generation.length += chunk
        self._rows.append_prompt(row, part, start)
        if generation.cancelled:
            self._leave(generation, Finish.CANCELLED)
        elif generation.length == len(generation.prompt):
            self._begin_answer(generation, logits)

    def _begin_answer(self, generation: Generation, logits: NDArray[np.float32]) -> None:
        chosen = self._choose(logits[None], [generation])
        goes_on = self._take(generation, *chosen[0], time.perf_counter())
        self._prefilling.remove(generation)
        if not goes_on:
            self._rows.release(generation.row)
            return
        place = len(self._decoding)
        # Before its row is moved: should that fail, it is among those that end.
        self._decoding.append(generation)
        if generation.row != place:
            self._rows.make_room(place)
            self._rows.move(generation.row, place)

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
            self._rows.forget(generation.row)
            self._end(generation, Finish.ERROR)
            return False
        generation.generated += 1
        generation.last_token = token
        generation.output.append(token)
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
        self._rows.release(row)
        mover = self._decoding.pop()
        last = len(self._decoding)
        if row != last:
            # Before its row is moved: should that fail, it is among those that end.
            self._decoding[row] = mover
            self._rows.make_room(row)
            self._rows.move(last, row)

    def _leave(self, generation: Generation, finish: Finish) -> None:
        """End a request in prefill; what it has computed stays in its row."""
        self._prefilling.remove(generation)
        self._rows.release(generation.row)
        self._end(generation, finish)

    def _abandon_rows(self) -> None:
        """Forget all decoding rows."""
        for row in range(len(self._decoding)):
            self._rows.forget(row)
        self._decoding.clear()

    def _count_failure(self, where: str, error: Exception) -> None:
        self._failures += 1
        _log.error("the engine failed in %s: %s", where, describe_exception(error))

    def _fail_all(self, error: Exception) -> None:
        self._count_failure("a round", error)
        self._end_everything(Finish.ERROR)

    def _end_everything(self, finish: Finish) -> None:
        with self._wake:
            ending = [*self._decoding, *self._prefilling, *self._waiting]
            self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()
        self._rows.forget_all()
        for generation in ending:
            self._end(generation, finish)

    def _end(self, generation: Generation, finish: Finish) -> None:
        self._out.append(Step(generation, NOT_A_NUMBER, finish, time.perf_counter()))
        self._urgent = True
