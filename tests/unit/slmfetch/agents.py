# SPDX-License-Identifier: Apache-2.0
"""Store agents on real sockets: in this process, or as processes of their own."""

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmfetch.agent import Agent
from slmfetch.agent_http import Limits
from slmfetch.store import Store
from slmwire.paths import AGENT_BLOBS
from tests.unit.slmfetch.kit import environment


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True, kw_only=True)
class RunningAgent:
    agent: Agent
    store: Store
    address: str
    port: int
    thread: threading.Thread = field(repr=False)

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        return ask(self.address, self.port, path, method=method, headers=headers)

    def blob(self, sha256: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        return self.get(f"{AGENT_BLOBS}{sha256}", method=method, headers=headers)


def ask(
    address: str, port: int, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection(address, port, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        body = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body)
    finally:
        connection.close()


@contextlib.contextmanager
def serve_agent(
    store: Store, *, address: str = "127.0.0.1", port: int = 0, limits: Limits | None = None
) -> Iterator[RunningAgent]:
    """Run an agent in a thread until the block ends."""
    agent = Agent(store.root, node="n1", address=address, port=port, limits=limits)
    thread = threading.Thread(target=agent.server.serve, daemon=True)
    thread.start()
    try:
        yield RunningAgent(agent=agent, store=store, address=address, port=agent.server.port, thread=thread)
    finally:
        agent.server.close()
        thread.join(5)


def start_agent(store: Store, folder: Path, *, address: str, port: int) -> subprocess.Popen[str]:
    """Start the real program and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "slmfetch", "agent", "--address", address, "--port", str(port)],
        env=environment(store, folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            if ask(address, port, "/healthz").status == 200:
                return process
        except OSError:
            pass
        assert process.poll() is None, "the agent ended"
        assert time.monotonic() < deadline, "the agent does not answer"
        time.sleep(0.02)
