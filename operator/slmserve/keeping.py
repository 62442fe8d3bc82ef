# SPDX-License-Identifier: Apache-2.0
"""Examples from feedback, seen from the event loop: which prompts are remembered, and keeping them off it."""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from slmserve.examples import ExampleStore, Removed
from slmserve.journal import describe_exception
from slmserve.metrics import Metrics
from slmserve.redact import RedactionError
from slmserve.schemas import ChatRequest
from slmwire import metrics as names

_log = logging.getLogger(__name__)
_MOST_PROMPTS: Final = 1024
_MOST_BYTES: Final = 8 << 20
MOST_PROMPT_BYTES: Final = 32 << 10
"""Of one request's messages; longer ones are not remembered."""
MOST_SECONDS: Final = 86_400.0
"""How long a prompt is remembered for a correction, where examples may be kept for longer than that."""
_MOST_OUTCOMES: Final = 8192
_MOST_WAITING: Final = 32
_TIDY_SECONDS: Final = 300.0


class RememberedPrompts:
    """Messages of the last answers that were not judged yet, bounded in number, bytes and time.

    For the event loop.
    """

    def __init__(
        self,
        *,
        most: int = _MOST_PROMPTS,
        most_bytes: int = _MOST_BYTES,
        seconds: float = MOST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._most_bytes, self._seconds, self._clock = most, most_bytes, seconds, clock
        self._prompts: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """With the time at which each came, the oldest first."""
        self.size = 0
        """Bytes of all of them."""

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, identifier: str, request: ChatRequest) -> None:
        """Remember a request that was answered; without effect for one that no example can be made of."""
        if not _suits(request):
            return
        messages = [
            {"role": shown["role"], "content": shown["content"]}
            for shown in (message.to_template() for message in request.messages)
        ]
        prompt = json.dumps(messages, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        if len(prompt) > MOST_PROMPT_BYTES:
            return
        self.take(identifier)
        self._prompts[identifier] = self._clock(), prompt
        self.size += len(prompt)
        while len(self._prompts) > self._most or self.size > self._most_bytes:
            self._drop_oldest()

    def expire(self) -> None:
        """Forget those that nobody has corrected in time."""
        before = self._clock() - self._seconds
        while self._prompts and next(iter(self._prompts.values()))[0] <= before:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, gone) = self._prompts.popitem(last=False)
        self.size -= len(gone)

    def take(self, identifier: str) -> list[dict[str, str]] | None:
        """The messages, forgotten from now on; None when they are not remembered."""
        self.expire()
        found = self._prompts.pop(identifier, None)
        if found is None:
            return None
        prompt = found[1]
        self.size -= len(prompt)
        messages: list[dict[str, str]] = json.loads(prompt)
        return messages


def _suits(request: ChatRequest) -> bool:
    """One answer in plain text: with tools the prompt is more than its messages."""
    if request.choices != 1 or request.offered_tools:
        return False
    if any(message.is_about_tools for message in request.messages):
        return False
    return sum(len(message.text) for message in request.messages) <= MOST_PROMPT_BYTES


class ExampleKeeper:
    """Keeps corrections with their prompts in the store, one at a time on a thread of its own."""

    def __init__(self, store: ExampleStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="examples")
        self._prompts = RememberedPrompts(seconds=min(store.retention_seconds, MOST_SECONDS))
        self._outcomes: OrderedDict[str, asyncio.Future[bool]] = OrderedDict()
        self._waiting = 0
        self._failing = False
        self._tidying: asyncio.Task[None] | None = None
        metrics.begin_examples()

    def remember(self, identifier: str, request: ChatRequest) -> None:
        """An answer was given whole."""
        self._prompts.add(identifier, request)

    def forget(self, identifier: str) -> None:
        """It was judged without a correction."""
        self._prompts.take(identifier)

    async def keep(self, identifier: str, correction: str) -> bool:
        """Keep an example; whether it is on the disk now. The same answer again has the first outcome."""
        outcome = self._outcomes.get(identifier)
        if outcome is None:
            outcome = asyncio.ensure_future(self._keep(identifier, correction))
            self._outcomes[identifier] = outcome
            if len(self._outcomes) > _MOST_OUTCOMES:
                self._outcomes.popitem(last=False)
        # Whoever hangs up does not undo it.
        return await asyncio.shield(outcome)

    async def begin(self) -> None:
        """Remove what has expired, now and from now on."""
        await self._tidy()
        self._tidying = asyncio.create_task(self._tidy_regularly())

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._tidying is not None:
            self._tidying.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _tidy_regularly(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            await self._tidy()

    async def _tidy(self) -> None:
        self._prompts.expire()
        await self._work(self._store.tidy)

    async def _keep(self, identifier: str, correction: str) -> bool:
        messages = self._prompts.take(identifier)
        if messages is None:
            self._metrics.count_dropped_examples(names.DROPPED_NO_PROMPT)
            return False
        if self._waiting >= _MOST_WAITING:
            self._metrics.count_dropped_examples(names.DROPPED_BUSY)
            return False
        reason = await self._work(lambda: self._store.add(messages, correction))
        if reason:
            self._metrics.count_dropped_examples(reason)
        return not reason

    async def _work(self, task: Callable[[], Removed]) -> str:
        """Do it on the thread; returns why it failed, empty when it did not.

        The first failure after a success is logged.
        """
        self._waiting += 1
        reason, error = "", ""
        try:
            removed = await asyncio.get_running_loop().run_in_executor(self._thread, task)
            self._metrics.count_dropped_examples(names.DROPPED_EXPIRED, removed.expired)
            self._metrics.count_dropped_examples(names.DROPPED_LIMIT, removed.over_limit)
        except RedactionError as failure:
            reason, error = names.DROPPED_PATTERN, str(failure)
        except Exception as failure:
            reason, error = names.DROPPED_DISK, describe_exception(failure)
        finally:
            self._waiting -= 1
        self._metrics.show_examples(self._store.count)
        if reason and not self._failing:
            fields: dict[str, Any] = {"reason": reason, "error": error}
            _log.error("examples are not kept", extra={"fields": fields})
        self._failing = bool(reason)
        return reason
