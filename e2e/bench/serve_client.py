# SPDX-License-Identifier: Apache-2.0
"""A light streaming client, and what its timings say.

The client shares the device's cores with the server, so it does no more than it must.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One answer: seconds since the load began, and tokens generated."""

    sent: float
    first: float
    done: float
    tokens: int


async def _ask(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: Mapping[str, Any], start: float
) -> Timing:
    reader, writer = streams
    data = json.dumps(request).encode()
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


async def _load(port: int, requests: Sequence[Mapping[str, Any]], concurrency: int) -> list[Timing]:
    waiting = list(reversed(requests))
    timings: list[Timing] = []
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(concurrency)]
    start = time.perf_counter()

    async def work(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        while waiting:
            timings.append(await _ask(streams, waiting.pop(), start))

    await asyncio.gather(*(work(streams) for streams in connections))
    for _, writer in connections:
        writer.close()
    return timings


def run_load(
    port: int,
    prompts: Sequence[list[int]],
    new: int,
    *,
    concurrency: int,
    extra: Mapping[str, Any] | None = None,
) -> list[Timing]:
    """Ask for all `prompts`, `concurrency` at a time, `new` tokens each at most."""
    base = {"model": "bench", "max_tokens": new, "stream": True, "stream_options": {"include_usage": True}}
    requests = [{**base, **(extra or {}), "prompt": prompt} for prompt in prompts]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(port, requests, concurrency))


def find_rate(timings: Sequence[Timing]) -> float:
    """Generated tokens per second of the whole load."""
    return sum(t.tokens for t in timings) / max(t.done for t in timings)


def find_quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    return float(np.quantile(np.array(values), share))
