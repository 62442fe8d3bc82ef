# SPDX-License-Identifier: Apache-2.0
"""The operator dies before its n-th API write, for every n of a whole rollout: the end is the same.

Each n has a namespace, nodes and operators of its own on the one API server; several run at a time.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from slmops.model.observed import Preset
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.harness import Body, Cluster, step_of, until, verdicts

PARALLEL = 8
ROLLOUT: dict[str, Any] = {
    "waves": [
        {"name": "pilot", "nodeSelector": {"matchLabels": {"pilot": "true"}}},
        {"name": "all", "percent": 100},
    ],
    "maxUnavailable": "100%",
    "soak": "0s",
}


@dataclass(frozen=True)
class End:
    """What must not depend on a kill."""

    labels: dict[str, dict[str, str]]
    workloads: list[str]
    step: str
    waves: dict[str, str]
    failed: list[str]


async def roll_out(cluster: Cluster, bad: str, die_before: int | None) -> tuple[End, bool]:
    """v1, then v2 with one death; the end, and whether it died."""
    async with cluster.operator():
        await cluster.apply("v1", **ROLLOUT)
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 2)
    if bad:
        cluster.provider.script(Preset.ERROR_RATE, bad, 0.9)

    def ended(status: Body) -> bool:
        rollout = status.get("rollout") or {}
        return rollout.get("revision") != first and step_of(status) in ("Completed", "Failed")

    async def settled() -> bool:
        # The last writes come when the other revision's pods are gone.
        return ended(await cluster.status()) and len(await cluster.daemon_sets()) == 1

    died = False
    if die_before is not None:
        async with cluster.operator(die_before=die_before) as running:
            await cluster.apply("v2", **ROLLOUT)
            died = await cluster.until_over(running, settled)
    async with cluster.operator():
        await cluster.apply("v2", **ROLLOUT)
        status = await cluster.until_status("the end", ended)
        stable = str(status["stableRevision"])
        await cluster.until_settled(stable, 2)

        await until("the other revision's DaemonSet being gone", settled)
        status = await cluster.status()
        return (
            End(
                labels=await cluster.node_labels(),
                workloads=[n.removeprefix("orders-") for n in await cluster.daemon_sets()],
                step=step_of(status),
                waves=dict(verdicts(status)),
                failed=[entry["revision"] for entry in status.get("failedRevisions", ())],
            ),
            died,
        )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("outcome", ["promotion", "rollback"])
async def test_the_end_is_the_same_whichever_write_was_the_last(
    make_cluster: MakeCluster, outcome: str
) -> None:
    bad = ""
    async with make_cluster("known", nodes="ab") as cluster, cluster.operator():
        await cluster.apply("v1", **ROLLOUT)
        await cluster.until_promoted("v1")
        await cluster.apply("v2", **ROLLOUT)
        second = await cluster.until_promoted("v2")
    if outcome == "rollback":
        bad = second
    async with make_cluster("whole", nodes="ab") as cluster:
        whole, _ = await roll_out(cluster, bad, None)
    assert whole.step == ("Failed" if bad else "Completed")

    survived = asyncio.Event()
    slots = asyncio.Semaphore(PARALLEL)
    kills = 0

    async def kill(number: int) -> None:
        nonlocal kills
        async with slots:
            if survived.is_set():
                return
            async with make_cluster(f"kill{number}", nodes="ab") as cluster:
                end, died = await roll_out(cluster, bad, number)
        assert end == whole, f"killed before write {number}"
        kills += died
        if not died:
            survived.set()  # a whole rollout has no more writes than that

    async with asyncio.TaskGroup() as group:
        for number in range(1, 80):
            group.create_task(kill(number))
    assert survived.is_set() and kills >= 15, f"{kills} kills"
