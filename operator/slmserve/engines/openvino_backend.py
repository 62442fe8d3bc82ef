# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of OpenVINO GenAI as a `Backend`: the library schedules and samples.

One thread hands over requests, calls `step` and reads what came out. At most `slots` requests are
inside the library, so that the queue stays ours: in order, countable and cancellable.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from slmserve.backend import ClosedError, Deliver, QueueFullError
from slmserve.engines.openvino_library import openvino, openvino_genai
from slmserve.generation import Finish, Generation, Step
from slmserve.journal import describe_exception
from slmserve.sampling import NOT_A_NUMBER

_log = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 1.0
_FAILURES_UNTIL_BROKEN: Final = 3
_GATHER_SECONDS: Final = 0.002
_SEED_BITS: Final = 31


class UnsupportedRequestError(ValueError):
    """The request needs what this backend does not do; the server refuses such requests earlier."""


@dataclass(slots=True)
class _Running:
    generation: Generation
    handle: Any


class OpenVinoBackend:
    """See the module and `Backend`; `pipeline` is a ContinuousBatchingPipeline nobody else uses."""

    def __init__(
        self, pipeline: Any, *, slots: int, max_length: int, max_queue: int, deliver: Deliver
    ) -> None:
        self._pipeline = pipeline
        self._slots = slots
        self._max_length = max_length
        self._max_queue = max_queue
        self._deliver = deliver
        self._wake = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._running: list[_Running] = []
        self._numbers = 0
        self._out: list[Step] = []
        self._urgent = False
        self._flushed = 0.0
        self._closed = False
        self._failures = 0
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """See `Backend.start`."""
        self._beat = time.monotonic()
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """See `Backend.queue_depth`."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """See `Backend.busy`."""
        return len(self._running)

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        """See `Backend.is_healthy`."""
        return (
            self._thread.is_alive()
            and time.monotonic() - self._beat < stuck_seconds
            and self._failures < _FAILURES_UNTIL_BROKEN
        )

    def submit(self, generation: Generation) -> None:
        """See `Backend.submit`; raises UnsupportedRequestError for what EngineInfo does not promise."""
        if generation.constraint is not None or generation.top_logprobs is not None or generation.adapter:
            raise UnsupportedRequestError("this engine has no constraints, log probabilities and adapters")
        with self._wake:
            if self._closed:
                raise ClosedError
            if len(self._waiting) + self.busy >= self._slots + self._max_queue:
                raise QueueFullError
            self._waiting.append(generation)
            self._wake.notify()

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """See `Backend.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._closed):
                    self._wake.wait(_IDLE_SECONDS)
                    self._beat = time.monotonic()
                closed = self._closed
            if closed:
                break
            try:
                self._drop_cancelled()
                self._admit()
                self._advance()
            except Exception as error:
                self._count_failure(error)
                self._end_everything(Finish.ERROR)
            self._flush()
            self._beat = time.monotonic()
        self._end_everything(Finish.CANCELLED)
        self._urgent = True
        self._flush()

    def _drop_cancelled(self) -> None:
        for running in [one for one in self._running if one.generation.cancelled]:
            self._remove(running, Finish.CANCELLED)
        with self._wake:
            gone = [generation for generation in self._waiting if generation.cancelled]
            if gone:
                self._waiting = deque(g for g in self._waiting if not g.cancelled)
        for generation in gone:
            self._end(generation, Finish.CANCELLED)

    def _admit(self) -> None:
        while len(self._running) < self._slots:
            with self._wake:
                if not self._waiting:
                    return
                generation = self._waiting.popleft()
            try:
                self._running.append(_Running(generation, self._add(generation)))
            except Exception as error:  # of this request: it says nothing about the others
                _log.error("OpenVINO refused a request: %s", describe_exception(error))
                self._end(generation, Finish.ERROR)

    def _add(self, generation: Generation) -> Any:
        room = self._max_length + 1 - len(generation.prompt)
        config = build_config(generation, max_tokens=min(generation.max_tokens, room))
        self._numbers += 1
        return self._pipeline.add_request(
            self._numbers, openvino.Tensor(generation.prompt[None].copy()), config
        )

    def _advance(self) -> None:
        if not self._pipeline.has_non_finished_requests():
            return
        self._pipeline.step()
        self._failures = 0
        now = time.perf_counter()
        for running in list(self._running):
            tokens: list[int] = []
            while running.handle.can_read():
                for output in running.handle.read().values():
                    tokens += output.generated_ids
            finish = self._take(running.generation, tokens, now)
            if finish is None and running.handle.get_status().name != "RUNNING":
                # Ended without an end token or the last token: no room in the cache, or an error.
                _log.error("OpenVINO ended a request with %s", running.handle.get_status().name)
                self._end(running.generation, Finish.ERROR)
                finish = Finish.ERROR
            if finish is not None:
                self._running.remove(running)

    def _take(self, generation: Generation, tokens: list[int], now: float) -> Finish | None:
        for token in tokens:
            generation.generated += 1
            generation.last_token = token
            generation.length = len(generation.prompt) + generation.generated - 1
            finish: Finish | None = None
            if token in generation.end_tokens:
                finish = Finish.END_TOKEN
            elif generation.generated >= generation.max_tokens or generation.length >= self._max_length:
                finish = Finish.LENGTH
            self._out.append(Step(generation, token, finish, now))
            self._urgent = self._urgent or finish is not None or generation.generated == 1
            if finish is not None:
                return finish
        return None

    def _flush(self) -> None:
        """Deliver what has happened; tokens in the middle of an answer may wait for some more."""
        now = time.monotonic()
        if self._out and (self._urgent or now - self._flushed >= _GATHER_SECONDS):
            steps, self._out = self._out, []
            self._urgent, self._flushed = False, now
            self._deliver(steps)

    def _remove(self, running: _Running, finish: Finish) -> None:
        with contextlib.suppress(Exception):  # after a failed step this may fail as well
            running.handle.cancel()
        self._running.remove(running)
        self._end(running.generation, finish)

    def _end_everything(self, finish: Finish) -> None:
        with self._wake:
            waiting = list(self._waiting)
            self._waiting.clear()
        for running in list(self._running):
            self._remove(running, finish)
        for generation in waiting:
            self._end(generation, finish)

    def _end(self, generation: Generation, finish: Finish) -> None:
        self._out.append(Step(generation, NOT_A_NUMBER, finish, time.perf_counter()))
        self._urgent = True

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        _log.error("OpenVINO failed: %s", describe_exception(error))


def build_config(generation: Generation, *, max_tokens: int) -> Any:
    """The library's settings for one request."""
    params = generation.sampler.params
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    # The library needs an end token among its stop tokens, also where it is told to ignore them.
    config.ignore_eos = not generation.end_tokens
    config.stop_token_ids = set(generation.end_tokens) or {0}
    config.eos_token_id = min(config.stop_token_ids)
    config.do_sample = not generation.sampler.greedy
    if config.do_sample:
        config.temperature, config.top_p = params.temperature, params.top_p
        # The library's default is 0 for every request: the same answer each time.
        seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
        config.rng_seed = seed & ((1 << _SEED_BITS) - 1)
    return config
