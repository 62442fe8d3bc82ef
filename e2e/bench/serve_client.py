# SPDX-License-Identifier: Apache-2.0
"""A light streaming client, and the server process that it asks.

The client shares the device's cores with the server, so it does no more than it must.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One answer: seconds since the load began, and tokens generated."""

    sent: float
    first: float
    done: float
    tokens: int


class BenchServer:
    """`python -m slmserve` on a free loopback port."""

    def __init__(self, model_dir: Path, *, slots: int, log_file: Path) -> None:
        self._log_file = log_file
        command = [sys.executable, "-m", "slmserve", "--model-dir", str(model_dir), "--model", "bench"]
        command += ["--host", "127.0.0.1", "--port", "0", "--slots", str(slots), "--evaluate", "false"]
        command += ["--termination-log", str(log_file.with_suffix(".end"))]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SLM_")}
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        self.port = 0

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            lines = [json.loads(x) for x in self._log_file.read_text().splitlines() if x.endswith("}")]
            ports = [line["port"] for line in lines if line["message"] == "listening"]
            if ports and any(line["message"] == "ready" for line in lines):
                self.port = ports[0]
                return self
            time.sleep(0.05)
        self._end()
        raise RuntimeError(f"the server did not get ready: {self._log_file.read_text()[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def resident_bytes(self) -> int:
        """The server's memory, as its metrics say."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("process_resident_memory_bytes"):
                    return int(float(line.rpartition(" ")[2]))
        raise RuntimeError("the server exports no memory")


async def _ask(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], prompt: list[int], new: int, start: float
) -> Timing:
    reader, writer = streams
    body: dict[str, Any] = {"model": "bench", "prompt": prompt, "max_tokens": new, "stream": True}
    data = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    sent = time.perf_counter() - start
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server answered {status!r}")
    first, last, tokens = 0.0, b"", 0
    while (line := await reader.readline()) != b"data: [DONE]\n":
        if not line:
            raise RuntimeError("the server closed the connection")
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - start
            last = line
    done = time.perf_counter() - start
    tokens = json.loads(last[6:])["usage"]["completion_tokens"]
    while await reader.readline() != b"0\r\n":
        pass
    await reader.readline()
    return Timing(sent=sent, first=first, done=done, tokens=tokens)


async def _load(port: int, prompts: Sequence[list[int]], new: int, concurrency: int) -> list[Timing]:
    waiting = list(reversed(prompts))
    timings: list[Timing] = []
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(concurrency)]
    start = time.perf_counter()

    async def work(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        while waiting:
            timings.append(await _ask(streams, waiting.pop(), new, start))

    await asyncio.gather(*(work(streams) for streams in connections))
    for _, writer in connections:
        writer.close()
    return timings


def run_load(port: int, prompts: Sequence[list[int]], new: int, *, concurrency: int) -> list[Timing]:
    """Ask for all `prompts`, `concurrency` at a time, `new` tokens each at most."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(port, prompts, new, concurrency))
