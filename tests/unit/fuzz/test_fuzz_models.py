# SPDX-License-Identifier: Apache-2.0
"""No SLMModel, stored status or report of a Job makes the operator stumble, and its status can be stored."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slmops.adapters.trim_jobs import trim_job, trim_job_pod
from slmops.model.slmmodel import ModelObserved, ModelPlan
from slmops.planning.slmmodel.offer import to_offer
from slmops.planning.slmmodel.plan import plan_model
from slmops.runtime.models.resource import parse_model
from tests.unit.fuzz import objects
from tests.unit.fuzz.bodies import schema_of, specs_of
from tests.unit.fuzz.budget import examples
from tests.unit.fuzz.grammar import Body, damaged, instances, text, values
from tests.unit.fuzz.robot import assert_stored, check_labels
from tests.unit.planning.model_sim import ModelSim

KIND = "SLMModel"


class Bodies(ModelSim):
    """The simulation, with spec and status as the API server holds them."""

    stored: Any = None
    """A status that somebody else wrote, until it is written anew."""

    def observed(self) -> ModelObserved:
        own = json.loads(json.dumps(self.status.to_body()))
        model = parse_model(
            {
                "metadata": {
                    "name": "chat", "namespace": "shop", "uid": "uid", "generation": self.generation,
                    "annotations": self.annotations,
                },
                "spec": self.spec,
                "status": own if self.stored is None else self.stored,
            }
        )  # fmt: skip
        self.unreadable = model.status_error
        return ModelObserved(
            model=model.model,
            config=self.config,
            jobs=tuple(self.jobs[name] for name in sorted(self.jobs)),
            pods=tuple(self.pods[name] for name in sorted(self.pods)),
            resolutions=dict(self.resolutions),
            manifests=dict(self.manifests),
            profiles=self.profiles,
            in_use=self.in_use,
            refused=dict(self.refused),
        )

    def look(self, *, writes: int | None = None) -> ModelPlan:
        outcome = super().look(writes=writes)
        self.stored = None
        status = outcome.status.to_body()
        assert_stored(status, KIND)
        [accepted] = [c for c in status["conditions"] if c["type"] == "Accepted"]
        if parse_model({"metadata": {"name": "c", "uid": "u"}, "spec": self.spec}).model.spec_error:
            assert accepted["status"] == "False" and "spec" in accepted["message"]
            assert not outcome.actions
        for body in self.bodies.values():
            json.dumps(body, allow_nan=False).encode()
            check_labels(body["metadata"]["labels"])
        to_offer("shop", "chat", outcome.status)
        return outcome


def run(sim: Bodies, looks: int = 4) -> None:
    for _ in range(looks):
        sim.look()
        sim.now += 40


def spec_parts() -> Body:
    parts: Body = schema_of(KIND)["properties"]["spec"]["properties"]
    return parts


@examples(50)
@given(
    spec=st.one_of(values, damaged(specs_of(KIND))),
    accept=st.one_of(st.none(), text, st.just("aaaaaaaaaaaa")),
)
def test_any_spec_is_planned_or_refused_by_name(spec: Any, accept: str | None) -> None:
    given_annotations = {} if accept is None else {"slmops.dev/accept": accept, "slmops.dev/retry": accept}
    sim = Bodies(spec=spec, annotations=given_annotations)
    run(sim)
    for name in sim.running():
        sim.finish(name)
    run(sim, 2)


@examples(25)
@given(data=st.data())
def test_any_spec_that_the_schema_allows(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(spec_parts())), min_size=1, max_size=2))
    spec = data.draw(st.sampled_from(specs_of(KIND))) | {
        name: data.draw(instances(spec_parts()[name])) for name in chosen
    }
    run(Bodies(spec=spec))


@examples(25)
@given(data=st.data())
def test_any_status_is_read_or_refused_by_name(data: st.DataObject) -> None:
    sim = Bodies()
    run(sim, 3)
    sim.stored = data.draw(
        st.one_of(damaged([sim.status.to_body()]), values, instances(schema_of(KIND)["properties"]["status"]))
    )
    stored = parse_model({"metadata": {"name": "c", "uid": "u"}, "spec": sim.spec, "status": sim.stored})
    if stored.status_error:  # the worker says so, and does nothing
        assert "status" in stored.status_error
        return
    run(sim, 3)


@examples(50)
@given(data=st.data())
def test_hostile_pods_of_jobs_are_planned_with(data: st.DataObject) -> None:
    sim = Bodies()
    run(sim, 3)
    for name in sim.running():
        spec = sim.bodies[name]["spec"]["template"]["spec"]
        body = {
            "metadata": {
                "name": name, "namespace": "shop",
                "labels": sim.bodies[name]["metadata"]["labels"] | {"job-name": name},
                "creationTimestamp": data.draw(objects.times),
            },
            "spec": {key: spec[key] for key in ("initContainers", "containers")},
            "status": data.draw(objects.pod_statuses),
        }  # fmt: skip
        sim.pods[name] = trim_job_pod(body).view
        ended = data.draw(
            st.lists(
                st.fixed_dictionaries(
                    {"type": st.sampled_from(["Complete", "Failed", "x"]), "status": st.just("True")},
                    optional={"reason": text, "message": text, "lastTransitionTime": objects.times},
                ),
                max_size=2,
            )
        )
        job = {"metadata": body["metadata"], "status": {"conditions": ended}}
        sim.jobs[name] = trim_job(job).view
    run(sim, 3)


def test_the_planner_is_the_one_of_the_operator() -> None:
    sim = Bodies()
    assert plan_model(sim.observed(), sim.now) == plan_model(sim.observed(), sim.now)
