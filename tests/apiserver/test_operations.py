# SPDX-License-Identifier: Apache-2.0
"""What people do by annotation, on a real API server."""

from typing import Any

from slmops.adapters.resources import CONTROLLER_REVISIONS, EVENTS
from slmops.model.observed import Preset
from tests.apiserver.harness import SOAKS_ON, Body, Cluster, condition, step_of, until, verdicts

GATED: list[dict[str, Any]] = [
    {"name": "pilot", "nodeSelector": {"matchLabels": {"pilot": "true"}}},
    {"name": "all", "percent": 100, "approval": "Manual"},
]


def answer(status: Body, operation: str) -> Body:
    found: Body = next((o for o in status.get("operations", ()) if o["operation"] == operation), {})
    return found


async def test_approval_opens_the_gate_and_leaves_an_event(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1", waves=GATED)
        await cluster.until_promoted("v1")
        await cluster.apply("v2", waves=GATED)
        status = await cluster.until_status(
            "the gate", lambda s: condition(s, "Progressing").get("reason") == "AwaitingApproval"
        )
        second = status["updateRevision"]
        await cluster.annotate(promote="0123456789/*")
        status = await cluster.until_status("a refusal", lambda s: bool(answer(s, "promote")))
        assert answer(status, "promote")["outcome"] == "Refused"
        await cluster.annotate(promote=f"{second}/all@ok")
        await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)

        async def told() -> bool:
            events = await cluster.items(EVENTS, namespace=cluster.namespace)
            return {"AwaitingApproval", "PromoteRefused", "PromoteDone"} <= {e["reason"] for e in events}

        await until("the events", told)


async def test_skip_and_abort(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.apply("v2", **SOAKS_ON)
        status = await cluster.until_status("v2 soaking", lambda s: step_of(s) == "Soaking")
        second = status["updateRevision"]
        await cluster.annotate(skip=f"{second}/pilot")
        status = await cluster.until_status("the next wave", lambda s: s["rollout"]["wave"] == 1)
        assert verdicts(status)["pilot"] == "Skipped"
        await cluster.until_status("the next wave soaking", lambda s: step_of(s) == "Soaking")
        await cluster.annotate(abort=second)
        status = await cluster.until_status("the way back", lambda s: step_of(s) == "Failed")
        assert status["failedRevisions"][0]["reason"] == "Aborted"
        await cluster.until_settled(first, 4)


async def test_undo_takes_up_a_revision_of_the_history(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.apply("v2")
        second = await cluster.until_promoted("v2")
        await cluster.annotate(undo=first)
        status = await cluster.until_promoted_again(first)
        await cluster.until_settled(first, 4)
        assert condition(status, "RolloutSucceeded")["reason"] == "Pinned"
        numbers = {
            body["metadata"]["name"]: body["revision"]
            for body in await cluster.items(CONTROLLER_REVISIONS, namespace=cluster.namespace)
        }
        assert numbers[f"orders-{first}"] > numbers[f"orders-{second}"]
        await cluster.annotate(undo=second)
        await cluster.until_promoted_again(second)
        await cluster.until_settled(second, 4)


async def test_pause_by_annotation(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        await cluster.until_promoted("v1")
        await cluster.annotate(paused="true")
        await cluster.apply("v2")
        await cluster.until_status(
            "the pause", lambda s: condition(s, "Progressing").get("reason") == "Paused"
        )
        await cluster.annotate(paused="false")
        await cluster.until_promoted("v2")


async def test_waves_that_overlap_move_nothing(cluster: Cluster) -> None:
    waves = [GATED[0], {"name": "again", "nodeSelector": {}}, {"name": "all", "percent": 100}]
    async with cluster.operator():
        await cluster.apply("v1", waves=waves)
        first = await cluster.until_promoted("v1")
        await cluster.apply("v2", waves=waves)
        status = await cluster.until_status(
            "the refusal", lambda s: condition(s, "Accepted").get("reason") == "InvalidWaves"
        )
        assert "selected by both pilot and again" in condition(status, "Accepted")["message"]
        await cluster.until_settled(first, 4)
        cluster.provider.script(Preset.ERROR_RATE, first, 0.0)
        await cluster.apply("v2")
        second = await cluster.until_promoted("v2")
        await cluster.until_settled(second, 4)
