# SPDX-License-Identifier: Apache-2.0
"""Prometheus is away, or hangs, in the middle of a rollout: it waits, and goes on by itself."""

import signal
from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment
from e2e.lib.manifests import PILOT_WAVE
from e2e.lib.observe import condition, rollout_of
from e2e.rig import Rig
from e2e.suite.conftest import Make

# The outage is to begin in the first wave, also where looking and stopping take their time.
ROLLOUT = {"waves": [PILOT_WAVE | {"soak": "15s"}, {"name": "all", "percent": 100}], "soak": "4s"}


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment(rollout=ROLLOUT)
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_an_outage_holds_the_rollout_and_it_resumes(orders: Deployment, cluster: Cluster, rig: Rig) -> None:
    orders.apply("v2")
    orders.wait_step("Soaking", wave=0)
    rig.stop_service("prometheus")
    held = orders.wait_status(
        "holding because of the metrics provider",
        lambda found: condition(found, "Progressing").get("reason") == "ProviderError",
        timeout_seconds=180,
    )
    assert condition(held, "Progressing")["status"] == "False"
    wave, revision = rollout_of(held)["wave"], rollout_of(held)["revision"]
    given = orders.assigned()

    def unmoved() -> bool:
        found = orders.read()
        rollout = rollout_of(found)
        return (
            rollout["wave"] == wave
            and rollout["step"] == "Analysing"
            and not any(metric["consecutiveFailures"] for metric in rollout["metrics"])
            and orders.assigned() == given
        )

    cluster.hold_for("the rollout standing still", unmoved, seconds=8)
    rig.start_service("prometheus")
    found = orders.wait_promoted("v2")
    assert found["status"]["stableRevision"] == revision
    assert not found["status"]["failedRevisions"]


def test_a_provider_that_hangs_delays_no_other_deployment(
    orders: Deployment, make_deployment: Make, rig: Rig
) -> None:
    daemon = rig.control_plane.daemon("prometheus")
    orders.apply("v1")
    orders.wait_step("Soaking", wave=0)
    daemon.signal(signal.SIGSTOP)
    try:
        orders.wait_status(
            "holding because of the metrics provider",
            lambda found: condition(found, "Progressing").get("reason") == "ProviderError",
            timeout_seconds=180,
        )
        # Its queries hang at this moment; another deployment is taken in and installed all the same.
        other = make_deployment("other")
        other.apply("v1")
        other.wait_installed(timeout_seconds=120)
    finally:
        daemon.signal(signal.SIGCONT)
    orders.wait_promoted("v1")
