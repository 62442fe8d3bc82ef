# SPDX-License-Identifier: Apache-2.0
"""Where models come from: a server that wants a token, and files that somebody put on the node."""

import copy
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.manifests import FOLDER, model_dir
from e2e.lib.observe import condition
from e2e.rig import Rig
from e2e.suite.conftest import FILES, STORE, Make
from e2e.suite.faults import model_requests, put_token, wait_answer

SECRET = "model-token"
TOKEN = "an-e2e-token-of-no-worth"


@pytest.fixture
def guarded(rig: Rig) -> Iterator[None]:
    """The model server wants the token for v1."""
    rig.set_model_faults({f"/{FOLDER}/v1-int4": {"token": TOKEN}})
    yield
    rig.set_model_faults({})


def wait_new_pod(deployment: Deployment, node: str) -> None:
    """Delete the node's pod and wait until another one is ready."""
    old = deployment.pod_on(node)["metadata"]
    deployment.cluster.delete("pod", old["name"], namespace=deployment.namespace)

    def replaced() -> bool:
        try:
            new = deployment.pod_on(node)
        except LookupError:
            return False
        states = new["status"].get("containerStatuses", [])
        return bool(new["metadata"]["uid"] != old["uid"] and states and all(c["ready"] for c in states))

    deployment.wait("a new pod being ready", replaced, timeout_seconds=180)


def test_a_token_from_a_secret_opens_the_source_and_is_shown_nowhere(
    make_deployment: Make, cluster: Cluster, guarded: None
) -> None:
    node = cluster.edge_nodes[0]
    orders = make_deployment("guarded", nodes={"matchLabels": {"kubernetes.io/hostname": node}})
    body: dict[str, Any] = copy.deepcopy(orders.manifest("v1"))
    body["spec"]["variants"][0]["source"]["http"]["secretRef"] = {"name": SECRET}
    put_token(orders, SECRET, "wrong")
    cluster.apply(body)
    refused = orders.wait_status(
        "being denied with the wrong token",
        lambda found: condition(found, "ModelResolved").get("reason") == "AccessDenied",
        timeout_seconds=120,
    )
    assert "wrong" not in condition(refused, "ModelResolved")["message"]

    put_token(orders, SECRET, TOKEN)
    orders.annotate(retry="token-put-right")
    found = orders.wait_installed()
    shown = json.dumps(found) + orders.describe() + json.dumps(cluster.events(orders.namespace, orders.name))
    owned = cluster.find_all(
        "daemonsets,configmaps,controllerrevisions.apps,pods", namespace=orders.namespace
    )
    assert TOKEN not in shown + json.dumps(owned)

    # Rotated or gone, the Secret matters to the next download only (scenario 30).
    cluster.delete("secret", SECRET, namespace=orders.namespace)
    wait_new_pod(orders, node)


def test_files_on_the_node_are_served_with_no_server_at_all(
    make_deployment: Make, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    node = cluster.edge_nodes[1]
    folder = f"{FILES}/v1-int4"
    there = rig.node_path(node, folder)
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(model_dir("v1"), there)
    listed = json.loads((there / "slm-manifest.json").read_text())["files"]
    store = f"{STORE}/e2e-07-sources-files"
    orders = make_deployment(
        "local",
        nodes={"matchLabels": {"kubernetes.io/hostname": node}},
        cache={"hostPath": store},
    )
    body: dict[str, Any] = copy.deepcopy(orders.manifest("v1"))
    body["spec"]["variants"][0]["source"] = {"file": {"path": folder, "files": listed}}
    begin = time.time()
    try:
        cluster.apply(body)
        orders.wait_installed()
        wait_answer(orders, clients[node])
        assert model_requests(rig, since=begin, path=f"/{FOLDER}/") == []

        # The store has its own verified copy: what becomes of the folder now changes nothing.
        (there / "tokenizer.json").write_text("{}")
        wait_new_pod(orders, node)
        wait_answer(orders, clients[node])
    finally:
        shutil.rmtree(there, ignore_errors=True)
        shutil.rmtree(rig.node_path(node, store), ignore_errors=True)
