# SPDX-License-Identifier: Apache-2.0
"""A customer at a site: speaks, knows what the answer should have been, and says so by `/v1/feedback`.

Also of right answers: what is learnt from wrong ones alone forgets what was right.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal

from e2e.lib.session import Body
from e2e.rig import Rig, RigError

Case = tuple[str, str]
"""What is said, and the answer that is right."""
Judging = Literal["corrects", "says nothing"]
BATCH: Final = 100
"""Cases of one process: they are its argument, which may not be longer than 128 KiB."""
PAUSE_SECONDS: Final = 0.2
_PROGRAM: Final = """
import http.client, json, sys, time, urllib.parse
order = json.loads(sys.argv[1])
parts = urllib.parse.urlsplit(order["url"])

def post(path, body):
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=20)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.strip() else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, {"error": str(error)}
    finally:
        connection.close()

def is_right(text, expected):
    try:
        return json.loads(text) == json.loads(expected)
    except ValueError:
        return False

for said, expected in order["cases"]:
    asked = {"model": order["model"], "temperature": 0, "messages": [{"role": "user", "content": said}]}
    status, body = post("/v1/chat/completions", asked)
    text = body["choices"][0]["message"]["content"] if status == 200 else ""
    right, judged = is_right(text, expected), 0
    if status == 200 and order["judges"]:
        vote = {"id": body["id"], "rating": "up" if right else "down", "correction": expected}
        judged, body = post("/v1/feedback", vote)
    told = {"status": status, "text": text, "right": right, "judged": judged, "body": body}
    print(json.dumps(told), flush=True)
    time.sleep(order["pause_seconds"])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One answer; statuses are 0 where no HTTP answer came, `judged` also where none was asked for."""

    status: int
    text: str
    right: bool
    judged: int
    body: Body
    """The last JSON answer, for messages."""


def share_right(heard: Sequence[Heard]) -> float:
    """Share of right answers, 0..1."""
    return sum(one.right for one in heard) / len(heard)


class Customer:
    """Speaks from one of the rig's nodes to the Service at `url` (`http://address:port`)."""

    def __init__(self, rig: Rig, node: str, url: str) -> None:
        self._rig, self._node, self._url = rig, node, url

    def speak(
        self, cases: Sequence[Case], *, judging: Judging = "says nothing", model: str = "orders"
    ) -> list[Heard]:
        """Say all of it, one after the other."""
        found: list[Heard] = []
        for part in _parts(cases):
            done = subprocess.run(
                self.command(part, judging=judging, model=model), check=False, capture_output=True,
                text=True, stdin=subprocess.DEVNULL, timeout=25.0 * len(part),
            )  # fmt: skip
            if done.returncode:
                raise RigError(f"the customer on {self._node} failed: {done.stderr[-1000:]}")
            found += [Heard(**json.loads(line)) for line in done.stdout.splitlines()]
        return found

    def command(
        self, cases: Sequence[Case], *, judging: Judging, model: str = "orders", pause_seconds: float = 0
    ) -> list[str]:
        """The command line of a process that says all of it."""
        order = {
            "url": self._url, "model": model, "cases": list(cases), "judges": judging == "corrects",
            "pause_seconds": pause_seconds,
        }  # fmt: skip
        network = f"--net={self._rig.node_netns(self._node)}"
        return ["nsenter", network, sys.executable, "-I", "-c", _PROGRAM, json.dumps(order)]


class Talk:
    """A customer who goes on speaking and correcting while something else happens; a context manager."""

    def __init__(self, customer: Customer, cases: Sequence[Case]) -> None:
        self._customer, self._cases = customer, cases
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for part in _without_end(self._cases):
            command = self._customer.command(part, judging="corrects", pause_seconds=PAUSE_SECONDS)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while process.poll() is None:
                if self._end.wait(PAUSE_SECONDS):
                    process.terminate()
                    process.wait()
                    return

    def __enter__(self) -> "Talk":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(30)


def _parts(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    return (cases[at : at + BATCH] for at in range(0, len(cases), BATCH))


def _without_end(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    while True:
        yield from _parts(cases)
