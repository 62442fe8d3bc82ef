# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm` as a process against a real API server: its paths, patches, watches and errors.

The operator's answers are written by the test, so that each outcome can be had; what the operator makes of an
annotation is tested with the operator.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from e2e.rig import ControlPlane
from slmops.api.crd import build_crd
from slmwire.labels import DEPLOYMENT, REVISION
from slmwire.paths import AGENT_STORE
from tests.apiserver.harness import Cluster
from tests.apiserver.namespaces import create_namespaces
from tests.apiserver.specs import deployment

STABLE, UPDATE = "c0ffee0123", "abcdef0123"
PATIENCE_SECONDS = 180
AT = "2026-01-01T00:00:00Z"
Body = dict[str, Any]


class Shop:
    """A namespace with one SLMDeployment in the middle of a rollout, and the program."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self._nodes: list[str] = []
        create_namespaces(plane, namespace)
        nowhere = {"nodeSelector": {"matchLabels": {"test": namespace}}}
        plane.kubectl.apply(deployment(namespace=namespace, placement=nowhere))
        waves = [{"name": "canary", "nodes": 1, "verdict": "Pending"}, {"name": "rest", "verdict": ""}]
        at = {"stepStartedAt": AT, "waveStartedAt": AT, "startedAt": AT}
        rollout = {"revision": UPDATE, "step": "Soaking", "wave": 0, "waves": waves} | at
        self.write_status(
            {"stableRevision": STABLE, "updateRevision": UPDATE, "observedGeneration": 1, "rollout": rollout}
        )
        for number, revision in enumerate((STABLE, UPDATE), 1):
            self.store_revision(number, revision)

    def make_node(self, name: str) -> str:
        """A node that nobody runs, for this test: pods of one that does not exist are deleted in a minute."""
        self.plane.kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        self._nodes.append(name)
        return name

    def remove(self) -> None:
        """Take everything away without waiting for it."""
        self.plane.kubectl("delete", "namespace", self.namespace, "--wait=false")
        if self._nodes:
            self.plane.kubectl("delete", "node", *self._nodes)

    def read(self) -> Body:
        """The SLMDeployment."""
        body: Body = self.plane.kubectl.get("slmd", "orders", "-n", self.namespace)
        return body

    def annotations(self) -> dict[str, str]:
        """Its annotations of ours."""
        found = self.read()["metadata"].get("annotations") or {}
        return {key: value for key, value in found.items() if key.startswith("slmops.dev/")}

    def write_status(self, status: Body) -> None:
        """What the operator would write."""
        self.plane.kubectl(
            "patch", "slmd", "orders", "-n", self.namespace, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip

    def store_revision(self, number: int, revision: str) -> None:
        """A ControllerRevision of it."""
        owner = {
            "apiVersion": "slmops.dev/v1alpha1",
            "kind": "SLMDeployment",
            "name": "orders",
            "uid": self.read()["metadata"]["uid"],
        }
        self.plane.kubectl.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "ControllerRevision",
                "metadata": {
                    "name": f"orders-{revision}",
                    "namespace": self.namespace,
                    "labels": {DEPLOYMENT: "orders", REVISION: revision},
                    "ownerReferences": [owner],
                },
                "revision": number,
                "data": {"schema": 1, "modelVersion": f"v{number}", "variants": []},
            }
        )

    def start(self, *argv: str) -> "subprocess.Popen[str]":
        """The program, running; its words come through pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "slmcli", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"KUBECONFIG": str(self.plane.kubeconfig), "PYTHONPATH": "operator:."},
        )

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        process = self.start("-n", self.namespace, *argv)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out, err

    def answer(self, kind: str, outcome: str, message: str) -> str:
        """Wait for the annotation, and write the operator's answer to it; the annotation's value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while (token := self.annotations().get(f"slmops.dev/{kind}")) is None:
            assert time.monotonic() < end, f"no annotation {kind}"
        entry = {"operation": kind, "token": token, "outcome": outcome, "message": message, "at": AT}
        self.write_status({"operations": [entry]})
        return token


@pytest.fixture
def shop(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Shop]:
    namespace = request.node.name.removeprefix("test_").replace("_", "-")[:50]
    shop = Shop(control_plane, namespace)
    yield shop
    shop.remove()


class StoreAgent(BaseHTTPRequestHandler):
    """Answers as a store agent."""

    def do_GET(self) -> None:
        found = self.path == AGENT_STORE
        text = json.dumps({"bytes": 5 << 20, "pins": []}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def store_agent() -> Iterator[tuple[str, int]]:
    """Address and port of one. The API server sends nobody to a loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, but tells the address that would be used
        address = str(probe.getsockname()[0])
    server = ThreadingHTTPServer((address, 0), StoreAgent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield address, server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_stores_are_read_through_the_api_server(shop: Shop, store_agent: tuple[str, int]) -> None:
    address, port = store_agent
    account = {"name": "default", "namespace": shop.namespace}
    shop.plane.kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    names = shop.make_node(f"{shop.namespace}-far"), shop.make_node(f"{shop.namespace}-lost")
    for node, found in zip(names, ({"podIP": address, "podIPs": [{"ip": address}]}, {}), strict=True):
        pod = {
            "metadata": {
                "name": f"agent-{node}",
                "namespace": shop.namespace,
                "labels": {"app.kubernetes.io/component": "store-agent"},
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "agent", "image": "x", "ports": [{"containerPort": port}]}],
            },
        }
        shop.plane.kubectl.apply({"apiVersion": "v1", "kind": "Pod"} | pod)
        status = {"conditions": [{"type": "Ready", "status": "True"}]} | found
        shop.plane.kubectl(
            "patch", "pod", f"agent-{node}", "-n", shop.namespace, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip
    code, out, err = shop.run("cache", "--agents", shop.namespace)
    assert (code, err) == (0, "")
    far, lost = (line.split() for line in out.splitlines()[1:])
    assert far[:2] == [names[0], "5MiB"]
    assert lost[0] == names[1] and "NoAnswer:" in lost


def test_promote_waits_for_the_operators_answer(shop: Shop) -> None:
    process = shop.start("promote", "orders", "-n", shop.namespace, "--timeout", "120s")
    token = shop.answer("promote", "Done", "wave canary is approved")
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (0, "")
    assert out == "slmdeployment/orders: promote done: wave canary is approved\n"
    assert token.startswith(f"{UPDATE}/canary@")


def test_abort_that_is_refused_ends_with_one(shop: Shop) -> None:
    process = shop.start("abort", "orders", "-n", shop.namespace, "--timeout", "120s")
    token = shop.answer("abort", "Refused", "it is being rolled back already")
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "refused: it is being rolled back already" in out
    assert token.startswith(f"{UPDATE}@")


def test_pause_and_resume_set_and_take_the_annotation(shop: Shop) -> None:
    assert shop.run("pause", "orders", "--timeout", "0")[0] == 0
    assert shop.annotations() == {"slmops.dev/paused": "true"}
    assert shop.run("resume", "orders", "--timeout", "0")[0] == 0
    assert shop.annotations() == {}


def test_silence_is_four(shop: Shop) -> None:
    code, out, err = shop.run("skip", "orders", "--timeout", "1s")
    assert (code, out) == (4, "")
    assert "has not answered within 1s" in err


def test_undo_finds_the_history(shop: Shop) -> None:
    code, out, err = shop.run("undo", "orders", "--to", "1", "--timeout", "0")
    assert code == 0, err
    assert shop.annotations()["slmops.dev/undo"].startswith(f"{STABLE}@")
    assert f"revision {STABLE} (number 1, v1)" in out


def test_everything_can_be_looked_at(shop: Shop) -> None:
    for argv, word in [
        (["status", "orders"], "Soaking in wave canary (1 of 2)"),
        (["explain", "orders"], "kubectl slm abort orders"),
        (["history", "orders"], UPDATE),
        (["diff", "orders"], "+modelVersion: v2"),
        (["list", "-A"], "orders"),
    ]:
        code, out, err = shop.run(*argv)
        assert code == 0, err
        assert word in out
    code, out, err = shop.run("nodes", "orders", "-o", "json")
    assert code == 0, err
    assert json.loads(out)["items"] == []


def test_a_watch_sees_changes_and_the_end(shop: Shop) -> None:
    process = shop.start("status", "orders", "-n", shop.namespace, "--watch")
    assert process.stdout is not None
    assert "Soaking" in process.stdout.readline()
    shop.write_status({"rollout": {"step": "Analysing"}})
    assert "Analysing" in process.stdout.readline()
    shop.plane.kubectl("delete", "slmd", "orders", "-n", shop.namespace)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1].endswith("deleted")


def test_what_is_not_there_is_three(shop: Shop) -> None:
    code, _, err = shop.run("status", "nobody")
    assert code == 3
    assert err == (
        'error: slmdeployments.slmops.dev "nobody" not found; kubectl slm list -A shows what there is, -n '
        "chooses the namespace\n"
    )


def test_what_is_forbidden_is_three(shop: Shop) -> None:
    plane = shop.plane
    plane.kubectl("create", "serviceaccount", "eve", "-n", shop.namespace)
    token = plane.kubectl("create", "token", "eve", "-n", shop.namespace).strip()
    config = plane.directory / "eve.kubeconfig"
    config.write_text(plane.kubeconfig.read_text())
    # A token in the place of the certificate: what this account may do is nothing.
    plane.kubectl(
        "config", "set-credentials", "eve", f"--token={token}", f"--kubeconfig={config}",
    )  # fmt: skip
    plane.kubectl("config", "set-context", "--current", "--user=eve", f"--kubeconfig={config}")
    code, _, err = shop.run("abort", "orders", "--kubeconfig", str(config))
    assert code == 3
    assert 'eve" cannot get resource "slmdeployments"' in err
    assert err.count("\n") == 1


def test_a_cluster_without_slmops_says_so(shop: Shop) -> None:
    plane = shop.plane
    crd = build_crd()
    served = [version | {"served": False} for version in crd["spec"]["versions"]]
    plane.kubectl.apply(crd | {"spec": crd["spec"] | {"versions": served}})
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            code, _, err = shop.run("list")
            if code == 3 or time.monotonic() > end:
                break
        assert code == 3
        assert "helm install slmops" in err
    finally:
        plane.kubectl.apply(crd)
        end = time.monotonic() + PATIENCE_SECONDS
        while shop.run("list")[0] != 0:
            assert time.monotonic() < end


async def test_a_real_rollout_is_shown(cluster: Cluster, kwok: ControlPlane) -> None:
    environment = os.environ | {"KUBECONFIG": str(kwok.kubeconfig), "PYTHONPATH": "operator:."}

    async def run(*argv: str) -> Body:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "slmcli", "-n", cluster.namespace, *argv, "-o", "json",
            stdout=asyncio.subprocess.PIPE, env=environment,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        document: Body = json.loads(out)
        return document

    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.apply("v2")
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
        nodes = await run("nodes", "orders")
        history = await run("history", "orders")
        status = await run("status", "orders")
        explained = await run("explain", "orders")
    assert [(node["state"], node["serving"]) for node in nodes["items"]] == [("stable", [second])] * 4
    assert [(r["revision"], r["states"]) for r in history["items"]] == [(first, []), (second, ["stable"])]
    digests = [revision["variants"][0]["digest"] for revision in history["items"]]
    assert digests[1] == status["variants"][0]["digest"] != digests[0]
    assert "Promoted" in [event["reason"] for event in status["events"]]
    assert explained["waitsFor"] == []
