# SPDX-License-Identifier: Apache-2.0
"""`cache`: what agents say of the stores, also when they say nothing, too much or nonsense."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slmcli.errors import ForbiddenError, UnreachableError
from slmcli.kube import connect
from slmcli.render.cache import render_stores, size_text
from slmcli.stores import StoreReport, read_agent, read_store
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    EVIL,
    STABLE,
    UPDATE,
    Body,
    build_body,
    build_node,
    build_status,
)
from tests.unit.slmcli.cli_server import ScriptedApi, serve, write_kubeconfig

GIB = 1 << 30


def build_agent(node: str, *, ready: bool = True, port: int | None = 8491) -> Body:
    """A store agent's pod."""
    ports = [{"containerPort": port}] if port else []
    return {
        "metadata": {"name": f"agent-{node}", "namespace": "slmops-system"},
        "spec": {"nodeName": node, "containers": [{"name": "agent", "ports": ports}]},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def build_store(**more: Any) -> Body:
    """An inventory."""
    return {
        "store": "/store",
        "bytes": 3 * GIB,
        "reclaimableBytes": GIB // 2,
        "freeBytes": 40 * GIB,
        "fileSystemBytes": 64 * GIB,
        "blobs": 4,
        "partials": [{"sha256": "0" * 64, "bytes": 300 << 20}],
        "trees": [],
        "pins": [
            {"namespace": "shop", "deployment": "orders", "revision": STABLE, "digest": "sha256:1",
             "complete": True, "bytes": GIB, "servedAt": 1.0, "inUse": True},
            {"namespace": "shop", "deployment": "orders", "revision": UPDATE, "digest": "sha256:2",
             "complete": False, "bytes": GIB, "servedAt": 0, "inUse": False},
            {"namespace": "lab", "deployment": "vision", "revision": "0123456789", "digest": "sha256:3",
             "complete": True, "bytes": GIB, "servedAt": 0, "inUse": False},
        ],
        "quarantined": [],
        "problems": [],
    } | more  # fmt: skip


PROGRESS = {
    "namespace": "shop",
    "deployment": "orders",
    "revision": UPDATE,
    "file": "model.onnx",
    "bytes": 300 << 20,
    "total": GIB,
    "bytesPerSecond": 2 << 20,
    "secondsLeft": 362,
    "from": "peers",
}


def _cluster() -> ScriptedCluster:
    cluster = ScriptedCluster()
    cluster.put(build_body(build_status()))
    cluster.fleet = [
        build_node("a", {STABLE: "int4"}, site="wien"),
        build_node("b", {STABLE: "int4"}, site="wien"),
        build_node("c", {STABLE: "int4"}, site="berlin"),
        build_node("elsewhere", edge="false"),
    ]
    cluster.agents = [build_agent("a"), build_agent("b", ready=False), build_agent("elsewhere")]
    cluster.stores = {
        "agent-a": build_store(progress=[PROGRESS]),
        "agent-b": UnreachableError("must not be asked"),
        "agent-elsewhere": build_store(quarantined=["x"], partials=[]),
    }
    return cluster


def test_every_node_that_has_an_agent(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "cache", capsys=capsys)
    header, a, b, elsewhere = ran.out.splitlines()
    assert header.split() == ["NODE", "HELD", "FREE", "RECLAIMABLE", "PINNED", "FETCHING", "PROBLEM"]
    assert a.split()[:4] == ["a", "3GiB", "40GiB", "512MiB"]
    assert f"shop/orders:{STABLE}* shop/orders:{UPDATE}(partial) lab/vision:0123456789 " in a
    assert f"shop/orders:{UPDATE} 29% of 1GiB, 2MiB/s, 6m2s left, from peers" in a
    assert "AgentNotReady" in b and "IntegrityMismatch: 1 file(s)" in elsewhere


def test_the_nodes_of_one_deployment_and_what_it_pins(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "cache", "orders", capsys=capsys)
    rows = [row.split()[:2] for row in ran.out.splitlines()]
    assert rows == [["NODE", "SITE"], ["c", "berlin"], ["a", "wien"], ["b", "wien"]]
    assert f"{STABLE}* {UPDATE}(partial)" in ran.out and "vision" not in ran.out
    assert "NoStoreAgent" in ran.out.splitlines()[1]
    wien = run_cli(_cluster(), "cache", "orders", "--site", "wien", "--problems", capsys=capsys)
    assert [row.split()[0] for row in wien.out.splitlines()] == ["NODE", "b"]
    narrow = run_cli(_cluster(), "cache", "orders", capsys=capsys, width=80)
    assert max(map(len, narrow.out.splitlines())) <= 80


def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "cache", "orders", "-o", "json", capsys=capsys)
    document = json.loads(ran.out)
    assert (document["kind"], document["name"]) == ("CacheList", "orders")
    items = {item["node"]: item for item in document["items"]}
    store = items["a"]["store"]
    assert (store["bytes"], store["partialBytes"], len(store["pins"])) == (3 * GIB, 300 << 20, 2)
    assert store["pins"][0]["inUse"] is True and store["fetches"][0]["secondsLeft"] == 362
    assert items["c"]["store"] is None and items["c"]["problem"]["reason"] == "NoStoreAgent"
    every = yaml.safe_load(run_cli(_cluster(), "cache", "-o", "yaml", capsys=capsys).out)
    assert every["namespace"] is None and len(every["items"]) == 3


def test_a_node_that_does_not_answer_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster()
    cluster.stores["agent-elsewhere"] = UnreachableError("error trying to reach service: i/o timeout")
    ran = run_cli(cluster, "cache", capsys=capsys)
    assert ran.code == 0 and "NoAnswer: error trying to reach service: i/o timeout" in ran.out


def test_without_the_permission_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _cluster()
    cluster.stores = {pod: ForbiddenError("pods/proxy is forbidden") for pod in cluster.stores}
    ran = run_cli(cluster, "cache", capsys=capsys)
    assert (ran.code, ran.out, ran.err) == (3, "", "error: pods/proxy is forbidden\n")


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(_cluster(), "cache", "--site", "wien", capsys=capsys).code == 2
    ran = run_cli(_cluster(), "cache", "--agents", "nowhere", capsys=capsys)
    assert ran.code == 3 and "--agents" in ran.err and "storeAgent.enabled" in ran.err
    assert run_cli(_cluster(), "cache", "missing", capsys=capsys).code == 3
    none = run_cli(_cluster(), "cache", "orders", "--site", "nowhere", capsys=capsys)
    assert (none.code, none.out) == (0, "") and "no node" in none.err


def test_the_port_is_the_agent_s_own() -> None:
    assert read_agent(build_agent("n", port=9999)).port == 9999
    assert read_agent(build_agent("n", port=None)).port == 8491
    assert not read_agent({"metadata": {"name": "p"}}).ready


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(EVIL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["bytes", "pins", "partials", "progress", "problems", "total", "revision", "from"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_ANYTHING)
def test_nonsense_is_passed_over_and_acts_on_no_terminal(body: Any) -> None:
    for value in (body, {"pins": body, "partials": body, "progress": body, "problems": body, "bytes": body}):
        report = StoreReport(node="n", stored=read_store(value))
        (_, line) = render_stores([report], width=200, owners="shown")
        assert line.plain.isprintable()


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0B"), (999, "999B"), (1000, "1KiB"), (1536, "1.5KiB"), (3 * GIB, "3GiB"),
     (1010 << 20, "1GiB"), (5 << 50, "5120TiB")],
)  # fmt: skip
def test_sizes(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_agents_are_asked_through_the_api_server(tmp_path: Path) -> None:
    with serve(ScriptedApi()) as api:
        config = write_kubeconfig(tmp_path / "config", api.url)
        cluster = connect(kubeconfig=str(config), context=None).cluster
        api.script("/api/v1/namespaces/slmops-system/pods", (200, {"items": [build_agent("a")]}))
        api.script("/api/v1/namespaces/slmops-system/pods/agent-a:8491/proxy/v1/store", (200, build_store()))
        assert len(cluster.store_agents("slmops-system")) == 1
        assert api.asked[0].query["labelSelector"] == "app.kubernetes.io/component=store-agent"
        assert cluster.store("slmops-system", "agent-a", 8491)["bytes"] == 3 * GIB
