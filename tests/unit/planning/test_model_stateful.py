# SPDX-License-Identifier: Apache-2.0
"""An SLMModel under everything at once: Jobs end in any order, the operator dies between any two writes.

What the Jobs report follows from what they are about, so the end does not depend on the way.
"""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slmops.api.slmmodel_status import ModelVersionStatus
from slmwire.jobs import EvaluateReport
from slmwire.reasons import Reason, Termination
from tests.unit.planning.model_sim import GOOD, ModelSim, source_failure, spec_body

RECIPES: dict[str, Any] = {
    "fp16": {"name": "fp16", "profiles": ["pi5", "nuc"]},
    "int8": {"name": "int8", "steps": [{"quantizeInt8": {}}], "profiles": ["nuc"]},
    "int4": {"name": "int4", "steps": [{"quantizeInt4": {}}], "profiles": ["pi5"]},
    "poor": {"name": "poor", "steps": [{"prune": {"sparsityPercent": 90}}], "profiles": ["pi5", "nuc"]},
    "broken": {"name": "broken", "steps": [{"slice": {"headsPercent": 90}}]},
}
VERSIONS = 3


def report_of(sim: ModelSim, name: str) -> EvaluateReport:
    """What this Job measures, whenever it does."""
    labels = sim.labels(name)
    quality = {"fp16": 0.9, "int8": 0.895, "int4": 0.88, "poor": 0.3}.get(labels["variant"], 0.9)
    memory = 2**31 if (labels["variant"], labels.get("profile")) == ("fp16", "pi5") else 400_000_000
    return replace(GOOD, exact_match=quality, memory_bytes=memory)


def finish(sim: ModelSim, name: str) -> None:
    """The end that this Job comes to."""
    if sim.labels(name)["variant"] == "broken" and sim.jobs[name].work == "optimise":
        message = Termination(reason=Reason.UNFIT.value, message="too few heads").to_json()
        sim.fail(name, "step-0", message)
    elif sim.jobs[name].work == "optimise":
        sim.finish(name)
    else:
        sim.finish(name, report_of(sim, name))


def work_off(sim: ModelSim) -> None:
    """Time passes until nothing is left to do."""
    for _ in range(200):
        plan = sim.settle()
        if sim.running():
            for name in sim.running():
                finish(sim, name)
        elif sim.newest.reason == "InProgress" and plan.requeue_after_seconds is not None:
            sim.now += plan.requeue_after_seconds
        elif sim.newest.reason != "InProgress":
            return
    raise AssertionError(f"never decided: {sim.newest}")


def outcome(version: ModelVersionStatus) -> dict[str, Any]:
    """What counts of a version, whenever and with how many attempts it came about."""
    return {
        "accepted": version.accepted,
        "reason": version.reason,
        "message": version.message,
        "variants": [
            (
                variant.name,
                variant.step,
                variant.digest,
                variant.reason,
                sorted((e.profile, e.verdict, e.exact_match, e.message) for e in variant.evaluations),
            )
            for variant in version.variants
        ],
    }


class ModelMachine(RuleBasedStateMachine):
    """One model from its creation on."""

    @initialize(
        names=st.lists(st.sampled_from(sorted(RECIPES)), min_size=1, max_size=4, unique=True),
        parallelism=st.integers(1, 2),
        loss=st.sampled_from(["0.01", "5%", "0.9"]),
    )
    def begin(self, names: list[str], parallelism: int, loss: str) -> None:
        self.sim = ModelSim(
            spec=spec_body(
                recipes=[RECIPES[name] for name in names],
                jobs={"parallelism": parallelism, "backoffLimit": 10},
                gates={"maxQualityLoss": loss, "maxMemory": "1Gi"},
                versionHistoryLimit=VERSIONS,
            )
        )
        self.failures = 0

    @rule()
    def look(self) -> None:
        self.sim.look()

    @rule(writes=st.integers(0, 4))
    def die(self, writes: int) -> None:
        self.sim.look(writes=writes)
        self.sim.forget()

    @rule(data=st.data())
    def end_job(self, data: st.DataObject) -> None:
        names = self.sim.running()
        if names:
            finish(self.sim, data.draw(st.sampled_from(names)))

    @rule(data=st.data(), how=st.sampled_from(["source", "lost", "vanished"]))
    def break_job(self, data: st.DataObject, how: str) -> None:
        names = self.sim.running()
        if not names or self.failures >= 6:
            return
        self.failures += 1
        name = data.draw(st.sampled_from(names))
        if how == "source":
            self.sim.fail(name, "fetch", source_failure())
        elif how == "lost":
            self.sim.lose(name)
        else:
            del self.sim.jobs[name], self.sim.pods[name]  # somebody deleted it

    @rule(seconds=st.sampled_from([1, 60, 700, 4000]))
    def wait(self, seconds: int) -> None:
        self.sim.now += seconds

    @rule(letter=st.sampled_from("abcd"))
    def push(self, letter: str) -> None:
        self.sim.commit = letter * 40

    @rule(name=st.sampled_from(sorted(RECIPES)))
    def change_recipes(self, name: str) -> None:
        recipes = [recipe for recipe in self.sim.spec["recipes"] if recipe["name"] != name]
        if len(recipes) == len(self.sim.spec["recipes"]):
            recipes.append(RECIPES[name])
        if recipes:
            self.sim.spec["recipes"] = recipes
            self.sim.generation += 1

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.sim.spec["paused"] = paused

    @rule()
    def retry(self) -> None:
        self.sim.annotations["slmops.dev/retry"] = f"{self.sim.now}"

    @invariant()
    def one_job_for_each_work(self) -> None:
        sim = getattr(self, "sim", None)
        if sim is None:
            return
        seen: set[tuple[Any, ...]] = set()
        current = {v.version for v in sim.status.versions[:1]}
        for name in sim.running():
            labels = sim.labels(name)
            if labels["version"] not in current:
                continue  # about to be deleted
            work = (labels["work"], labels["version"], labels["variant"], labels.get("profile"))
            assert work not in seen, work
            seen.add(work)
        made = [name for name in sim.running("optimise") if sim.labels(name)["version"] in current]
        assert len(made) <= sim.spec["jobs"]["parallelism"]

    @invariant()
    def accepted_means_passed(self) -> None:
        sim = getattr(self, "sim", None)
        if sim is None:
            return
        for version in sim.status.versions:
            if not version.accepted:
                continue
            assert any(variant.step == "Accepted" for variant in version.variants)
            for variant in version.variants:
                assert variant.step in ("Accepted", "Rejected", "Failed")
                if variant.step == "Accepted":
                    assert variant.source is not None and variant.digest
                    passed = [e for e in variant.evaluations if e.verdict == "Pass"]
                    assert passed and all(e.measured_at for e in passed)
                    assert all((e.memory_bytes or 0) <= 2**30 for e in passed)

    @invariant()
    def status_is_bounded(self) -> None:
        sim = getattr(self, "sim", None)
        if sim is not None:
            assert len(sim.status.versions) <= VERSIONS + 1
            names = [version.version for version in sim.status.versions]
            assert len(set(names)) == len(names)

    def teardown(self) -> None:
        sim = getattr(self, "sim", None)
        if sim is None:
            return
        sim.spec["paused"] = False
        sim.settle()
        sim.now += 601  # what was found out before the latest push is looked at again
        work_off(sim)
        if any(
            variant.reason not in ("", "GateFailed", "NoReference", "Unfit")
            for variant in sim.newest.variants
        ):
            return  # attempts ran out
        calm = ModelSim(spec=sim.spec, commit=sim.commit)
        work_off(calm)
        expected = outcome(calm.newest)
        got = outcome(sim.newest)
        published = {v.name for v in sim.newest.variants if v.source is not None and v.source.oci is not None}
        for both in (expected, got):  # the tag, and so the fake digest, has the version's name in it
            both["variants"] = [
                (name, step, "" if name in published else digest, *rest)
                for name, step, digest, *rest in both["variants"]
            ]
        assert got == expected


TestModel = ModelMachine.TestCase
TestModel.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
