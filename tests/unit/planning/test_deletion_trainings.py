# SPDX-License-Identifier: Apache-2.0
"""An SLMDeployment that is deleted while it trains adapters: the trainings end before caches are dropped."""

from dataclasses import replace

import pytest

from slmops.model.jobs import DeleteJob, JobPodView, JobView
from slmops.model.observed import Observed
from slmops.model.plan import ApplyObject, PatchNodeLabels, RemoveFinalizer
from slmops.planning.deletion import plan_deletion
from tests.unit.planning.adaptation_sim import installed_sites
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed

JOB = JobView(name="orders-train-north", work="train", uid="job-uid")
POD = JobPodView(name="orders-train-north-x", job=JOB.name, owner_uid="job-uid", node="n1")


@pytest.fixture(scope="module")
def served() -> FleetSim:
    """Two nodes that serve, and a deletion that has just been asked for."""
    sim = installed(2)
    sim.delete()
    return sim


def patched(sim: FleetSim, observed: Observed) -> dict[str, bool]:
    """Node -> whether it is told to drop its cache, of all that get new labels."""
    key = sim.names.release_label
    actions = plan_deletion(observed, sim.now + 1).actions
    return {a.node: a.labels.get(key) == "true" for a in actions if isinstance(a, PatchNodeLabels)}


def test_what_users_wrote_goes_even_where_models_stay() -> None:
    sim = installed_sites()
    sim.edit(cache={"deletionPolicy": "Retain"})
    sim.run(5)
    sim.delete()
    body = next(
        action.body
        for action in plan_deletion(sim.observed(), sim.now).actions
        if isinstance(action, ApplyObject) and action.name == sim.names.release_workload
    )
    (container,) = body["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["release", "--keep-models"]


def test_a_job_is_deleted_first_and_once(served: FleetSim) -> None:
    observed = replace(served.observed(), jobs=(JOB,), job_pods=(POD,))
    first = plan_deletion(observed, served.now + 1).actions[0]
    assert isinstance(first, DeleteJob) and first.name == JOB.name
    ending = replace(observed, jobs=(replace(JOB, deleting=True),))
    assert not [a for a in plan_deletion(ending, served.now + 1).actions if isinstance(a, DeleteJob)]


def test_a_node_keeps_its_cache_until_no_training_runs_on_it(served: FleetSim) -> None:
    # The Job is gone at once, its pod a while later.
    observed = replace(served.observed(), job_pods=(replace(POD, deleting=True),))
    assert patched(served, observed) == {"n0": True}
    assert patched(served, served.observed()) == {"n1": True, "n0": True}


def test_an_offline_node_and_a_late_end_hold_nothing_up(served: FleetSim) -> None:
    observed = replace(served.observed(), job_pods=(POD,))
    away = tuple(replace(node, ready=node.name != "n1") for node in observed.nodes)
    assert patched(served, replace(observed, nodes=away)) == {"n1": False, "n0": True}
    late = served.now + observed.config.release_timeout_seconds + 1
    labels = {a.node for a in plan_deletion(observed, late).actions if isinstance(a, PatchNodeLabels)}
    assert labels == {"n1", "n0"}


def test_what_cannot_be_read_lets_go_of_its_jobs_too(served: FleetSim) -> None:
    seen = served.observed()
    broken = replace(seen, deployment=replace(seen.deployment, spec=None), jobs=(JOB,), nodes=())
    assert [type(action) for action in plan_deletion(broken, served.now).actions] == [DeleteJob]
    gone = replace(broken, jobs=())
    assert [type(action) for action in plan_deletion(gone, served.now).actions] == [RemoveFinalizer]
