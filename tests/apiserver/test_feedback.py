# SPDX-License-Identifier: Apache-2.0
"""spec.feedback on a real API server: a promoted revision whose score falls is taken back once."""

import asyncio
from typing import Any

from slmops.adapters.resources import DEPLOYMENTS
from slmops.model.observed import Preset
from tests.apiserver.harness import NAME, Body, Cluster, condition

SCORE: dict[str, Any] = {
    "name": "score",
    "metric": {"preset": "FeedbackScore"},
    "min": "0.6",
    "window": "1m",
    "for": "0s",
    "action": "RollBack",
}


def rule_of(status: Body) -> Body:
    rules = status.get("feedback", {}).get("rules", ())
    return dict(rules[0]) if rules else {}


async def test_a_score_that_falls_is_rolled_back_once_and_no_data_does_nothing(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.apply("v2")
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
        cluster.provider.script(Preset.FEEDBACK_SCORE, second, None, samples=0)
        await cluster.kube.merge_patch(
            DEPLOYMENTS,
            namespace=cluster.namespace,
            name=NAME,
            body={"spec": {"feedback": {"interval": "10s", "rules": [SCORE]}}},
        )
        status = await cluster.until_status("a look without data", lambda s: "measuredAt" in rule_of(s))
        assert rule_of(status)["verdict"] == "NoData" and "failingSeconds" not in rule_of(status)
        assert condition(status, "FeedbackHealthy")["reason"] == "NoData"
        assert status["stableRevision"] == second
        assert not status.get("failedRevisions")

    cluster.provider.script(Preset.FEEDBACK_SCORE, second, 0.3)
    # An operator that was started anew goes by what status says.
    async with cluster.operator():
        status = await cluster.until_status(
            "the way back",
            lambda s: s["stableRevision"] == first and bool(s.get("failedRevisions")),
        )
        await cluster.until_settled(first, 4)
        assert [(f["revision"], f["reason"]) for f in status["failedRevisions"]] == [
            (second, "FeedbackFailed")
        ]
        status = await cluster.until_status("rest", lambda s: "rollback" not in s["feedback"])
        assert status["feedback"]["rolledBack"] == [second]
        assert condition(status, "RolloutSucceeded")["reason"] == "FeedbackFailed"
        # Nothing brings the revision back by itself, and the one before it is not left in turn.
        cluster.provider.script(Preset.FEEDBACK_SCORE, first, 0.3)
        status = await cluster.until_status(
            "nothing left to go back to",
            lambda s: condition(s, "FeedbackHealthy").get("reason") == "RollbackBlocked",
        )
        await asyncio.sleep(3)
        status = await cluster.status()
    assert status["stableRevision"] == first and status["feedback"]["rolledBack"] == [second]
