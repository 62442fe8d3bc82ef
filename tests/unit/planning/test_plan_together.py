# SPDX-License-Identifier: Apache-2.0
"""Model test of what was made apart and meets in one fleet: overrides, privacy and feedback, with all that
`FleetMachine` does."""

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

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
