# SPDX-License-Identifier: Apache-2.0
"""Other ways to judge a wave: the pods asked directly, a query of the user's own; and people at the gate."""

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment
from e2e.lib.manifests import PILOT_WAVE
from e2e.lib.observe import condition, rollout_of
from e2e.rig import Rig
from e2e.suite.conftest import Make

WAVES: list[dict[str, Any]] = [PILOT_WAVE, {"name": "all", "percent": 100}]
QUALITY = {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"}
SCORE = "min(slmserve_evaluation_score{$selector})"


def analysed(**analysis: Any) -> dict[str, Any]:
    """A short rollout that is judged so."""
    return {"waves": WAVES, "soak": "2s", "analysis": {"interval": "2s", "passes": 2} | analysis}


@pytest.fixture(scope="module")
def direct(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes, judged without Prometheus."""
    deployment = make_deployment("direct", rollout=analysed(provider="Direct", metrics=[QUALITY]))
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


@pytest.fixture(scope="module")
def asked(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes, judged by a query of its own."""
    own = {
        "name": "score",
        "query": SCORE,
        "samplesQuery": "sum(slmserve_evaluation_samples{$selector})",
        "direction": "HigherIsBetter",
        "maxDegradation": "0.03",
        "minSamples": 10,
    }
    deployment = make_deployment("asked", rollout=analysed(metrics=[own]))
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def living(deployment: Deployment) -> set[str]:
    """Its pods without those on their way out."""
    pods = deployment.pods()
    return {p["metadata"]["uid"] for p in pods if "deletionTimestamp" not in p["metadata"]}


def test_direct_judges_a_site_without_prometheus(direct: Deployment, rig: Rig) -> None:
    rig.stop_service("prometheus")
    direct.apply("v2")
    found = direct.wait_promoted("v2")
    measured = rollout_of(found)["measurements"]
    assert measured and all(m["verdict"] == "Pass" for m in measured[-2:])
    stable = found["status"]["stableRevision"]
    direct.apply("v3")
    found = direct.wait_rolled_back()
    assert rollout_of(found)["reason"] == "AnalysisFailed" and "quality" in rollout_of(found)["message"]
    assert found["status"]["stableRevision"] == stable
    failed = rollout_of(found)["revision"]
    assert all(failed not in given for given in direct.assigned().values())


def test_a_query_of_the_user_judges_on_the_real_prometheus(asked: Deployment, cluster: Cluster) -> None:
    asked.apply("v2")
    found = asked.wait_promoted("v2")
    last = rollout_of(found)["measurements"][-1]
    assert last["metric"] == "score" and last["verdict"] == "Pass" and float(last["canary"]) > 0.9
    asked.apply("v3")
    found = asked.wait_rolled_back()
    assert rollout_of(found)["reason"] == "AnalysisFailed" and "score" in rollout_of(found)["message"]


def test_a_query_that_does_not_parse_moves_nothing(asked: Deployment, cluster: Cluster) -> None:
    before = living(asked)
    broken = {"name": "score", "query": "sum(rate(slmserve_requests_total{$selector}[5m])", "max": "1"}
    asked.apply("v1", rollout=analysed(metrics=[broken]))
    found = asked.wait_status(
        "the query being refused",
        lambda found: condition(found, "Accepted").get("reason") == "InvalidQuery",
        timeout_seconds=180,
    )
    assert "spec.rollout.analysis.metrics[0].query" in condition(found, "Accepted")["message"]
    assert condition(found, "Ready")["status"] == "True"
    cluster.hold_for(
        "nothing being moved",
        lambda: living(asked) == before,
        seconds=5,
    )


def test_a_gate_waits_for_a_person_and_undo_goes_back(asked: Deployment, cluster: Cluster) -> None:
    gated = analysed(metrics=[QUALITY]) | {"waves": [PILOT_WAVE, {**WAVES[1], "approval": "Manual"}]}
    stable = asked.status()["stableRevision"]
    asked.apply("v1", rollout=gated)
    found = asked.wait_status(
        "the gate",
        lambda found: condition(found, "Progressing").get("reason") == "AwaitingApproval",
        timeout_seconds=300,
    )
    revision = rollout_of(found)["revision"]
    pilots = {n["metadata"]["name"] for n in cluster.find_all("nodes", selector="slmops.dev/ring=pilot")}
    given = {node for node, revisions in asked.assigned().items() if revision in revisions}
    assert given == pilots
    asked.annotate(promote=f"{revision}/all-nodes")
    asked.wait_status(
        "a refusal",
        lambda found: any(o["outcome"] == "Refused" for o in found["status"].get("operations", ())),
        timeout_seconds=120,
    )
    asked.annotate(promote=f"{revision}/*@2")
    asked.wait_promoted("v1")
    asked.annotate(undo=stable)
    # It goes through the waves as any other, and so to the gate.
    asked.wait_step("Prefetching", wave=1)
    asked.annotate(promote=f"{stable}/*@3")
    asked.wait_status(
        "the earlier revision being back",
        lambda found: (
            found["status"]["stableRevision"] == stable and rollout_of(found)["step"] == "Completed"
        ),
        timeout_seconds=300,
    )
    assert condition(asked.read(), "RolloutSucceeded")["reason"] == "Pinned"
