# SPDX-License-Identifier: Apache-2.0
"""A real server process on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

ROOT = Path(__file__).parents[3]
ORDERS = ROOT / "e2e/models/orders"


class ServerProcess:
    """`python -m slmserve` with `flags`; its log lies in `directory`.

    `under` is a command that runs Python with the arguments that follow it, in its place.
    """

    def __init__(
        self,
        model_dir: Path,
        directory: Path,
        *flags: str,
        environ: dict[str, str] | None = None,
        under: tuple[str, ...] = (sys.executable,),
    ):
        self.log_file = directory / f"server-{time.monotonic_ns()}.log"
        self.termination_log = directory / f"termination-{time.monotonic_ns()}.json"
        command = [*under, "-m", "slmserve", "--model-dir", str(model_dir), "--host", "127.0.0.1"]
        command += ["--port", "0", "--termination-log", str(self.termination_log)]
        command += ["--manifest-file", str(directory / "none.json"), *flags]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLM_")}
        path = {"PYTHONPATH": str(ROOT / "operator")}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=inherited | path | (environ or {})
            )
        self.port = 0
        self.scheme = "http"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def log_lines(self) -> list[dict[str, Any]]:
        lines = self.log_file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_listening(self, timeout_seconds: float = 30) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            ports = [line["port"] for line in self.log_lines() if line["message"] == "listening"]
            if ports:
                self.port = ports[0]
                return
            assert self.process.poll() is None, self.log_file.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not listening: {self.log_file.read_text()}")

    def wait_ready(self, timeout_seconds: float = 60) -> None:
        self.wait_listening(timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            try:
                url = f"{self.url}/readyz"
                if httpx.get(url, timeout=5, verify=False).status_code == 200:  # noqa: S501
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log_file.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log_file.read_text()}")

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 30) -> None:
        """Wait for something that the running server will do."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            assert self.process.poll() is None, self.log_file.read_text()
            time.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_end(self, timeout_seconds: float = 30) -> int:
        return self.process.wait(timeout_seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def metrics(self) -> dict[str, float]:
        """Samples by name and own labels, the identity labels left out: `name{code=200}`."""
        samples = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            if line.startswith("#"):
                continue
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            pairs = [p for p in labels.rstrip("}").split('",') if p and not p.startswith("slm_")]
            own = ",".join(p.replace('"', "") for p in pairs)
            samples[f"{name}{{{own}}}" if own else name] = float(value)
        return samples
