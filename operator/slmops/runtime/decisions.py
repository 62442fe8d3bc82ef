# SPDX-License-Identifier: Apache-2.0
"""The decision log: one structured line for each look that decided something, with what it knew.

A line can be read on its own: which step the rollout left and entered and why, the counts of the
wave, the running counts and the latest measurement of each metric, and how large the snapshot was.
"""

from typing import Any

from slmops.model.observed import Observed
from slmops.model.plan import PatchNodeLabels, Plan


def describe_decision(observed: Observed, plan: Plan, now: float) -> dict[str, Any] | None:
    """Fields of the line; None when the look decided nothing."""
    if not plan.transitions:
        return None
    old, new = observed.deployment.status, plan.status
    before, after = old.rollout, new.rollout
    progressing = next((c for c in new.conditions if c.type == "Progressing"), None)
    result: dict[str, Any] = {
        "generation": observed.deployment.generation,
        "at": now,
        "stable": new.stable_revision,
        "update": new.update_revision,
        "from": f"{before.revision} {before.step} {before.wave}" if before else "",
        "to": f"{after.revision} {after.step} {after.wave}" if after else "",
        "why": [f"{t.reason}: {t.message}" for t in plan.transitions],
        "progressing": f"{progressing.reason}: {progressing.message}" if progressing else "",
        "nodes": new.nodes.to_body(),
        "moves": sum(isinstance(action, PatchNodeLabels) for action in plan.actions),
        "writes": len(plan.actions),
        "seen": {
            "nodes": len(observed.nodes),
            "pods": len(observed.pods),
            "objects": len(observed.owned),
            "readings": len(observed.readings),
            "jobs": len(observed.jobs),
        },
    }
    if new.feedback is not None:
        result["feedback"] = new.feedback.to_body()
    if new.adaptation is not None:
        result["adaptation"] = new.adaptation.to_body()
    if after is not None and after.waves:
        result["wave"] = after.waves[after.wave].to_body()
        result["metrics"] = [state.to_body() for state in after.metrics]
        latest = {entry.metric: entry for entry in after.measurements}
        result["measurements"] = [entry.to_body() for entry in latest.values()]
    return result
