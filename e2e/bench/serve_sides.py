# SPDX-License-Identifier: Apache-2.0
"""Servers that the benchmark compares: how each is started, and the running process."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_START_SECONDS: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a command line may depend on; `threads` and `context` 0 mean the server's own choice."""

    model_dir: Path
    port: int
    slots: int
    threads: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server: its name in the result, its model and the command that starts it."""

    name: str
    model_dir: Path
    command: Callable[[Launch], list[str]]
    ready_path: str = "/readyz"
    """Answers 200 once the model can be asked."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Added to each request's body."""


def serve_ours(engine: str) -> Callable[[Launch], list[str]]:
    """Our server with one of its engines."""

    def build(launch: Launch) -> list[str]:
        command = [sys.executable, "-m", "slmserve", "--model-dir", str(launch.model_dir)]
        command += ["--model", "bench", "--host", "127.0.0.1", "--port", str(launch.port)]
        command += ["--engine", engine, "--slots", str(launch.slots), "--threads", str(launch.threads)]
        command += ["--context-length", str(launch.context), "--evaluate", "false"]
        return [*command, "--termination-log", "/dev/null"]

    return build


def serve_llama_cpp(launch: Launch) -> list[str]:
    """llama.cpp's own server."""
    (model,) = launch.model_dir.glob("*.gguf")
    command = [sys.executable, "-m", "e2e.bench.serve_llama", str(model), "--port", str(launch.port)]
    command += ["--slots", str(launch.slots), "--threads", str(launch.threads)]
    return [*command, "--context", str(launch.context)]


class RunningServer:
    """The process of a `Side` on a free loopback port; `cold_seconds` from its start to its readiness."""

    def __init__(self, side: Side, *, slots: int, threads: int, context: int, work: Path) -> None:
        self.side = side
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        launch = Launch(
            model_dir=side.model_dir, port=self.port, slots=slots, threads=threads, context=context
        )
        self._log_file = work / f"{side.name.replace(' ', '-')}.log"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SLM_")}
        begun = time.monotonic()
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                side.command(launch), stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ
            )
        self.cold_seconds = self._wait_ready() - begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _wait_ready(self) -> float:
        deadline = time.monotonic() + _START_SECONDS
        url = f"http://127.0.0.1:{self.port}{self.side.ready_path}"
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return time.monotonic()
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        self.close()
        raise RuntimeError(f"{self.side.name} did not get ready: {self._log_file.read_text()[-2000:]}")

    def resident_bytes(self) -> int:
        """The process's memory now."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RuntimeError(f"{self.side.name} has ended: {self._log_file.read_text()[-2000:]}")
