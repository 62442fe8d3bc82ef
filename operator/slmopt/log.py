# SPDX-License-Identifier: Apache-2.0
"""Progress of a step: one JSON object per line on standard output."""

import json
import sys
import time
from typing import Any


def log(message: str, *, level: str = "info", **fields: Any) -> None:
    """Write one line; values that are no JSON are written as text."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"time": stamp, "level": level, "logger": "slmopt", "message": message} | fields
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()
