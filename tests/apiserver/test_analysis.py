# SPDX-License-Identifier: Apache-2.0
"""What no data and outages of the metrics provider do to a rollout (scenarios 1 to 5)."""

import asyncio

import pytest

from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Samples
from tests.apiserver.harness import Body, Cluster, analysis, condition, step_of, verdicts


async def _start_second(cluster: Cluster, **rollout: object) -> tuple[str, str]:
    """Promote v1, apply v2; both revisions."""
    await cluster.apply("v1", **rollout)
    first = await cluster.until_promoted("v1")
    await cluster.until_settled(first, 4)
    await cluster.apply("v2", **rollout)
    status = await cluster.until_status("v2 being known", lambda s: s["updateRevision"] != first)
    return first, str(status["updateRevision"])


def _verdict(status: Body, metric: str) -> str:
    states = (status.get("rollout") or {}).get("metrics", ())
    return next((str(m["verdict"]) for m in states if m["name"] == metric), "")


async def test_no_data_holds_and_never_decides(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        cluster.provider.script(Preset.ERROR_RATE, first, 0.0)
        original = cluster.provider.read

        async def no_errors_known(query: MetricQuery, settings: ProviderSettings) -> Samples:
            samples = await original(query, settings)
            if query.preset is Preset.ERROR_RATE and query.revision != first and blind:
                return {}
            return samples

        blind = True
        cluster.provider.read = no_errors_known  # type: ignore[method-assign]
        await cluster.apply("v2")
        status = await cluster.until_status(
            "NoData",
            lambda s: step_of(s) == "Analysing" and condition(s, "Progressing")["reason"] == "NoData",
        )
        assert _verdict(status, "errors") == "NoData"
        await asyncio.sleep(3)
        status = await cluster.status()
        assert step_of(status) == "Analysing"
        assert verdicts(status)["pilot"] == "Pending"
        assert condition(status, "Progressing")["reason"] == "NoData"
        blind = False
        await cluster.until_promoted("v2")


@pytest.mark.parametrize("kind", ["error", "hang"])
async def test_outage_holds_and_is_over_by_itself(cluster: Cluster, kind: str) -> None:
    async with cluster.operator() as running:
        # So many passes that a slow machine cannot sleep through: the outage begins in the first wave.
        first, _ = await _start_second(cluster, analysis=analysis(passes=100))
        await cluster.until_judged()
        if kind == "error":
            cluster.provider.outage = "Prometheus: HTTP 503"
            await cluster.until_status("the outage", lambda s: _verdict(s, "quality") == "ProviderError")
        else:
            cluster.provider.hangs = True
        await asyncio.sleep(3)
        status = await cluster.status()
        assert step_of(status) in ("Soaking", "Analysing")
        assert status["stableRevision"] == first
        assert status["rollout"]["wave"] == 0
        assert all(m["consecutiveFailures"] == 0 for m in status["rollout"]["metrics"])
        assert running.task is not None and not running.task.done()
        if kind == "error":
            assert condition(status, "Progressing")["reason"] == "ProviderError"
            cluster.provider.outage = ""
            await cluster.apply("v2", analysis=analysis(passes=1))
            await cluster.until_promoted("v2")
        else:
            # A measurement that hangs delays nothing else: going back is acted on meanwhile.
            await cluster.apply("v1")
            await cluster.until_settled(first, 4)
            await cluster.until_status("the end of the rollout", lambda s: step_of(s) == "Cancelled")


async def test_outage_beyond_the_deadline_follows_the_policy(cluster: Cluster) -> None:
    async with cluster.operator():
        first, second = await _start_second(cluster, analysis=analysis(passes=100))
        await cluster.until_judged()
        cluster.provider.outage = "Prometheus: HTTP 503"
        await cluster.until_status("the outage", lambda s: _verdict(s, "quality") == "ProviderError")
        policy = {"onDeadline": "Rollback", "progressDeadline": "6s"}
        await cluster.apply("v2", **policy)
        status = await cluster.until_status("the rollback", lambda s: step_of(s) == "Failed")
        await cluster.until_settled(first, 4)
    assert [(f["revision"], f["reason"]) for f in status["failedRevisions"]] == [(second, "DeadlineExceeded")]
    assert "ProviderError" in status["failedRevisions"][0]["message"]
