# SPDX-License-Identifier: Apache-2.0
"""Lets llama.cpp look at a model in a process of its own, where it may end the process.

Malformed files can violate an assertion inside the library, which calls abort(). The probe reads the
metadata and plans the memory without loading a weight: some ten milliseconds, whatever the size.
"""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from slmserve.engines.llama_library import LOAD_MODE_NONE, open_library
from slmserve.errors import StartError
from slmwire.reasons import Reason

_TIMEOUT_SECONDS: Final = 60
_MESSAGE: Final = 300
_KILLED: Final = "killed"


def probe_model(path: Path) -> None:
    """Raises StartError (Unfit) when llama.cpp would end the process, or refuses the file."""
    state = path.stat()
    found = _probe(str(path), state.st_size, state.st_mtime_ns)
    if found == _KILLED:
        message = (
            "the system ended a look at the model, as it does when memory runs out; raise the memory limit"
        )
        raise StartError(Reason.INSUFFICIENT_CAPACITY, f"{path.name}: {message}")
    if found:
        raise StartError(
            Reason.UNFIT,
            f"{path.name}: llama.cpp cannot load the model: {found}; convert it again, or use another engine",
        )


@functools.lru_cache(maxsize=64)
def _probe(path: str, size: int, changed_nanoseconds: int) -> str:
    """What went wrong, empty when nothing did; the same file is looked at once per process."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, path],
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"looking at it took more than {_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return ""
    if done.returncode == -signal.SIGKILL:
        return _KILLED
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    telling = next((line for line in lines if "GGML_" in line), lines[-1] if lines else "")
    return telling[-_MESSAGE:] or f"it ended the process with {done.returncode}"


def main(path: str) -> int:
    """Plan the model's memory; 0 when that works, with the library's reason on stderr when not."""
    library = open_library()
    params = library.llama_model_default_params()
    params.n_gpu_layers, params.load_mode, params.no_alloc = 0, LOAD_MODE_NONE, True
    with library.log.keep() as lines:
        model = library.llama_model_load_from_file(os.fsencode(path), params)
        planned = library.llama_context_default_params()
        planned.n_threads = planned.n_threads_batch = 1
        context = library.llama_init_from_model(model, planned) if model else None
    if context:
        return 0
    sys.stderr.write(describe(lines) + "\n")
    return 1


def describe(lines: list[str]) -> str:
    """The library's first complaint, in one line, without the name of the function that has it."""
    telling = [" ".join(line.split()) for line in lines if line.strip()]
    first = telling[0] if telling else "no reason given"
    text = first.partition(": ")[2] or first
    while text.startswith("error loading model"):
        text = text.partition(": ")[2]
    return text[:_MESSAGE]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
