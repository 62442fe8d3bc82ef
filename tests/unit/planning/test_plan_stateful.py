# SPDX-License-Identifier: Apache-2.0
"""Model test: random fleets, faults, edits, restarts and kills. The checks of `fleet_checks` hold at
every look, and once the faults end the fleet converges."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from slmops.model.observed import OwnedKind
from slmwire.reasons import Reason
from tests.unit.planning.fleet_checks import Watch, is_meant
from tests.unit.planning.fleet_cluster import Behaviour, SimNode
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_spec import GIB, spec_body

MEMORY = {"one": GIB + GIB // 4, "both": 4 * GIB, "crowded": 4 * GIB, "unfit": GIB // 2}
KINDS: dict[str, dict[str, Any]] = {
    "good": {},
    "bad": {"score": 0.5},
    "silent": {"score": None},
    "crash": {"crashes": True},
    "oom": {"oom": True},
    "slow": {"start_seconds": 90.0},
    "unfetchable": {"fetch_error": Reason.SOURCE_UNAVAILABLE},
}
WAVES = [
    [{"name": "all", "percent": 100}],
    [{"name": "canary", "percent": 10}, {"name": "rest", "percent": 100}],
    [
        {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}, "emptyPolicy": "Skip"},
        {"name": "half", "percent": 50},
        {"name": "rest", "percent": 100},
    ],
    [
        {"name": "one", "count": 1, "approval": "Manual"},
        {"name": "half", "percent": 50, "maxPerSite": 2, "soak": "1m"},
        {"name": "grow", "exponential": {"startPercent": 20, "factor": 2}, "approval": "Manual"},
    ],
]
PLAIN = WAVES[1]
NEVER = [{"startTime": "03:00", "endTime": "03:01", "days": ["Sat"]}]  # the simulation begins on a Sunday
NOWHERE = [{"startTime": "00:00", "endTime": "24:00", "timeZone": "No/Where"}]  # Accepted is False
METRICS = [
    [{"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.03"}],
    [{"name": "quality", "preset": "EvaluationScore", "min": "0.9", "noDataLimit": 4}],
    [{"name": "restarts", "preset": "Restarts", "max": "0"}],
]
indices = st.integers(0, 1000)


class FleetMachine(RuleBasedStateMachine):
    """One deployment through whatever may happen to it."""

    sim: FleetSim

    @initialize(
        nodes=st.lists(st.sampled_from(sorted(MEMORY)), min_size=1, max_size=12),
        waves=st.sampled_from(WAVES),
        max_unavailable=st.sampled_from([1, 2, "30%", "100%"]),
        max_failures=st.sampled_from([0, 0, 1, "30%"]),
        policy=st.sampled_from(["Hold", "Rollback"]),
        per_site=st.sampled_from([None, None, 1, 2]),
        back=st.sampled_from([None, 1, "50%"]),
        strategy=st.sampled_from(["Waves", "Waves", "Waves", "Recreate"]),
        first=st.sampled_from(["good", "good", "good", "crash", "slow"]),
        second=st.sampled_from(["", *sorted(KINDS)]),
        places=st.sampled_from([None, None, 1, 2]),
    )
    def start(  # type: ignore[no-untyped-def]
        self,
        nodes,
        waves,
        max_unavailable,
        max_failures,
        policy,
        per_site,
        back,
        strategy,
        first,
        second,
        places,
    ) -> None:
        limits: dict[str, Any] = {"maxUnavailablePerSite": per_site} if per_site else {}
        spec = spec_body(
            **limits,
            strategy=strategy,
            rollback={"maxUnavailable": back} if back else {},
            waves=waves,
            maxUnavailable=max_unavailable,
            maxFailures=max_failures,
            onDeadline=policy,
            progressDeadline="20m",
        )
        if places:
            spec["distribution"] = {"maxConcurrentPerSite": places}
        self.watch = Watch()
        self.sim = FleetSim(spec, behaviours={"v1": Behaviour(**KINDS[first])})
        self.sim.checks.append(self.watch)
        self.added = self.edited = 1
        self.versions = ["v1"]
        for memory in nodes:
            self.add_node(memory, "lab" if self.added % 5 == 0 else "shop")
        if second:  # begin in the middle of things
            self.sim.run(300)
            self.new_version(second)
            self.sim.run(15)

    def some_node(self, index: int) -> SimNode | None:
        nodes = list(self.sim.cluster.nodes.values())
        return nodes[index % len(nodes)] if nodes else None

    @rule(memory=st.sampled_from(sorted(MEMORY)), site=st.sampled_from(["lab", "shop"]))
    def add_node(self, memory: str, site: str) -> None:
        others = 2 * GIB + GIB // 2 if memory == "crowded" else 0
        self.sim.add_node(
            f"n{self.added}", memory_bytes=MEMORY[memory], others_bytes=others, labels={"site": site}
        )
        self.added += 1

    @rule(index=indices)
    def remove_node(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            del self.sim.cluster.nodes[node.name]

    @rule(index=indices)
    def toggle_online(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            node.online = not node.online

    @rule(index=indices)
    def toggle_match(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            node.labels["slm"] = "no" if node.labels["slm"] == "yes" else "yes"

    @rule(index=indices)
    def tamper_with_labels(self, index: int) -> None:
        if (node := self.some_node(index)) is not None:
            for key in [key for key in node.labels if key.startswith(self.sim.names.label_prefix)]:
                del node.labels[key]
            self.watch.taken_down.discard(node.name)  # whoever did this took it down

    @rule(index=indices)
    def delete_object(self, index: int) -> None:
        keys = [k for k in sorted(self.sim.cluster.objects) if k[0] is not OwnedKind.CONTROLLER_REVISION]
        if keys:
            del self.sim.cluster.objects[keys[index % len(keys)]]

    @rule(kind=st.sampled_from(sorted(KINDS)))
    def new_version(self, kind: str) -> None:
        self.edited += 1
        version = f"v{self.edited}"
        self.sim.cluster.behaviours[version] = Behaviour(**KINDS[kind])
        self.versions.append(version)
        self.sim.set_version(version)

    @rule(index=indices)
    def old_version(self, index: int) -> None:
        self.sim.set_version(self.versions[index % len(self.versions)])

    @rule()
    def retry(self) -> None:
        self.sim.retry()

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.sim.edit(rollout={"paused": paused})

    @rule(waves=st.sampled_from(WAVES))
    def edit_waves(self, waves: list[dict[str, Any]]) -> None:
        self.sim.edit(rollout={"waves": waves})

    @rule(metrics=st.sampled_from(METRICS))
    def edit_metrics(self, metrics: list[dict[str, Any]]) -> None:
        self.sim.edit(rollout={"analysis": {"metrics": metrics}})

    @rule(windows=st.sampled_from([[], [], NEVER, NOWHERE]))
    def edit_windows(self, windows: list[dict[str, Any]]) -> None:
        self.sim.edit(rollout={"windows": windows})

    @rule(windows=st.sampled_from([[], [], NEVER]), places=st.sampled_from([None, 1, 2]))
    def edit_distribution(self, windows: list[dict[str, Any]], places: int | None) -> None:
        self.sim.edit(distribution={"windows": windows, "maxConcurrentPerSite": places})

    @rule(
        operation=st.sampled_from(["promote", "promote", "skip", "abort", "undo"]),
        tail=st.sampled_from(["", "", "/*", "/rest"]),
        index=indices,
    )
    def ask(self, operation: str, tail: str, index: int) -> None:
        views = sorted(self.sim.cluster.revision_views(), key=lambda view: view.number)
        rollout = self.sim.status.rollout
        if operation == "undo" and views:
            value = views[index % len(views)].revision
        else:
            value = (rollout.revision if rollout else "0123456789") + tail
        self.sim.annotations[f"slmops.dev/{operation}"] = f"{value}@{index}"

    @rule(text=st.sampled_from(["true", "false"]))
    def pause_by_annotation(self, text: str) -> None:
        self.sim.annotations["slmops.dev/paused"] = text

    @rule(error=st.sampled_from(["", "503"]))
    def provider(self, error: str) -> None:
        self.sim.provider_error = error

    @rule()
    def restart(self) -> None:
        self.sim.restart_operator()

    @rule(after=st.integers(0, 12))
    def kill_soon(self, after: int) -> None:
        self.sim.kill_at = self.sim.writes + after

    @rule(seconds=st.sampled_from([0.1, 1, 5, 20, 60, 60, 300, 300, 1500]))
    def let_time_pass(self, seconds: float) -> None:
        self.sim.run(seconds)

    @rule(seconds=st.sampled_from([0.3, 2, 6, 12, 12, 40]))
    def let_a_little_time_pass(self, seconds: float) -> None:
        self.sim.run(seconds)

    def teardown(self) -> None:
        if hasattr(self, "sim") and not self.watch.broken:
            converge(self.sim)


def converge(sim: FleetSim) -> None:
    """The faults end; every node must get where spec wants it, and nothing else may be left."""
    sim.provider_error, sim.kill_at = "", None
    for version in sim.cluster.behaviours:
        sim.cluster.behaviours[version] = Behaviour()
    for node in sim.cluster.nodes.values():
        node.online = True
    # Where no node serves stable any more, a comparison alone would wait for evidence for ever.
    metrics = [{"name": "quality", "preset": "EvaluationScore", "min": "0.9"}]
    plain = {"paused": False, "windows": [], "strategy": "Waves", "waves": PLAIN}
    sim.edit(rollout={**plain, "analysis": {"metrics": metrics}}, distribution={"windows": []})
    sim.annotations = {}
    sim.run(5 * 3600)
    if sim.status.pinned is not None:
        sim.ask("undo", sim.status.pinned.instead_of)
        sim.run(5 * 3600)
    target = sim.status.update_revision
    if any(entry.revision == target for entry in sim.status.failed_revisions):
        assert all(target not in sim.given(name) for name in sim.cluster.nodes), sim.explain()
        sim.retry()
        sim.run(5 * 3600)
    fit = {n.name for n in sim.cluster.nodes.values() if is_meant(sim, n) and n.memory_bytes >= GIB}
    if not fit:
        return
    assert sim.version == sim.spec.model.version, sim.explain()
    label = sim.names.serve_label(target)
    assert {k: v for k, v in sim.our_labels().items() if k in fit} == {n: {label: "int4"} for n in fit}
    assert set(sim.our_labels()) == fit, sim.explain()
    assert all(sim.cluster.serving(name) for name in fit)
    workloads = [name for kind, name in sim.cluster.objects if kind is OwnedKind.DAEMON_SET]
    assert workloads == [sim.names.workload(target, "int4")]
    assert sim.condition("Ready") == ("True", "AllNodesReady")
    assert sim.condition("Progressing") == ("False", "Complete")


FleetMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestFleet = FleetMachine.TestCase
