# SPDX-License-Identifier: Apache-2.0
"""Steady requests through every node's Service while something else happens."""

import json
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import IO, Any

from e2e.lib.chat import CHAT_PATH, NodeClient
from e2e.lib.manifests import golden_cases


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request that has ended; `at` is when, in seconds since the epoch; `case` indexes the bodies."""

    node: str
    at: float
    status: int
    seconds: float
    error: str
    case: int
    text: str

    @property
    def ok(self) -> bool:
        """A whole answer with status 200."""
        return self.status == 200 and not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficReport:
    """What became of the requests between `begin` and `end` (seconds since the epoch)."""

    sent: tuple[Sent, ...]
    begin: float
    end: float

    @property
    def ok(self) -> int:
        """Number of good answers."""
        return sum(1 for one in self.sent if one.ok)

    @property
    def failures(self) -> tuple[Sent, ...]:
        """Requests without a good answer."""
        return tuple(one for one in self.sent if not one.ok)

    def of(self, *nodes: str) -> "TrafficReport":
        """The same for some nodes only."""
        return TrafficReport(
            sent=tuple(one for one in self.sent if one.node in nodes), begin=self.begin, end=self.end
        )

    def longest_gap_seconds(self, node: str) -> float:
        """Longest time on a node without a good answer, from begin to end."""
        times = sorted(one.at for one in self.sent if one.ok and one.node == node)
        marks = [self.begin, *times, self.end]
        return max(after - before for before, after in pairwise(marks))

    def latency_seconds(self, quantile: float) -> float:
        """A quantile of the good answers' durations; 0 without any."""
        times = sorted(one.seconds for one in self.sent if one.ok)
        return times[min(len(times) - 1, int(quantile * len(times)))] if times else 0.0

    def describe(self) -> str:
        """One line for each node, and the first failures."""
        lines = []
        for node in sorted({one.node for one in self.sent}):
            part = self.of(node)
            lines.append(
                f"{node}: {part.ok} ok, {len(part.failures)} failed, longest gap "
                f"{part.longest_gap_seconds(node):.2f} s, p95 {part.latency_seconds(0.95):.3f} s"
            )
        lines += [f"  {one}" for one in self.failures[:10]]
        return "\n".join(lines)


class Traffic:
    """Background requests from each client's node to `service`; a context manager, or start and stop.

    `interval_seconds` is the pace on each node. A server that is slow gets no more than `workers`
    requests at a time.
    """

    def __init__(
        self,
        clients: Iterable[NodeClient],
        service: str,
        *,
        interval_seconds: float = 0.5,
        timeout_seconds: float = 5.0,
        workers: int = 2,
        bodies: Sequence[dict[str, Any]] | None = None,
        path: str = CHAT_PATH,
    ) -> None:
        self.clients = tuple(clients)
        chosen = bodies if bodies is not None else golden_bodies()
        self._order = {
            "do": "traffic",
            "url": service + path,
            "bodies": list(chosen),
            "interval_seconds": interval_seconds,
            "timeout_seconds": timeout_seconds,
            "workers": workers,
        }
        self._sent: list[Sent] = []
        self._lock = threading.Lock()
        self._processes: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self._begin = 0.0

    def start(self) -> "Traffic":
        """Start one client program per node."""
        self._begin = time.time()
        for client in self.clients:
            process = subprocess.Popen(
                client.command(self._order), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            assert process.stdout is not None
            reader = threading.Thread(target=self._read, args=(client.node, process.stdout), daemon=True)
            reader.start()
            self._processes.append((process, reader))
        return self

    def _read(self, node: str, lines: IO[str]) -> None:
        for line in lines:
            one = Sent(node=node, **json.loads(line))
            with self._lock:
                self._sent.append(one)

    def report(self) -> TrafficReport:
        """What has been sent so far."""
        with self._lock:
            return TrafficReport(sent=tuple(self._sent), begin=self._begin, end=time.time())

    def stop(self) -> TrafficReport:
        """End the client programs and report; also to be called twice."""
        end = time.time()
        for process, reader in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(self._order["timeout_seconds"] + 5)  # type: ignore[operator]
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join(5)
        self._processes.clear()
        with self._lock:
            return TrafficReport(sent=tuple(self._sent), begin=self._begin, end=end)

    def __enter__(self) -> "Traffic":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def golden_bodies(version: str = "v1", *, count: int = 20, max_tokens: int = 100) -> list[dict[str, Any]]:
    """Chat requests made of the model's golden set, whose right answers are known."""
    return [
        {"model": "orders", "messages": case["messages"], "temperature": 0, "max_tokens": max_tokens}
        for case in golden_cases(version)[:count]
    ]
