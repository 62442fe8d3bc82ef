# SPDX-License-Identifier: Apache-2.0
"""One engine, measured in a process of its own: a crash or a hang of it is nobody else's.

`measure` starts `python -m slmserve.candidate` and waits for the figures on a pipe. The child bounds itself
too: an alarm ends it (native code cannot catch or delay it), and the system refuses it memory beyond its
limit and would end it before others.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from slmserve.engines.registry import EngineKind, EngineOptions
from slmwire.choice import EngineMeasurement, parse_measurement

_CHILD: Final = "slmserve.candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one engine may use up; `memory_bytes` 0 means no limit of its own."""

    seconds: float
    memory_bytes: int


def measure(kind: EngineKind, model_dir: Path, options: EngineOptions, bounds: Bounds) -> EngineMeasurement:
    """Load and measure `kind` in a child process; never raises for what the engine does."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", _CHILD, kind.module, str(model_dir)]
    task = asdict(options) | asdict(bounds) | {"pipe": writer}
    command.append(json.dumps(task))
    try:
        child = subprocess.Popen(
            command,
            pass_fds=(writer,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        os.close(reader)
        return EngineMeasurement(error=f"no process could be started: {error.strerror}")
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            code = child.wait(bounds.seconds)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        finally:
            # Whatever it started ends with it, and with that the pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return _read(pipe.read(1 << 16), code, bounds)


def _read(text: bytes, code: int, bounds: Bounds) -> EngineMeasurement:
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        return parse_measurement(json.loads(text))
    if code == -signal.SIGALRM:
        return EngineMeasurement(error=f"not done within {bounds.seconds:.1f} s")
    if code < 0:
        return EngineMeasurement(error=f"the engine's process was ended by {signal.Signals(-code).name}")
    return EngineMeasurement(error=f"the engine's process ended with {code}")
