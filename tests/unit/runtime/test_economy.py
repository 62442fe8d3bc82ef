# SPDX-License-Identifier: Apache-2.0
"""Counters may wait to be written, decisions never do."""

import json

import pytest

from slmops.api import SLMDeploymentStatus
from slmops.runtime.economy import (
    COUNTERS_SECONDS,
    MAX_COUNTERS_SECONDS,
    StatusPace,
    Traffic,
    differ_in_counters_only,
)
from tests.unit.planning.fleet_situations import installed, reach


def mid_rollout() -> SLMDeploymentStatus:
    sim = installed(20, maxUnavailable=3)
    sim.set_version("v2")
    reach(sim, "Flipping", wave=1)
    sim.run(5)
    return sim.status


STATUS = mid_rollout()
COUNTERS = [
    "nodes.ready",
    "readyNodes",
    "rollout.waves.1.ready",
    "rollout.waves.1.updated",
    "rollout.measurements.0.verdict",
    "rollout.metrics.0.verdict",
    "variants.0.nodes",
]
DECISIONS = [
    "rollout.step",
    "rollout.wave",
    "rollout.waves.1.verdict",
    "stableRevision",
    "updateRevision",
    "conditions.0.reason",
    "observedGeneration",
    "retryToken",
]


def changed(path: str) -> SLMDeploymentStatus:
    body = json.loads(json.dumps(STATUS.to_body()))
    *way, last = path.split(".")
    here = body
    for part in way:
        here = here[int(part)] if isinstance(here, list) else here[part]
    old = here.get(last)
    here[last] = "Soaking" if last == "step" else f"{old}x" if isinstance(old, str) else (old or 0) + 1
    return SLMDeploymentStatus.model_validate(body)


@pytest.mark.parametrize("path", COUNTERS)
def test_counters_wait(path: str) -> None:
    assert differ_in_counters_only(STATUS, changed(path)) and changed(path) != STATUS


@pytest.mark.parametrize("path", DECISIONS)
def test_decisions_do_not_wait(path: str) -> None:
    assert not differ_in_counters_only(STATUS, changed(path))


def test_pace() -> None:
    now = 100.0
    pace = StatusPace(Traffic(lambda: now), lambda: now)
    assert pace.wait_seconds(STATUS, changed("nodes.ready")) == 0, "nothing was written before"
    pace.written()
    now += 0.5
    assert pace.wait_seconds(STATUS, changed("nodes.ready")) == pytest.approx(COUNTERS_SECONDS - 0.5)
    assert pace.wait_seconds(STATUS, changed("rollout.step")) == 0
    now += COUNTERS_SECONDS
    assert pace.wait_seconds(STATUS, changed("nodes.ready")) == 0


def test_counters_of_many_deployments_wait_longer_and_recover() -> None:
    now = 100.0
    traffic = Traffic(lambda: now)
    paces = [StatusPace(traffic, lambda: now) for _ in range(50)]
    for pace in paces:
        pace.wait_seconds(STATUS, changed("nodes.ready"))
        pace.written()
    assert paces[0].wait_seconds(STATUS, changed("nodes.ready")) == pytest.approx(10)
    assert paces[0].wait_seconds(STATUS, changed("rollout.step")) == 0
    now += MAX_COUNTERS_SECONDS + 1
    assert traffic.interval_seconds() == COUNTERS_SECONDS
    for pace in [StatusPace(traffic, lambda: now) for _ in range(1000)]:
        pace.wait_seconds(STATUS, changed("nodes.ready"))
    assert traffic.interval_seconds() == MAX_COUNTERS_SECONDS
