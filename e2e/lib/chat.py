# SPDX-License-Identifier: Apache-2.0
"""Talks to a model from a node: through the Service, in the node's own network."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.lib.session import Body, Cluster, WaitError
from e2e.rig import RigError

_PROGRAM: Final = Path(__file__).with_name("node_client.py")
CLIENT_NAMESPACE: Final = "slmops-e2e-clients"
CHAT_PATH: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer; `status` is 0 when no HTTP answer came, and then `error` says why."""

    status: int
    text: str
    chunks: int
    """Pieces of a streamed answer that carried text."""
    first_seconds: float | None
    seconds: float
    body: Any
    """The JSON answer; of a stream its last event."""
    error: str

    @property
    def ok(self) -> bool:
        """A whole answer with status 200."""
        return self.status == 200 and not self.error


class NodeClient:
    """Requests that start on one node.

    On the rig the client program runs in the node's network namespace; on another cluster in a pod on
    the node, made from the runtime image.
    """

    def __init__(self, cluster: Cluster, node: str, *, image: str = "") -> None:
        self.cluster = cluster
        self.node = node
        if not cluster.is_rig:
            self._ensure_pod(image)

    def command(self, order: Body) -> list[str]:
        """The command line that runs the client program on the node."""
        if self.cluster.is_rig:
            network = f"--net={self.cluster.rig.node_netns(self.node)}"
            return ["nsenter", network, sys.executable, "-I", str(_PROGRAM), json.dumps(order)]
        kubectl = self.cluster.kubectl
        where = ["exec", "-i", "-n", CLIENT_NAMESPACE, f"client-{self.node}", "--"]
        program = _PROGRAM.read_text()
        return [
            str(kubectl.binary), "--kubeconfig", str(kubectl.kubeconfig), *where,
            "python3", "-c", program, json.dumps(order),
        ]  # fmt: skip

    def request(self, url: str, body: Body | None, *, timeout_seconds: float = 30) -> Answer:
        """POST `body`, or GET without one. An answer of any status is returned, no answer as well."""
        order = {"do": "chat", "url": url, "body": body, "timeout_seconds": timeout_seconds}
        done = subprocess.run(
            self.command(order), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=timeout_seconds + 30,
        )  # fmt: skip
        if done.returncode:
            raise RigError(f"the client on {self.node} failed: {done.stderr[-1000:]}")
        return Answer(**json.loads(done.stdout))

    def chat(
        self, service: str, messages: list[Body], *, timeout_seconds: float = 60, **options: Any
    ) -> Answer:
        """A streamed chat answer of the Service at `service` (http://address:port)."""
        body = {"model": "orders", "messages": messages, "stream": True, "temperature": 0} | options
        return self.request(service + CHAT_PATH, body, timeout_seconds=timeout_seconds)

    def ask(self, service: str, text: str, **options: Any) -> Answer:
        """A streamed chat answer to one user message."""
        return self.chat(service, [{"role": "user", "content": text}], **options)

    def _ensure_pod(self, image: str) -> None:
        if not image:
            raise RigError("on a cluster that is not the rig a client needs an image with python3")
        self.cluster.make_namespace(CLIENT_NAMESPACE)
        name = f"client-{self.node}"
        if self.cluster.get("pod", name, namespace=CLIENT_NAMESPACE) is None:
            self.cluster.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": CLIENT_NAMESPACE},
                    "spec": {
                        "nodeName": self.node,
                        "automountServiceAccountToken": False,
                        "terminationGracePeriodSeconds": 0,
                        "containers": [
                            {
                                "name": "client",
                                "image": image,
                                "command": ["python3", "-c", "import signal; signal.pause()"],
                            }
                        ],
                    },
                }
            )

        def running() -> bool:
            pod = self.cluster.get("pod", name, namespace=CLIENT_NAMESPACE)
            return pod is not None and pod["status"].get("phase") == "Running"

        self.cluster.wait_for(f"pod {name} running", running, timeout_seconds=240)


def is_expected(case: Body, text: str) -> bool:
    """Whether an answer to a golden case is right."""
    if case.get("match") == "exact":
        return bool(text == case["expected"])
    try:
        return bool(json.loads(text) == json.loads(case["expected"]))
    except ValueError:
        return False


def need_ok(answer: Answer, what: str) -> Answer:
    """The answer, if it is one; raises WaitError otherwise."""
    if not answer.ok:
        raise WaitError(f"{what}: status {answer.status}, {answer.error or answer.body}")
    return answer
