# SPDX-License-Identifier: Apache-2.0
"""Model test of what was made apart and meets in one fleet: overrides, privacy and feedback, with all that
`FleetMachine` does."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.profile_kit import GIB, ProfileSim, body_of, variant
from tests.unit.planning.test_plan_privacy import PrivacyMachine
from tests.unit.planning.test_plan_stateful import indices

OVERRIDES: list[list[dict[str, Any]] | None] = [
    None,
    [{"name": "lab", "sites": ["lab"], "runtime": {"slots": 1}}],
    [{"name": "shop", "sites": ["shop"], "runtime": {"slots": 2}}],
    [
        {"name": "labelled", "nodeSelector": {"matchLabels": {"marked": "yes"}}, "runtime": {"slots": 3}},
        {"name": "lab", "sites": ["lab", "abroad"], "resources": {"requests": {"memory": "1100Mi"}}},
    ],
]


def feedback(action: str) -> dict[str, Any]:
    rule = {"name": "score", "metric": {"preset": "FeedbackScore"}, "min": "0.6", "window": "10m"}
    return {"interval": "1m", "rules": [rule | {"for": "3m", "action": action}]}


class TogetherMachine(PrivacyMachine):
    """The same fleet, with overrides and rules of feedback."""

    @rule(overrides=st.sampled_from(OVERRIDES))
    def edit_overrides(self, overrides: list[dict[str, Any]] | None) -> None:
        self.sim.edit(overrides=overrides)

    @rule(index=indices)
    def mark(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            node.labels["marked"] = "no" if node.labels.get("marked") == "yes" else "yes"

    @rule(action=st.sampled_from(["", "Notify", "Hold", "RollBack", "RollBack"]))
    def edit_feedback(self, action: str) -> None:
        self.sim.edit(feedback=feedback(action) if action else None)

    @rule(index=indices, judged=st.sampled_from([0.9, 0.1, 0.1, None]))
    def judge(self, index: int, judged: float | None) -> None:
        version = self.versions[index % len(self.versions)]
        self.sim.cluster.behaviours[version].judged = judged

    @rule(action=st.sampled_from(["Hold", "RollBack", "RollBack"]), seconds=st.sampled_from([200, 320, 900]))
    def disappoint(self, action: str, seconds: float) -> None:
        """A version that was good once, and users turn away from it."""
        self.new_version("good")
        self.sim.run(1500)
        self.sim.edit(feedback=feedback(action))
        if self.sim.version:
            self.sim.cluster.behaviour(self.sim.version).judged = 0.1
        self.sim.run(seconds)

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.sim.edit(overrides=None, feedback=None)
        super().teardown()


TogetherMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a long life shrinks slowly
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestTogether = TogetherMachine.TestCase


def turned_away() -> ProfileSim:
    """A fleet that reaches nothing and has overrides, v2 in the place of v1, and users who turn away."""
    sim = ProfileSim(
        body_of(
            variant("int4", "800Mi"),
            overrides=OVERRIDES[1],
            privacy={"egress": "Denied", "allowedSites": ["lab", "shop"]},
            feedback=feedback("RollBack"),
        )
    )
    watch(sim, replan_every=0)
    for index, site in enumerate(("lab", "shop", "shop", "abroad")):
        sim.add_node(f"n{index}", labels={"site": site}, memory_bytes=(4 if index % 2 else 2) * GIB)
    sim.settle()
    changed = [variant("int4", "800Mi", version="v2")]
    sim.edit(model={"name": "orders", "version": "v2"}, variants=changed, overrides=OVERRIDES[3])
    sim.settle()
    assert sim.version == "v2" and set(sim.versions().values()) == {"v2", ""}, sim.explain()
    sim.cluster.behaviour("v2").judged = 0.1
    sim.run(150)
    return sim


@pytest.mark.parametrize("kill_after", range(0, 60, 9))
def test_the_way_back_to_other_overrides_is_found_whenever_the_operator_dies(kill_after: int) -> None:
    """The revision before has variants of other names; nodes hold its model and reach nothing else."""
    sim = turned_away()
    second = sim.status.stable_revision
    sim.kill_at = sim.writes + kill_after
    sim.run(3600)
    assert sim.kills == 1
    assert sim.variants() == {"n0": "int4-lab", "n1": "int4", "n2": "int4", "n3": ""}
    assert set(sim.versions().values()) == {"v1", ""} and sim.version == "v1"
    assert [(f.revision, f.reason) for f in sim.status.failed_revisions] == [(second, "FeedbackFailed")]
    assert sim.status.pinned is None and sim.step == "Completed"
