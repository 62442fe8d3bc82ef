# SPDX-License-Identifier: Apache-2.0
"""Promotion: v2 goes out wave by wave, judged by Prometheus, while every node keeps answering."""

from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, History, NodeClient, Traffic
from e2e.lib.chat import is_expected
from e2e.lib.manifests import FOLDER, WAVES, golden_cases
from e2e.lib.observe import rollout_of
from e2e.suite.conftest import Make


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment()
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_v2_is_promoted_wave_by_wave_without_a_failed_request(
    orders: Deployment, cluster: Cluster, clients: dict[str, NodeClient]
) -> None:
    stable = orders.status()["stableRevision"]
    if cluster.is_rig:
        # Slow enough that the fetch ahead takes seconds: what serves must not notice (scenario 16).
        cluster.rig.set_model_faults({f"/{FOLDER}/v2-int4/model.onnx.data": {"bytes_per_second": 150_000}})
    with (
        Traffic(clients.values(), orders.service_address(), interval_seconds=0.4) as traffic,
        History(orders) as history,
    ):
        orders.apply("v2")
        found = orders.wait_promoted("v2")
        report = traffic.stop()
    if cluster.is_rig:
        cluster.rig.set_model_faults({})
    revision = found["status"]["stableRevision"]
    assert revision != stable
    frames = history.of(revision)
    said = history.describe()

    rollout = rollout_of(found)
    assert [w["verdict"] for w in rollout["waves"]] == ["Pass"] * len(WAVES), said
    assert sum(w["nodes"] for w in rollout["waves"]) == len(cluster.edge_nodes)
    assert all(w["ready"] == w["nodes"] and not w["deferred"] and not w["failed"] for w in rollout["waves"])
    assert orders.assigned() == {node: {revision} for node in cluster.edge_nodes}
    assert orders.event_reasons().count("WavePassed") >= 3
    assert "Promoted" in orders.event_reasons()

    # Wave by wave: before a wave has passed, no node of a later one was given the revision.
    pilots = {n["metadata"]["name"] for n in cluster.find_all("nodes", selector="slmops.dev/ring=pilot")}
    assert frames, "no frame of the rollout was seen"
    for frame in frames:
        verdicts = frame.verdicts
        given = frame.nodes_given(revision)
        if verdicts["pilot"] != "Pass":
            assert given <= pilots, said
        elif verdicts["half"] != "Pass":
            assert len(given) <= 2, said

    # Prefetch before the flip: whoever fetches is not given the revision, and goes on with the old one.
    fetching = [frame for frame in frames if frame.nodes_fetching(revision)]
    assert fetching, said
    for frame in fetching:
        for node in frame.nodes_fetching(revision):
            assert stable in frame.labels[node], said
            assert revision not in frame.labels[node], said

    # The verdicts come from real measurements of both revisions.
    measured = [m for m in rollout["measurements"] if m["metric"] == "quality" and m["verdict"] == "Pass"]
    assert measured
    assert all(m["canarySamples"] >= 10 for m in measured), measured
    assert all(float(m["canary"]) >= float(m["stable"]) - 0.03 > 0.85 for m in measured), measured
    assert {m["wave"] for m in measured} >= {"all"}

    # Nobody noticed.
    assert report.ok > 50
    assert not report.failures, report.describe()
    cases = golden_cases()
    right = sum(is_expected(cases[one.case], one.text) for one in report.sent)
    assert right >= 0.9 * report.ok
    for node in cluster.edge_nodes:
        assert report.longest_gap_seconds(node) < 5, report.describe()


def test_same_spec_again_moves_nothing(orders: Deployment) -> None:
    before = {pod["metadata"]["uid"] for pod in orders.pods()}
    started = rollout_of(orders.read())["startedAt"]
    orders.apply("v2")
    orders.wait_promoted("v2")
    orders.cluster.hold_for(
        "the pods being the same",
        lambda: {pod["metadata"]["uid"] for pod in orders.pods()} == before,
        seconds=4,
    )
    assert rollout_of(orders.read())["startedAt"] == started
