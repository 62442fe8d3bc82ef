# SPDX-License-Identifier: Apache-2.0
"""The queue in front of an embedder: one thread, batches over requests."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import ClosedError, QueueFullError
from slmserve.embedding import Embedder
from slmserve.journal import describe_exception

_log = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 1.0
_MOST_ROWS: Final = 32
_MOST_TOKENS: Final = 4096
"""In one batch, padding to the longest included: memory grows with it."""
_FAILURES_UNTIL_BROKEN: Final = 3


class EmbeddingFailedError(Exception):
    """The embedder raised, or its vectors were not finite."""


@dataclass(slots=True, eq=False)
class _Job:
    texts: Sequence[Sequence[int]]
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    done: "Future[NDArray[np.float32]]" = field(default_factory=Future)

    @property
    def is_whole(self) -> bool:
        return len(self.vectors) == len(self.texts)


class EmbeddingQueue:
    """Owns the embedder's thread; texts of several requests share a batch.

    `submit`, `close` and the properties are for any thread.
    """

    def __init__(self, embedder: Embedder, *, max_queue: int) -> None:
        self._embedder = embedder
        self._max_queue = max_queue
        self._wake = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._closed = False
        self._failures = 0
        self._working = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)

    def start(self) -> None:
        """Begin to work; call once."""
        self._beat = time.monotonic()
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """Requests that are not answered yet, the one at work left out."""
        return max(0, len(self._jobs) - self.busy)

    @property
    def busy(self) -> int:
        """1 while a batch is computed."""
        return int(self._working)

    def is_healthy(self, *, stuck_seconds: float) -> bool:
        """The thread lives, has ended a batch within `stuck_seconds`, and the embedder still works."""
        fresh = time.monotonic() - self._beat < stuck_seconds
        return self._thread.is_alive() and fresh and self._failures < _FAILURES_UNTIL_BROKEN

    def submit(self, texts: Sequence[Sequence[int]]) -> "Future[NDArray[np.float32]]":
        """Queue texts; the result is [n, dimensions], or EmbeddingFailedError or ClosedError.

        Raises QueueFullError or ClosedError at once. A future that is cancelled frees its place.
        """
        job = _Job(texts)
        with self._wake:
            if self._closed:
                raise ClosedError
            if sum(not job.done.done() for job in self._jobs) > self._max_queue:
                raise QueueFullError
            self._jobs.append(job)
            self._wake.notify()
        return job.done

    def close(self, *, timeout_seconds: float = 5.0) -> None:
        """Fail what waits with ClosedError and end the thread; waits at most `timeout_seconds`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._jobs or self._closed):
                    self._wake.wait(_IDLE_SECONDS)
                    self._beat = time.monotonic()
                if self._closed:
                    break
                batch = self._take()
                self._working = bool(batch)
            if batch:
                self._compute(batch)
            self._working = False
            self._beat = time.monotonic()
        for job in self._jobs:
            if job.done.set_running_or_notify_cancel():
                job.done.set_exception(ClosedError())
        self._jobs.clear()

    def _take(self) -> list[tuple[_Job, Sequence[int]]]:
        """The next texts, as many as one batch may hold.

        The requests take turns, text by text: a long list holds up nobody's single text.
        """
        self._jobs = deque(job for job in self._jobs if not job.done.done())
        batch: list[tuple[_Job, Sequence[int]]] = []
        longest = 0
        left = [job.texts[len(job.vectors) :][:_MOST_ROWS] for job in self._jobs]
        for turn in zip_longest(*left):
            for job, text in zip(self._jobs, turn, strict=True):
                if text is None:
                    continue
                longest = max(longest, len(text))
                if batch and (len(batch) >= _MOST_ROWS or longest * (len(batch) + 1) > _MOST_TOKENS):
                    return batch
                batch.append((job, text))
        return batch

    def _compute(self, batch: list[tuple[_Job, Sequence[int]]]) -> None:
        jobs = list({id(job): job for job, _ in batch}.values())
        try:
            vectors = self._embedder.embed([text for _, text in batch])
            if not np.isfinite(vectors).all():
                raise FloatingPointError
        except Exception as error:
            self._failures += 1
            _log.error("the embedder failed: %s", describe_exception(error))
            self._end(jobs)
            return
        self._failures = 0
        for (job, _), vector in zip(batch, vectors, strict=True):
            job.vectors.append(np.array(vector, np.float32))
        self._end([job for job in jobs if job.is_whole])

    def _end(self, jobs: Sequence[_Job]) -> None:
        with self._wake:
            for job in jobs:
                self._jobs.remove(job)
        for job in jobs:
            if not job.done.set_running_or_notify_cancel():
                continue
            if job.is_whole:
                job.done.set_result(np.stack(job.vectors))
            else:
                job.done.set_exception(EmbeddingFailedError())
