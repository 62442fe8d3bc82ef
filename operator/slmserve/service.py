# SPDX-License-Identifier: Apache-2.0
"""The life of the process: load, evaluate, serve, drain."""

import asyncio
import contextlib
import logging
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Final

from slmserve.answers import build_deliver
from slmserve.backend import Backend
from slmserve.config import ServerConfig
from slmserve.constraints import GrammarCompiler
from slmserve.embedding_queue import EmbeddingQueue
from slmserve.errors import invalid, unavailable
from slmserve.examples import ExampleStore
from slmserve.feedback import GivenAnswers
from slmserve.golden import GoldenError, load_cases, run_golden
from slmserve.journal import describe_exception
from slmserve.keeping import ExampleKeeper
from slmserve.metrics import Metrics
from slmserve.model import LoadedModel, load_model
from slmserve.signals import Signals

_log = logging.getLogger(__name__)
_LINGER_SECONDS: Final = 1.0
"""A Service goes on sending for a moment after the pod is told to end; those requests are served."""
_FAREWELL_SECONDS: Final = 3.0


class Phase(StrEnum):
    """Where the process is in its life."""

    LOADING = "loading"
    EVALUATING = "evaluating"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


def process_age_seconds() -> float:
    """Seconds since the process started, interpreter start included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


class Service:
    """State shared by all requests; used from the event loop only."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics(config.identity)
        self.phase = Phase.LOADING
        self.created = int(time.time())
        self.given = GivenAnswers()
        self.signals = Signals(self.metrics, config.refusal_phrases)
        self.keeper: ExampleKeeper | None = None
        """None: no examples are kept."""
        if config.examples is not None:
            store = ExampleStore(config.examples.path, config.examples.settings)
            self.keeper = ExampleKeeper(store, self.metrics)
        self._in_flight = 0
        self._accepting = True
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._model: LoadedModel | None = None
        self._scheduler: Backend | None = None
        self._embeddings: EmbeddingQueue | None = None
        self._grammars: GrammarCompiler | None = None

    @property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars for the model; raises ApiError 503 until it is ready."""
        if self._grammars is None:
            model = self.model
            self._grammars = GrammarCompiler(model.codec, model.engine, model.defaults.end_tokens)
        return self._grammars

    @property
    def model(self) -> LoadedModel:
        """The model; raises ApiError 503 until it is ready."""
        if self._model is None or self.phase not in (Phase.READY, Phase.DRAINING):
            raise unavailable(f"the server is {self.phase.value}")
        return self._model

    @property
    def scheduler(self) -> Backend:
        """The scheduler; raises ApiError 503 until it runs."""
        if self._scheduler is None or self.phase is Phase.STOPPED:
            raise unavailable(f"the server is {self.phase.value}")
        return self._scheduler

    @property
    def embeddings(self) -> EmbeddingQueue:
        """The embedder's queue; raises ApiError 503 until it runs, 400 for a model without one."""
        if self.model.embedder is None:
            raise invalid(
                "this model gives no embeddings; use /v1/chat/completions or /v1/completions",
                param="model",
                code="unsupported_endpoint",
            )
        if self._embeddings is None or self.phase is Phase.STOPPED:
            raise unavailable(f"the server is {self.phase.value}")
        return self._embeddings

    @property
    def _workers(self) -> list[Backend | EmbeddingQueue]:
        return [worker for worker in (self._scheduler, self._embeddings) if worker is not None]

    @property
    def healthy(self) -> bool:
        """While loading always; then as long as the engine's threads make progress."""
        limit = self.config.stuck_seconds
        return all(worker.is_healthy(stuck_seconds=limit) for worker in self._workers)

    def render_metrics(self) -> bytes:
        """The exposition of this moment."""
        workers = self._workers
        self.signals.show_drift()
        return self.metrics.render(
            queue_depth=sum(worker.queue_depth for worker in workers),
            busy=sum(worker.busy for worker in workers),
        )

    def begin_request(self) -> None:
        """A drain waits until `end_request` was called as often."""
        self._in_flight += 1
        self._quiet.clear()

    def end_request(self) -> None:
        """The request's last byte is sent, or its client has left."""
        self._in_flight -= 1
        if not self._in_flight:
            self._quiet.set()

    async def start_up(self) -> None:
        """Load, warm up and evaluate; then the phase is READY. Raises StartError."""
        if self.keeper is not None:
            await self.keeper.begin()
        model = await asyncio.to_thread(load_model, self.config)
        loaded_seconds = process_age_seconds()
        scheduler = None
        if model.build_backend is not None:
            deliver = build_deliver(asyncio.get_running_loop())
            scheduler = model.build_backend(self.config.max_queue, deliver)
            scheduler.start()
        if model.embedder is not None:
            self._embeddings = EmbeddingQueue(model.embedder, max_queue=self.config.max_queue)
            self._embeddings.start()
        self._scheduler, self._model = scheduler, model
        self.metrics.record_loaded(
            seconds=loaded_seconds,
            digest=model.digest,
            engine=model.engine.name,
            version=self.config.identity.model_version,
            slots=model.engine.slots,
            cache_bytes=model.engine.cache_bytes,
        )
        fields = {
            "seconds": round(loaded_seconds, 3),
            "engine": f"{model.engine.name} {model.engine.version}",
            "slots": model.engine.slots,
            "context": model.engine.max_length,
            "digest": model.digest,
        }
        _log.info("model loaded", extra={"fields": fields})
        if self.phase is Phase.LOADING:
            self.phase = Phase.EVALUATING
            if self.config.evaluate and scheduler is not None:
                await self._evaluate(model, scheduler)
        if self.phase is Phase.EVALUATING:
            self.phase = Phase.READY
            _log.info("ready")

    async def _evaluate(self, model: LoadedModel, scheduler: Backend) -> None:
        """Run the golden set and export its score; the score never keeps the server from serving."""
        try:
            cases = await asyncio.to_thread(load_cases, model.directory)
            if not cases:
                return
            most = model.engine.slots + self.config.max_queue
            result = await run_golden(cases, model, scheduler, most=most)
        except GoldenError as error:
            _log.error("no evaluation: %s", error)
            return
        except Exception as error:
            _log.error("no evaluation: %s", describe_exception(error))
            return
        self.metrics.record_evaluation(score=result.score, samples=result.samples, seconds=result.seconds)
        fields = {
            "score": round(result.score, 4),
            "samples": result.samples,
            "seconds": round(result.seconds, 3),
        }
        _log.info("evaluated", extra={"fields": fields})

    def refuse_when_ending(self) -> None:
        """Raises ApiError 503 for requests that come too late in a drain."""
        if not self._accepting:
            raise unavailable("the server is ending; another one takes over", retry_seconds=1)

    async def drain(self) -> None:
        """End well: not ready at once, what is in flight gets `drain_seconds`, then all is over."""
        self.phase = Phase.DRAINING
        limit = self.config.drain_seconds
        _log.info("draining", extra={"fields": {"in_flight": self._in_flight, "limit_seconds": limit}})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await asyncio.sleep(min(_LINGER_SECONDS, limit / 4))
                self._accepting = False
                await self._quiet.wait()
        self._accepting = False
        self.phase = Phase.STOPPED
        left = self._in_flight
        for worker in self._workers:
            await asyncio.to_thread(worker.close)
        if self.keeper is not None:
            await self.keeper.close()
        with contextlib.suppress(TimeoutError):
            # The last events of cancelled requests reach their clients.
            await asyncio.wait_for(self._quiet.wait(), _FAREWELL_SECONDS)
        _log.info("stopped", extra={"fields": {"cancelled": left}})
