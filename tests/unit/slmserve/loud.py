# SPDX-License-Identifier: Apache-2.0
"""A server that logs all it can and fails inside with messages that quote requests.

Runs in the place of `python`: `python -m tests.unit.slmserve.loud -m slmserve ...`. A chat whose text has
one of the words of `Failure` fails there, with an exception whose message is the whole request.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NoReturn

from slmserve import __main__ as server_command
from slmserve import inference as server_inference
from slmserve.journal import setup_logging

command: Any = server_command
inference: Any = server_inference
"""As objects whose parts are replaced."""


class Failure(StrEnum):
    """Where a request fails."""

    EARLY = "FailEarly"
    """Before it is queued."""
    TASK = "FailTask"
    """In a task that nobody waits for."""
    CALLBACK = "FailCallback"
    """In a callback of the event loop, with the text as its argument."""
    THREAD = "FailThread"
    LATE = "FailLate"
    """While its answer is put together."""


def _fail(text: str) -> NoReturn:
    raise RuntimeError(f"cannot work with {text}")


async def _fail_later(text: str) -> None:
    _fail(text)


def _spoil() -> None:
    build, gather, merge = inference.build_asks, inference.gather_choices, inference.merge_events
    late: list[str] = []

    async def build_asks(service: Any, request: Any, *rest: Any, **more: Any) -> Any:
        text = repr(request)
        if Failure.EARLY in text:
            _fail(text)
        if Failure.TASK in text:
            asyncio.get_running_loop().create_task(_fail_later(text))
        if Failure.CALLBACK in text:
            asyncio.get_running_loop().call_soon(_fail, text)
        if Failure.THREAD in text:
            threading.Thread(target=_fail, args=(text,), name=text[:200]).start()
        if Failure.LATE in text:
            late.append(text)
        return await build(service, request, *rest, **more)

    async def gather_choices(choices: Sequence[Any]) -> Any:
        if late:
            _fail(late.pop())
        return await gather(choices)

    async def merge_events(choices: Sequence[Any]) -> Any:
        async for event in merge(choices):
            yield event
            if late:
                _fail(late.pop())

    inference.build_asks = build_asks
    inference.gather_choices = gather_choices
    inference.merge_events = merge_events


def main() -> int:
    """As `slmserve`; works in the folder TMPDIR."""
    os.chdir(os.environ["TMPDIR"])
    command.setup_logging = lambda: setup_logging(logging.DEBUG)
    _spoil()
    code: int = command.main(sys.argv[3:])
    return code


if __name__ == "__main__":
    sys.exit(main())
