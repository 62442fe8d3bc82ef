# SPDX-License-Identifier: Apache-2.0
"""Logging: one JSON object per line on standard output, never a prompt or an answer."""

import json
import logging
import sys
import time
import traceback
from pathlib import Path


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        return json.dumps(line, default=str)


def setup_logging(level: int = logging.INFO) -> None:
    """Send all logging of the process to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def describe_exception(error: BaseException) -> str:
    """Type and place of an exception without its message, which may quote what a user wrote."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return f"{type(error).__name__} at {' < '.join(reversed(places)) or 'an unknown place'}"
