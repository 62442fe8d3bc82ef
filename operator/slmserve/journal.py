# SPDX-License-Identifier: Apache-2.0
"""Logging: one JSON object per line on standard output, never a prompt or an answer."""

import asyncio
import errno
import json
import logging
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Final, TextIO

_log = logging.getLogger(__name__)
_MOST_CAUSES: Final = 3


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message_of(record),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        return json.dumps(line, default=str)


def _message_of(record: logging.LogRecord) -> str:
    """The handler would write a record that does not fit its arguments to standard error, with them."""
    try:
        return record.getMessage()
    except Exception as error:
        return f"a line that cannot be written: {describe_exception(error)}"


def setup_logging(level: int = logging.INFO) -> None:
    """Send all logging of the process to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def describe_exception(error: BaseException) -> str:
    """Types and places of an exception and of those behind it, without messages: they may quote users."""
    found: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(found) < _MOST_CAUSES:
        frames = traceback.extract_tb(behind.__traceback__)[-4:]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        found.append(f"{_kind_of(behind)} at {' < '.join(reversed(places)) or 'an unknown place'}")
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return ", from ".join(found)


def _kind_of(error: BaseException) -> str:
    """A full disk and a missing right are of one type; the system's code of them quotes nobody."""
    code = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
    return f"{type(error).__name__} {code}".rstrip()


def log_uncaught() -> None:
    """Have the process log exceptions that nobody caught, and warnings, by their types and places.

    The interpreter would write them to standard error, with their messages.
    """

    def main_thread(_: object, error: BaseException, __: object) -> None:
        _log.error("the server failed: %s", describe_exception(error))

    def other_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            _log.error("a thread failed: %s", describe_exception(failed.exc_value))

    def anywhere(failed: Any) -> None:
        if failed.exc_value is not None:
            _log.error("an error could not be raised: %s", describe_exception(failed.exc_value))

    def warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        _log.warning("a %s at %s:%d", category.__name__, Path(filename).name, lineno)

    warnings.showwarning = warning
    logging.raiseExceptions = False  # where standard output is gone
    sys.excepthook, threading.excepthook, sys.unraisablehook = main_thread, other_thread, anywhere


def log_loop_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler; its own one writes arguments and messages."""
    error = context.get("exception")
    described = describe_exception(error) if isinstance(error, BaseException) else "no exception"
    _log.error("the event loop met a failure: %s", described)


def write_termination(path: Path, text: str) -> None:
    """Leave what a process says at its end where the kubelet looks; one that cannot logs why."""
    try:
        path.write_text(text)
    except OSError as error:
        _log.warning("cannot write %s: %s", path, error.strerror)
