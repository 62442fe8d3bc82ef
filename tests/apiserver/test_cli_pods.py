# SPDX-License-Identifier: Apache-2.0
"""`kubectl slm` on the pods of a deployment, through a real API server.

A real inference server stands behind a pod that only the API knows, and the account may do no more than
docs/cli.md says.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.rig import RigError
from e2e.rig.pki import Authority
from e2e.rig.progress import wait_until
from slmwire import labels
from tests.apiserver.test_cli import PATIENCE_SECONDS, STABLE, Shop, shop
from tests.unit.slmserve.process import ORDERS, ServerProcess

__all__ = ["shop"]
KEY = "sk-edge-1"


@contextmanager
def _serve(directory: Path, *flags: str, scheme: str = "http") -> Iterator[ServerProcess]:
    """One that wants a key."""
    (directory / "keys").write_text(f"{KEY}\n")
    keys = ("--api-keys-file", str(directory / "keys"))
    own = ("--model", "orders", "--evaluate", "false", "--host", "0.0.0.0")
    with ServerProcess(ORDERS / "v1-int4", directory, *own, *keys, *flags) as process:
        process.scheme = scheme
        process.wait_ready(PATIENCE_SECONDS)
        yield process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with _serve(tmp_path) as process:
        yield process


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[ServerProcess]:
    """Its certificate is of an authority that nobody knows, and names the Service alone."""
    authority = Authority(tmp_path / "pki")
    authority.create()
    pair = authority.issue("orders", common_name="orders", dns_names=["orders.shop.svc"])
    flags = ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))
    with _serve(tmp_path, *flags, scheme="https") as process:
        yield process


def _address() -> str:
    """One of this machine that is no loopback address: the API server sends nobody there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def _node(shop: Shop) -> str:
    """Of this test alone."""
    return f"{shop.namespace}-far"


def _make_pod(shop: Shop, server: ServerProcess) -> None:
    port = {"name": server.scheme, "containerPort": server.port}
    account = {"name": "default", "namespace": shop.namespace}
    shop.plane.kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    tags = {labels.DEPLOYMENT: "orders", labels.REVISION: STABLE, labels.VARIANT: "int4"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "orders-far",
            "namespace": shop.namespace,
            "labels": tags | {labels.ROLE: "serve"},
        },
        "spec": {
            "nodeName": shop.make_node(_node(shop)),
            "automountServiceAccountToken": False,
            "containers": [{"name": "server", "image": "x", "ports": [port]}],
        },
    }
    shop.plane.kubectl.apply(pod)
    address = _address()
    began = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": began,
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {
                "name": "server", "image": "x", "imageID": "", "ready": True, "restartCount": 0,
                "state": {"running": {"startedAt": began}},
            }
        ],
    }  # fmt: skip
    shop.plane.kubectl(
        "patch", "pod", "orders-far", "-n", shop.namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip


def _wait_until_allowed(shop: Shop, verb: str, *resource: str) -> None:
    """The API server's authorizer hears of a new role a moment after it was written."""
    account = f"--as=system:serviceaccount:{shop.namespace}:clerk"

    def allowed() -> bool:
        try:
            shop.plane.kubectl("auth", "can-i", verb, *resource, account, "-n", shop.namespace)
        except RigError:
            return False
        return True

    wait_until(
        f"the clerk's right to {verb} {' '.join(resource)}",
        allowed,
        timeout_seconds=PATIENCE_SECONDS,
        interval_seconds=0.1,
    )


def _log_in(shop: Shop, folder: Path) -> Path:
    """A kubeconfig of an account that may look, by a bearer token."""
    kubectl, namespace = shop.plane.kubectl, shop.namespace
    kubectl("create", "serviceaccount", "clerk", "-n", namespace)
    account = f"--serviceaccount={namespace}:clerk"
    # What the role `view` and the chart's have, which is what docs/cli.md asks for.
    kinds = (
        "slmdeployments.slmops.dev,pods,services,controllerrevisions.apps,networkpolicies.networking.k8s.io"
    )
    kubectl("create", "role", "look", "-n", namespace, "--verb=get,list", f"--resource={kinds}")
    kubectl("create", "rolebinding", "look", "-n", namespace, "--role=look", account)
    _wait_until_allowed(shop, "list", "networkpolicies.networking.k8s.io")
    token = kubectl("create", "token", "clerk", "-n", namespace).strip()
    body: dict[str, Any] = yaml.safe_load(shop.plane.kubeconfig.read_text())
    for user in body["users"]:
        user["user"] = {"token": token}
    path = folder / "clerk.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def _ask(shop: Shop, config: Path, *argv: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "slmcli", "-n", shop.namespace, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env=os.environ | {"KUBECONFIG": str(config), "PYTHONPATH": "operator:."},
    )
    return done.returncode, done.stdout, done.stderr


def test_pods_with_tls_are_reached_by_https(shop: Shop, secure: ServerProcess, tmp_path: Path) -> None:
    _make_pod(shop, secure)
    chat = ("chat", "orders", "-m", "one coffee please", "-o", "json")
    code, out, err = _ask(shop, shop.plane.kubeconfig, *chat, "--key-file", str(tmp_path / "keys"))
    assert (code, err) == (0, "")
    answer = json.loads(out)
    code, out, _ = _ask(shop, shop.plane.kubeconfig, "cost", "orders", "-o", "json")
    assert code == 0 and json.loads(out)["total"]["countedOutputTokens"] == answer["generatedTokens"]


def test_the_pods_are_reached_with_no_more_than_the_docs_ask_for(
    shop: Shop, server: ServerProcess, tmp_path: Path
) -> None:
    _make_pod(shop, server)
    config = _log_in(shop, tmp_path)

    def ask(*argv: str) -> tuple[int, str, str]:
        return _ask(shop, config, *argv)

    chat = ("chat", "orders", "--temperature", "0", "-m", "one coffee please", "-o", "json")
    key = ("--key-file", str(tmp_path / "keys"))
    code, _, err = ask(*chat)
    assert code == 3 and f"create of pods/proxy in namespace {shop.namespace}" in err, err
    code, _, err = ask("cost", "orders")
    assert code == 3 and "get of pods/proxy" in err, err

    kubectl, account = shop.plane.kubectl, f"--serviceaccount={shop.namespace}:clerk"
    kubectl("create", "role", "slm-chat", "-n", shop.namespace, "--verb=create", "--resource=pods/proxy")
    kubectl("create", "rolebinding", "slm-chat", "-n", shop.namespace, "--role=slm-chat", account)
    _wait_until_allowed(shop, "create", "pods", "--subresource=proxy")
    code, _, err = ask(*chat)
    assert code == 3 and "--key-file" in err, err
    code, out, err = ask(*chat, *key)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["answer"] and answer["node"] == _node(shop) and answer["generatedTokens"] > 1

    kubectl("create", "role", "slm-cost", "-n", shop.namespace, "--verb=get", "--resource=pods/proxy")
    kubectl("create", "rolebinding", "slm-cost", "-n", shop.namespace, "--role=slm-cost", account)
    code, out, err = ask("cost", "orders", "-o", "json")
    assert code == 0 and "nodes may not be listed" in err
    total = json.loads(out)["total"]
    assert total["countedOutputTokens"] == answer["generatedTokens"]
    assert total["countedInputTokens"] == answer["promptTokens"]

    code, out, err = ask("audit", "orders", "-o", "json", "--fail-on", "high")
    found = json.loads(out)
    reasons = {finding["reason"]: finding["subject"] for finding in found["findings"]}
    assert code == 1 and found["pods"][0]["node"] == _node(shop)
    assert "EgressOpen" in reasons and "TokenMounted" not in reasons
    assert reasons["NotObserved"] == "nodes"
