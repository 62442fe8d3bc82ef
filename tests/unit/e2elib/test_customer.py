# SPDX-License-Identifier: Apache-2.0
"""The customer of the suite: what is asked, judged and told, with the program as it runs on a node."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest

from e2e.lib.customer import BATCH, Case, Customer, Heard, Judging, share_right
from e2e.rig import Rig

RIG = cast(Rig, SimpleNamespace(node_netns=lambda node: f"/run/netns/{node}"))
CASES: list[Case] = [("one short", '{"table": 1}'), ("one tally", '{"table":2}')]


class Shop(ThreadingHTTPServer):
    """Answers everything with table 1, and keeps what was judged."""

    judged: list[dict[str, Any]]
    asked: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        shop = cast(Shop, self.server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/feedback":
            shop.judged.append(body)
            answer: dict[str, Any] = {"kept": True}
        else:
            shop.asked.append(body)
            message = {"role": "assistant", "content": '{"table":1}'}
            answer = {"id": f"chat-{len(shop.asked)}", "choices": [{"message": message}]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def shop() -> Iterator[Shop]:
    server = Shop(("127.0.0.1", 0), Handler)
    server.judged, server.asked = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def hear(url: str, judging: Judging, model: str = "orders") -> list[Heard]:
    """The program without the node's network."""
    command = Customer(RIG, "edge-2", url).command(CASES, judging=judging, model=model)
    assert command[:2] == ["nsenter", "--net=/run/netns/edge-2"]
    done = subprocess.run(command[2:], check=True, capture_output=True, text=True)
    return [Heard(**json.loads(line)) for line in done.stdout.splitlines()]


def test_right_and_wrong_answers_are_told_with_what_is_right(shop: Shop) -> None:
    heard = hear(shop.url, "corrects")
    assert [(one.right, one.judged) for one in heard] == [(True, 200), (False, 200)]
    assert shop.judged == [
        {"id": "chat-1", "rating": "up", "correction": CASES[0][1]},
        {"id": "chat-2", "rating": "down", "correction": CASES[1][1]},
    ]
    assert share_right(heard) == 0.5


def test_who_says_nothing_only_asks(shop: Shop) -> None:
    heard = hear(shop.url, "says nothing", model="orders:base")
    assert [one.judged for one in heard] == [0, 0] and shop.judged == []
    assert {asked["model"] for asked in shop.asked} == {"orders:base"}


def test_a_server_that_is_away_is_no_answer() -> None:
    heard = hear("http://127.0.0.1:9", "corrects")
    assert [(one.status, one.right, one.judged) for one in heard] == [(0, False, 0)] * 2


def test_what_one_process_is_told_fits_one_argument() -> None:
    longest = [("x" * 200, "y" * 400)] * BATCH
    assert len(Customer(RIG, "edge-2", "http://h:80").command(longest, judging="corrects")[-1]) < 128 << 10
