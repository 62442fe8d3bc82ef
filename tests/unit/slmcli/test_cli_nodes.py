# SPDX-License-Identifier: Apache-2.0
"""`nodes`: what each node does, from labels and pods; the reading agrees with the operator's."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmcli.observe import observe_node, observe_pod, report_nodes
from slmcli.view import read_deployment
from slmops.adapters.trim import trim_node, trim_pod
from slmwire import labels
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    STABLE,
    UPDATE,
    Body,
    ago,
    build_body,
    build_node,
    build_pod,
    build_spec,
    build_status,
)


def _state(node: Body, *pods: Body, spec: Body | None = None, **status: Any) -> str:
    view = read_deployment(build_body(build_status(**status), spec=spec))
    reports = report_nodes(view, [node], pods)
    return reports[0].state if reports else "left out"


def test_each_state_of_a_node() -> None:
    stable, update = {STABLE: "int4"}, {UPDATE: "int4"}
    ahead = stable | {f"{UPDATE}.prefetch": "int4"}
    serving, new = build_pod("n", STABLE), build_pod("n", UPDATE)
    fetched = build_pod("n", UPDATE, role="prefetch")
    assert _state(build_node("n", stable), serving) == "stable"
    assert _state(build_node("n", update), new) == "updated"
    assert _state(build_node("n", update)) == "moving"
    assert _state(build_node("n", stable | update), serving) == "moving"
    assert _state(build_node("n", ahead), serving, fetched) == "prepared"
    assert (
        _state(build_node("n", ahead), serving, build_pod("n", UPDATE, role="prefetch", ready=False))
        == "fetching"
    )
    assert _state(build_node("n")) == "waiting"
    assert _state(build_node("n", {"99999": "int4"}), build_pod("n", "99999")) == "other"
    assert _state(build_node("n", stable, ready=False), serving) == "offline"
    crashing = build_pod("n", UPDATE, ready=False, waiting="CrashLoopBackOff")
    assert _state(build_node("n", update), crashing) == "failed"
    assert _state(build_node("n", stable, edge="false"), serving) == "leaving"
    assert _state(build_node("n", edge="false")) == "left out"


def test_nodes_that_no_variant_suits() -> None:
    spec = build_spec()
    spec["variants"][0]["nodeSelector"] = {"matchLabels": {"arch": "arm64"}}
    assert _state(build_node("n"), spec=spec) == "unfit"
    known = [{"node": "n", "reason": "Unfit", "message": "needs 9 GiB"}]
    assert _state(build_node("n"), worstNodes=known) == "unfit"


def _cluster() -> ScriptedCluster:
    cluster = ScriptedCluster()
    cluster.put(build_body(build_status()))
    cluster.fleet = [
        build_node("shop-9", {STABLE: "int4"}, site="wien"),
        build_node("a-node-with-quite-a-long-name.of.some.domain.example.com", {UPDATE: "int4"}),
        build_node("shop-1", {STABLE: "int4"}, site="berlin", ready=False),
        build_node("elsewhere", edge="false"),
    ]
    cluster.running = [
        build_pod("shop-9", STABLE),
        build_pod(
            "a-node-with-quite-a-long-name.of.some.domain.example.com",
            UPDATE,
            ready=False,
            waiting="CrashLoopBackOff",
        ),
    ]
    return cluster


def test_nodes_are_listed_by_site(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(_cluster(), "nodes", "orders", capsys=capsys)
    rows = ran.out.splitlines()
    assert [row.split()[1] for row in rows[1:]] == ["berlin", "berlin", "wien"]
    assert "elsewhere" not in ran.out
    assert "CrashLoopBackOff: the container ended 3 times" in ran.out
    assert f"{STABLE}/int4" in rows[3]
    narrow = run_cli(_cluster(), "nodes", "orders", capsys=capsys, width=80)
    assert max(map(len, narrow.out.splitlines())) <= 80


def test_nodes_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    by_site = run_cli(_cluster(), "nodes", "orders", "--site", "wien", "-o", "json", capsys=capsys)
    assert [item["node"] for item in json.loads(by_site.out)["items"]] == ["shop-9"]
    problems = run_cli(_cluster(), "nodes", "orders", "--problems", "-o", "json", capsys=capsys)
    assert len(json.loads(problems.out)["items"]) == 2
    none = run_cli(_cluster(), "nodes", "orders", "--site", "nowhere", capsys=capsys)
    assert (none.code, none.out) == (0, "")
    assert "no node" in none.err
    wide = run_cli(_cluster(), "nodes", "orders", "-o", "wide", capsys=capsys)
    assert "RESTARTS" in wide.out


_TIMES = st.sampled_from([ago(5), ago(50), "", "yesterday"])
_STATES = st.fixed_dictionaries(
    {},
    optional={
        "waiting": st.fixed_dictionaries(
            {"reason": st.sampled_from(["CrashLoopBackOff", "PodInitializing"])}
        ),
        "terminated": st.fixed_dictionaries(
            {
                "exitCode": st.integers(0, 3),
                "reason": st.sampled_from(["OOMKilled", "Error"]),
                "finishedAt": _TIMES,
                "message": st.sampled_from(["", "x", '{"reason": "AccessDenied", "message": "no"}']),
            }
        ),
    },
)
_CONTAINERS = st.lists(
    st.fixed_dictionaries({"restartCount": st.integers(0, 9), "state": _STATES, "lastState": _STATES}),
    max_size=3,
)


@given(
    initial=_CONTAINERS,
    main=_CONTAINERS,
    role=st.sampled_from(["serve", "prefetch", "release", "strange", ""]),
    node=st.sampled_from(["n", ""]),
    created=_TIMES,
    scheduled=st.sampled_from(["True", "False"]),
    phase=st.sampled_from(["Pending", "Running", "Failed"]),
    begun=st.sampled_from(["True", "False", ""]),
    deleting=st.booleans(),
)
def test_pods_are_read_as_the_operator_reads_them(
    *,
    initial: list[Body],
    main: list[Body],
    role: str,
    node: str,
    created: str,
    scheduled: str,
    phase: str,
    begun: str,
    deleting: bool,
) -> None:
    fields = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["intended"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": fields}}
    pod = {
        "metadata": {
            "name": "p",
            "labels": {labels.ROLE: role, labels.REVISION: "r", labels.VARIANT: "v"},
            "creationTimestamp": created,
        }
        | ({"deletionTimestamp": ago(1)} if deleting else {}),
        "spec": {"affinity": {"nodeAffinity": required}} | ({"nodeName": node} if node else {}),
        "status": {
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": scheduled, "reason": "Unschedulable"},
                *([{"type": "PodReadyToStartContainers", "status": begun}] if begun else []),
            ],
            "initContainerStatuses": initial,
            "containerStatuses": main,
        },
    }
    assert observe_pod(pod) == trim_pod(pod).view


@given(
    memory=st.sampled_from(["4Gi", "1000", "4e3", "x", "0"]),
    ready=st.sampled_from(["True", "False", "Unknown"]),
    deleting=st.booleans(),
)
def test_nodes_are_read_as_the_operator_reads_them(*, memory: str, ready: str, deleting: bool) -> None:
    node = build_node("n", {STABLE: "int4"})
    node["status"] = {"allocatable": {"memory": memory}, "conditions": [{"type": "Ready", "status": ready}]}
    if deleting:
        node["metadata"]["deletionTimestamp"] = ago(1)
    assert observe_node(node) == trim_node(node)
    assert observe_node({"metadata": {"name": "n"}}) == trim_node({"metadata": {"name": "n"}})
