# SPDX-License-Identifier: Apache-2.0
"""Rollback: v3 answers well-formed and wrong; the evaluation metric sees it, the cache brings v2 back."""

from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, History, NodeClient, Traffic
from e2e.lib.chat import is_expected, need_ok
from e2e.lib.manifests import PILOT_WAVE, golden_cases
from e2e.lib.observe import condition, rollout_of
from e2e.suite.conftest import Make

ROLLOUT = {"waves": [PILOT_WAVE, {"name": "all", "percent": 100}]}


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v2 on all edge nodes, then v3 rolled out while the model server vanishes once the pilot has it."""
    deployment = make_deployment(rollout=ROLLOUT)
    deployment.apply("v2")
    deployment.wait_installed()
    yield deployment


def test_v3_is_rolled_back_by_its_score_from_the_cache(
    orders: Deployment, cluster: Cluster, clients: dict[str, NodeClient]
) -> None:
    stable = orders.status()["stableRevision"]
    before = {pod["metadata"]["uid"] for pod in orders.pods()}
    pilots = {n["metadata"]["name"] for n in cluster.find_all("nodes", selector="slmops.dev/ring=pilot")}
    with (
        Traffic(clients.values(), orders.service_address(), interval_seconds=0.5) as traffic,
        History(orders) as history,
    ):
        orders.apply("v3")
        orders.wait_step("Flipping", "Soaking", "Analysing", "RollingBack", "Failed")
        if cluster.is_rig:
            cluster.rig.stop_service("models")
        found = orders.wait_rolled_back()
        report = traffic.stop()
    status, said = found["status"], history.describe()
    failed = rollout_of(found)["revision"]

    assert status["stableRevision"] == stable != failed
    assert status["modelVersion"] == "v2"
    assert rollout_of(found)["reason"] == "AnalysisFailed"
    assert "quality" in rollout_of(found)["message"]
    assert rollout_of(found)["waves"][0]["verdict"] == "Fail"
    succeeded = condition(found, "RolloutSucceeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "AnalysisFailed")
    assert [f["revision"] for f in status["failedRevisions"]] == [failed]
    reasons = orders.event_reasons()
    assert "AnalysisFailed" in reasons
    assert "RolledBack" in reasons
    verdicts = [m for m in rollout_of(found)["measurements"] if m["verdict"] == "Fail"]
    assert verdicts
    assert all(float(m["canary"]) < float(m["stable"]) - 0.03 for m in verdicts), verdicts

    # Only the pilot ever had it; the others' pods are the same as before.
    for frame in history.of(failed):
        assert frame.nodes_given(failed) <= pilots, said
    assert orders.assigned() == {node: {stable} for node in cluster.edge_nodes}
    now = {pod["metadata"]["uid"]: pod["spec"]["nodeName"] for pod in orders.pods()}
    assert {node for uid, node in now.items() if uid not in before} <= pilots

    # And the pilot answers right again, with the model server away: nothing was downloaded.
    case = golden_cases()[0]
    for node in pilots:
        answer = need_ok(clients[node].chat(orders.service_address(), case["messages"]), f"chat on {node}")
        assert is_expected(case, answer.text)
    assert not report.failures, report.describe()


def test_the_failed_revision_is_not_tried_again_by_itself(orders: Deployment, cluster: Cluster) -> None:
    failed = orders.status()["failedRevisions"][0]["revision"]
    if cluster.is_rig:
        cluster.rig.start_service("models")
    # What GitOps does all day: apply the same again.
    orders.apply("v3")
    orders.cluster.hold_for(
        "no node being given the failed revision",
        lambda: all(failed not in given for given in orders.assigned().values()),
        seconds=6,
    )
    assert rollout_of(orders.read())["step"] == "Failed"


def test_an_explicit_retry_tries_it_once_more(orders: Deployment) -> None:
    failed = orders.status()["failedRevisions"][0]["revision"]
    with History(orders) as history:
        orders.annotate(retry="please")
        orders.wait(
            "a second attempt",
            lambda: any(frame.step == "Prefetching" for frame in history.of(failed)),
            timeout_seconds=120,
        )
        orders.wait_rolled_back()
    assert orders.status()["failedRevisions"][0]["revision"] == failed


def test_going_back_to_v2_in_the_spec_clears_the_condition(orders: Deployment) -> None:
    before = {pod["metadata"]["uid"] for pod in orders.pods()}
    orders.apply("v2")
    found = orders.wait_promoted("v2", timeout_seconds=120)
    assert condition(found, "RolloutSucceeded")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in orders.pods()} == before
