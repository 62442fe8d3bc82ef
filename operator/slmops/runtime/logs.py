# SPDX-License-Identifier: Apache-2.0
"""Structured logging: one JSON object per line, or one readable line."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

FIELDS: Final = "fields"
"""Attribute of a log record that holds its structured fields: `extra={FIELDS: {...}}`."""


def fields_of(**values: Any) -> dict[str, dict[str, Any]]:
    """`extra` argument for a logging call; empty values are left out."""
    return {FIELDS: {key: value for key, value in values.items() if value not in ("", None)}}


class JsonFormatter(logging.Formatter):
    """ts, level, msg, logger, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        body: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "logger": record.name,
        }
        body |= getattr(record, FIELDS, {})
        if record.exc_info:
            body["error"] = self.formatException(record.exc_info)
        return json.dumps(body, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """time level message key=value ..."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        at = datetime.fromtimestamp(record.created, tz=UTC).strftime("%H:%M:%S.%f")[:-3]
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        line = " ".join(
            [at, f"{record.levelname:<7}", record.getMessage(), *(f"{k}={v}" for k, v in fields.items())]
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup_logging(*, log_format: str, level: int) -> None:
    """Send everything to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The framework tells each step of its own; what it says at INFO is no change of state.
    for name in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)
