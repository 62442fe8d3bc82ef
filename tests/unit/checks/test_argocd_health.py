# SPDX-License-Identifier: Apache-2.0
"""Argo CD's health of our kinds: the scripts of manifests/argocd in a real Lua, for every state that exists.

Lua 5.1 is what Argo CD's interpreter speaks. As there, no more than the base and table libraries are open.
"""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from lupa import lua51

from e2e.checks.argocd import CONFIG_MAP, SCRIPTED, read_script
from slmops.api.reference import condition_texts
from slmops.api.slmmodel_status import ModelConditionType
from slmops.api.status import ConditionType
from slmops.planning import conditions
from slmops.planning.transitions import HOLDS
from slmwire.reasons import Reason
from tests.unit.planning.fleet_cluster import Behaviour
from tests.unit.planning.fleet_sim import FleetSim, Look
from tests.unit.planning.fleet_situations import installed
from tests.unit.planning.fleet_spec import spec_body
from tests.unit.planning.model_sim import GOOD, ModelSim
from tests.unit.planning.model_sim import spec_body as model_body
from tests.unit.planning.replica_sim import ReplicaSim, replica_spec
from tests.unit.planning.test_feedback import judge, upgraded

Body = dict[str, Any]
Triple = tuple[str, str, str]
HEALTHY, PROGRESSING, DEGRADED, SUSPENDED = "Healthy", "Progressing", "Degraded", "Suspended"
PLANNING: Final = Path(conditions.__file__).parent


def run_script(kind: str, obj: Mapping[str, Any]) -> tuple[str, str]:
    """Status and message that the kind's script gives for an object."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    closed = "string", "math", "os", "io", "debug", "coroutine"
    for name in closed:
        lua.globals()[name] = None
    lua.globals().obj = lua.table_from(json.loads(json.dumps(obj)), recursive=True)
    found = lua.execute(read_script(kind))
    return found.status, found.message


def deployment(said: Mapping[str, tuple[str, str]], *, generation: int = 3, **spec: Any) -> Body:
    return {
        "metadata": {"generation": 3},
        "spec": {"model": {"name": "orders", "version": "v1"}, **spec},
        "status": {"observedGeneration": generation, "conditions": conditions_of(said)},
    }


def conditions_of(said: Mapping[str, tuple[str, str]]) -> list[Body]:
    return [
        {"type": kind, "status": status, "reason": reason, "message": f"about {reason}"}
        for kind, (status, reason) in said.items()
    ]


STILL: Final = {
    "Accepted": ("True", "Accepted"),
    "ModelResolved": ("True", "Resolved"),
    "Ready": ("True", "AllNodesReady"),
    "Progressing": ("False", "Complete"),
    "RolloutSucceeded": ("True", "Promoted"),
}
"""A deployment about which there is nothing to say."""
MOVING: Final = STILL | {"Progressing": ("True", "Analysing"), "RolloutSucceeded": ("Unknown", "InProgress")}


def table(text: str) -> dict[Triple, str]:
    """`Type Status Reason...: Health` in lines."""
    result: dict[Triple, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        names, _, health = line.partition(": ")
        kind, status, *reasons = names.split()
        result |= {(kind, status, reason): health for reason in reasons}
    return result


EXPECTED: Final = table("""
    Accepted True Accepted: Healthy
    Accepted False InvalidSpec InvalidName HostPathNotAllowed FilePathNotAllowed InvalidWaves: Degraded
    Accepted False InvalidWindow SourceHostNotAllowed: Degraded
    Accepted False InvalidQuery ProviderNotAllowed NoVariantFits: Degraded
    ModelResolved True Resolved: Healthy
    ModelResolved False SourceUnavailable AccessDenied RateLimited IntegrityMismatch Unfit: Degraded
    ModelResolved False SignatureInvalid InternalError VersionUnfit ModelsUnknown ProfilesUnknown: Degraded
    ModelResolved False NoAcceptedVersion: Progressing
    SignatureVerified True Verified: Healthy
    SignatureVerified False SignatureInvalid: Degraded
    Ready True AllNodesReady ScaledToZero: Healthy
    Ready False NodesNotReady NotAccepted ModelNotResolved Deleting: Progressing
    Ready False NodesOffline NoMatchingNodes: Degraded
    Progressing True Installing Prefetching Flipping Soaking Analysing RollingBack: Progressing
    Progressing True Converging Resolving: Progressing
    Progressing False Complete: Healthy
    Progressing False Paused AwaitingApproval OutsideWindow: Suspended
    Progressing False QuorumMissing NoBaseline NoData Inconclusive ProviderError NotAccepted: Progressing
    Progressing False DeadlineExceeded StableUnhealthy NoMatchingNodes ModelNotResolved: Degraded
    Progressing False FeedbackHold: Degraded
    RolloutSucceeded True Promoted: Healthy
    RolloutSucceeded False AnalysisFailed NodesFailed DeadlineExceeded Aborted FeedbackFailed: Degraded
    RolloutSucceeded False Pinned: Suspended
    RolloutSucceeded Unknown InProgress: Progressing
    FeedbackHealthy True Healthy: Healthy
    FeedbackHealthy Unknown Measuring Pending NoData Inconclusive ProviderError NotServing: Healthy
    FeedbackHealthy False RuleViolated: Healthy
    FeedbackHealthy False FeedbackHold RollbackBlocked: Degraded
    FeedbackHealthy False RollingBack: Progressing
    AdaptationHealthy True Collecting Training Adapted: Healthy
    AdaptationHealthy Unknown NotServing: Healthy
    AdaptationHealthy False Unsupported TrainingFailed AdapterRolledBack: Healthy
""")
"""What each condition means when the others are as in STILL."""
UNSURE: Final = {("ModelResolved", "Unknown", "Resolving"), ("SignatureVerified", "Unknown", "Verifying")}
"""Say nothing by themselves: checks are made again after a restart of the operator; where something hangs on
them, Progressing says so."""


def documented(kinds: Any) -> set[Triple]:
    """Type, status and reason of all conditions, as the API's own text lists them."""
    found = set()
    for kind, text in condition_texts(kinds):
        reasons = text.partition("Reasons: ")[2]
        begin = 0
        for mark in re.finditer(r"\((True|False|Unknown)[^)]*\)", reasons):
            names = re.sub(r"\([^)]*\)", "", reasons[begin : mark.start()])
            found |= {(kind, mark[1], reason) for reason in re.findall(r"\b[A-Z][A-Za-z]+\b", names)}
            begin = mark.end()
    return found


def test_the_table_knows_every_condition_that_the_api_documents() -> None:
    assert documented(ConditionType) == EXPECTED.keys() | UNSURE


def test_the_scripts_in_the_config_map_are_the_files() -> None:
    data = yaml.safe_load(CONFIG_MAP.read_text())["data"]
    assert data == {
        f"resource.customizations.health.slmops.dev_{kind}": read_script(kind) for kind in SCRIPTED
    }


@pytest.mark.parametrize("triple", sorted(EXPECTED), ids=".".join)
def test_each_condition_has_its_health_and_is_quoted(triple: Triple) -> None:
    kind, status, reason = triple
    health, message = run_script("SLMDeployment", deployment(STILL | {kind: (status, reason)}))
    assert health == EXPECTED[triple]
    assert health == HEALTHY or message == f"{reason}: about {reason}"


@pytest.mark.parametrize("kind", ["FeedbackHealthy", "AdaptationHealthy"])
def test_what_is_wrong_and_stops_nothing_is_told(kind: str) -> None:
    reason = {"FeedbackHealthy": "RuleViolated", "AdaptationHealthy": "TrainingFailed"}[kind]
    told = run_script("SLMDeployment", deployment(STILL | {kind: ("False", reason)}))
    assert told == (HEALTHY, f"{reason}: about {reason}")


@pytest.mark.parametrize("triple", sorted(UNSURE), ids=".".join)
def test_a_check_that_is_made_again_changes_nothing(triple: Triple) -> None:
    kind, status, reason = triple
    assert run_script("SLMDeployment", deployment(STILL | {kind: (status, reason)}))[0] == HEALTHY
    moving = MOVING | {kind: (status, reason), "Progressing": ("True", "Resolving")}
    assert run_script("SLMDeployment", deployment(moving))[0] == PROGRESSING


@pytest.mark.parametrize("reason", sorted(HOLDS))
def test_every_hold_of_a_rollout_is_in_the_table(reason: str) -> None:
    held = MOVING | {"Progressing": ("False", reason)}
    assert run_script("SLMDeployment", deployment(held))[0] == EXPECTED["Progressing", "False", reason]


def test_every_reason_that_the_planner_writes_is_in_the_table() -> None:
    """Literals in the code; what is computed comes from the enumerations, which other tests go through."""
    known = {reason for _, _, reason in EXPECTED.keys() | UNSURE}
    files = [PLANNING / name for name in ("conditions.py", "plan.py", "deletion.py")]
    files += [path for path in PLANNING.glob("*.py") if re.search(r"\bHold\(", path.read_text())]
    for path in files:
        assert literal_reasons(path, {"Says", "Hold"}) - known == set(), path.name
    findings = {r for path in PLANNING.glob("*.py") for r in literal_reasons(path, {"Finding"})}
    judged = {reason for kind, _, reason in EXPECTED if kind in ("Accepted", "ModelResolved")}
    assert findings - judged == set()
    assert len(findings) > 8


def literal_reasons(path: Path, calls: set[str]) -> set[str]:
    return {
        str(keyword.value.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
        for keyword in node.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    }


@pytest.mark.parametrize("reason", [*Reason, "CrashLoopBackOff", "Unschedulable", "OOMKilled"])
def test_a_node_that_cannot_serve_counts_unless_a_wave_is_judged(reason: str) -> None:
    broken = {"Ready": ("False", str(reason))}
    for progressing, health in {
        ("False", "Complete"): DEGRADED,
        ("True", "Installing"): DEGRADED,
        ("True", "Converging"): DEGRADED,
        ("True", "Flipping"): PROGRESSING,
        ("True", "RollingBack"): PROGRESSING,
    }.items():
        said = MOVING | broken | {"Progressing": progressing}
        assert run_script("SLMDeployment", deployment(said))[0] == health, progressing


def test_a_spec_that_was_not_looked_at_is_in_progress() -> None:
    for obj in (
        {"metadata": {"generation": 1}, "spec": {}},
        {"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 0}},
        deployment(STILL, generation=2),
        deployment({}),
    ):
        for kind in SCRIPTED:
            assert run_script(kind, obj)[0] == PROGRESSING


def test_what_must_be_mended_comes_before_what_waits() -> None:
    failed = {"RolloutSucceeded": ("False", "AnalysisFailed")}
    for said in (
        STILL | failed | {"Progressing": ("False", "Paused")},
        STILL | failed | {"Progressing": ("True", "RollingBack")},
        STILL | {"Accepted": ("False", "InvalidWaves"), "Progressing": ("False", "NotAccepted")},
    ):
        assert run_script("SLMDeployment", deployment(said))[0] == DEGRADED


def test_a_signature_that_only_warns_degrades_nothing() -> None:
    said = STILL | {"SignatureVerified": ("False", "SignatureInvalid")}
    for policy, health in {"Warn": HEALTHY, "Require": DEGRADED}.items():
        model = {"name": "orders", "signature": {"policy": policy}}
        assert run_script("SLMDeployment", deployment(said, model=model))[0] == health


# What the planner says of a fleet that it leads


def watched(sim: FleetSim) -> list[str]:
    """The healths that the fleet goes through from now on, each change once.

    A Healthy one must be true: every reachable node serves the version of spec and nothing else.
    """
    seen: list[str] = []

    def look(sim: FleetSim, look: Look) -> None:
        status = look.plan.status
        body = {"metadata": {"generation": sim.generation}, "spec": sim.spec_body, "status": status.to_body()}
        health, message = run_script("SLMDeployment", body)
        if seen[-1:] != [health]:
            seen.append(health)
        if health == HEALTHY:
            online = [name for name, node in sim.cluster.nodes.items() if node.online]
            versions = {sim.versions()[name] for name in online}
            assert versions == {sim.spec.model.version}, f"{message}\n{sim.explain()}"
        if status.update_revision in {failed.revision for failed in status.failed_revisions}:
            assert health == DEGRADED, f"{message}\n{sim.explain()}"

    sim.checks.append(look)
    return seen


def test_a_fleet_that_is_installed_and_updated() -> None:
    sim = FleetSim(spec_body())
    sim.add_node("n0")
    sim.add_node("n1")
    seen = watched(sim)
    sim.settle()
    sim.set_version("v2")
    sim.settle()
    assert seen == [PROGRESSING, HEALTHY, PROGRESSING, HEALTHY]


BAD: Final = (
    Behaviour(score=0.2),
    Behaviour(crashes=True),
    Behaviour(fetch_error=Reason.INTEGRITY_MISMATCH),
)


@pytest.mark.parametrize("behaviour", BAD, ids=["score", "crashes", "cannot be fetched"])
def test_a_bad_version_is_degraded_until_git_goes_back(behaviour: Behaviour) -> None:
    sim = installed(3, behaviours={"v2": behaviour}, prefetchDeadline="10m", onDeadline="Rollback")
    seen = watched(sim)
    sim.set_version("v2")
    sim.settle()
    assert seen == [PROGRESSING, DEGRADED]
    sim.run(3600)
    sim.set_version("v1")
    sim.settle()
    assert seen[:2] == [PROGRESSING, DEGRADED]
    assert seen[-1] == HEALTHY
    assert SUSPENDED not in seen


def test_who_waits_for_a_person_is_suspended() -> None:
    waves = [{"name": "canary", "percent": 10}, {"name": "rest", "percent": 100, "approval": "Manual"}]
    sim = installed(3, waves=waves)
    seen = watched(sim)
    sim.set_version("v2")
    sim.run(900)
    assert seen == [PROGRESSING, SUSPENDED]
    assert sim.ask("promote", f"{sim.status.update_revision}/rest").outcome == "Done"
    sim.settle()
    assert seen == [PROGRESSING, SUSPENDED, PROGRESSING, HEALTHY]
    sim.edit(rollout={"paused": True})
    sim.run(60)
    assert seen[-1] == SUSPENDED


def test_going_back_by_hand_is_suspended_while_git_says_otherwise() -> None:
    sim = installed(2)
    sim.set_version("v2")
    sim.settle()
    assert sim.ask("undo", sim.revision_of("v1")).outcome == "Done"
    sim.settle()
    assert health_of(sim)[0] == SUSPENDED
    sim.set_version("v3")
    seen = watched(sim)
    sim.settle()
    assert seen[-1] == HEALTHY


def test_a_model_that_suits_no_node_and_one_without_nodes_are_degraded() -> None:
    sim = FleetSim(spec_body(memory="64Gi"))
    sim.add_node("n0")
    sim.run(120)
    assert health_of(sim)[0] == DEGRADED
    sim = FleetSim(spec_body())
    sim.run(120)
    assert health_of(sim) == (
        DEGRADED,
        "NoMatchingNodes: no node matches spec.placement.nodeSelector",
    )


def test_a_first_version_that_crashes_is_degraded_although_it_goes_on_trying() -> None:
    sim = FleetSim(spec_body(), behaviours={"v1": Behaviour(crashes=True)})
    sim.add_node("n0")
    sim.run(600)
    assert health_of(sim)[0] == DEGRADED


def test_a_node_that_is_away_does_not_degrade_the_others() -> None:
    sim = installed(3)
    seen = watched(sim)
    sim.set_online("n0", online=False)
    sim.run(120)
    assert set(seen) == {HEALTHY}
    for name in ("n1", "n2"):
        sim.set_online(name, online=False)
    sim.run(120)
    assert seen[-1] == DEGRADED


def test_a_source_that_does_not_answer_is_degraded_and_heals() -> None:
    sim = installed(2)
    sim.unresolvable.add("v2")
    seen = watched(sim)
    sim.set_version("v2")
    sim.run(60)
    assert seen == [PROGRESSING, DEGRADED]
    sim.unresolvable.clear()
    sim.settle()
    assert seen[-1] == HEALTHY


def test_a_revision_that_users_judged_badly_is_degraded_until_git_goes_back() -> None:
    sim = upgraded("RollBack")
    seen = watched(sim)
    judge(sim, "v2", 0.3)
    assert sim.run_until(lambda: bool(sim.status.failed_revisions))
    sim.settle()
    assert seen == [HEALTHY, PROGRESSING, DEGRADED]
    sim.set_version("v1")
    sim.settle()
    assert seen[-1] == HEALTHY


def test_a_rule_that_stops_rollouts_is_degraded_and_one_that_only_tells_is_not() -> None:
    for action, health in {"Hold": DEGRADED, "Notify": HEALTHY}.items():
        sim = upgraded(action)
        seen = watched(sim)
        judge(sim, "v2", 0.3)
        assert sim.run_until(lambda sim=sim: sim.condition("FeedbackHealthy")[0] == "False")  # type: ignore[misc]
        sim.run(600)
        assert seen[-1] == health
        sim.set_version("v3")
        sim.run(3600)
        assert seen[-1] == health
        judge(sim, "v2", 0.9)
        sim.run(3600)
        assert seen[-1] == HEALTHY


def test_nodes_at_sites_that_are_not_allowed_are_not_waited_for() -> None:
    sim = FleetSim(spec_body() | {"privacy": {"allowedSites": ["paris"]}})
    for name in ("paris", "berlin"):
        sim.add_node(name, labels={"site": name})
    seen: list[str] = []
    sim.run(10)
    for _ in range(100):
        body = {
            "metadata": {"generation": sim.generation},
            "spec": sim.spec_body,
            "status": sim.status.to_body(),
        }
        seen.append(run_script("SLMDeployment", body)[0])
        sim.run(10)
    assert seen[-1] == HEALTHY and DEGRADED not in seen


def test_a_deployment_scaled_to_zero_is_healthy_from_the_first_revision_on() -> None:
    sim = ReplicaSim(replica_spec(replicas=0))
    sim.add_node("n0")
    sim.run(60)
    assert health_of(sim) == (HEALTHY, "ScaledToZero: spec.placement.replicas is 0")
    sim.edit(placement={"replicas": 2})
    sim.settle()
    assert health_of(sim) == (HEALTHY, "AllNodesReady: 2 of 2 node(s) serve")
    sim.edit(placement={"replicas": 0})
    sim.run(60)
    assert health_of(sim)[0] == HEALTHY


def health_of(sim: FleetSim) -> tuple[str, str]:
    body = {
        "metadata": {"generation": sim.generation},
        "spec": sim.spec_body,
        "status": sim.status.to_body(),
    }
    return run_script("SLMDeployment", body)


# SLMModel


def model_health(sim: ModelSim) -> tuple[str, str]:
    body = {"metadata": {"generation": sim.generation}, "spec": sim.spec, "status": sim.status.to_body()}
    return run_script("SLMModel", body)


def test_a_model_is_in_progress_until_a_version_is_accepted() -> None:
    sim = ModelSim()
    sim.settle()
    assert model_health(sim)[0] == PROGRESSING
    sim.work_off()
    assert sim.newest.accepted
    assert model_health(sim)[0] == HEALTHY
    sim.generation += 1
    assert model_health(sim)[0] == PROGRESSING, "the operator has not seen it"


def test_a_model_whose_gates_fail_is_degraded_though_an_earlier_version_is_offered() -> None:
    sim = ModelSim()
    sim.work_off()
    sim.commit = "b" * 40
    sim.now += 3600
    sim.settle()
    assert model_health(sim)[0] == PROGRESSING
    assert sim.condition("Ready")[:2] == ("True", "EarlierVersion")
    sim.work_off(lambda _: replace(GOOD, memory_bytes=1 << 40))
    health, message = model_health(sim)
    assert health == DEGRADED
    assert "GateFailed" in message


def test_a_model_that_waits_for_a_person_is_suspended() -> None:
    sim = ModelSim(spec=model_body(policy="Manual"))
    sim.work_off()
    health, message = model_health(sim)
    assert health == SUSPENDED
    assert "slmops.dev/accept" in message
    sim = ModelSim(spec=model_body(paused=True))
    sim.settle()
    assert model_health(sim)[0] == SUSPENDED


def test_a_model_whose_source_does_not_answer_is_degraded() -> None:
    sim = ModelSim(failing={"hf": Reason.SOURCE_UNAVAILABLE})
    sim.settle()
    assert model_health(sim)[0] == DEGRADED


MODEL_EXPECTED: Final = table("""
    Accepted True Accepted: Healthy
    Accepted False InvalidSpec FilePathNotAllowed SourceHostNotAllowed OptimizerImageMissing: Degraded
    SourceResolved True Resolved: Healthy
    SourceResolved Unknown Resolving: Progressing
    SourceResolved False DatasetUnfit SourceUnavailable AccessDenied RateLimited IntegrityMismatch: Degraded
    SourceResolved False Unfit SignatureInvalid InternalError: Degraded
    Ready True VersionAccepted: Healthy
    Ready True EarlierVersion: Progressing
    Ready False NoVersion InProgress NotAccepted: Progressing
    Ready False GateFailed VariantFailed Superseded: Degraded
    Ready False AwaitingAcceptance Paused: Suspended
""")
DETAILS: Final = {"Optimised", "Evaluated"}
"""Conditions that say where the newest version stands; its verdict, which follows from them, is Ready's."""


def test_the_table_knows_every_condition_of_a_model_that_the_api_documents() -> None:
    assert {t for t in documented(ModelConditionType) if t[0] not in DETAILS} == MODEL_EXPECTED.keys()


@pytest.mark.parametrize("triple", sorted(MODEL_EXPECTED), ids=".".join)
def test_each_condition_of_a_model_has_its_health(triple: Triple) -> None:
    kind, status, reason = triple
    said = {
        "Accepted": ("True", "Accepted"),
        "SourceResolved": ("True", "Resolved"),
        "Ready": ("True", "VersionAccepted"),
    } | {kind: (status, reason)}
    why = {"EarlierVersion": "InProgress", "NotAccepted": ""}.get(said["Ready"][1], said["Ready"][1])
    newest = {"version": "v1", "accepted": why == "VersionAccepted", "reason": why}
    versions = [] if reason in ("NoVersion", "NotAccepted") else [newest]
    body = {
        "metadata": {"generation": 1},
        "spec": {},
        "status": {"observedGeneration": 1, "conditions": conditions_of(said), "versions": versions},
    }
    health, message = run_script("SLMModel", body)
    assert health == MODEL_EXPECTED[triple]
    assert health == HEALTHY or message == f"{reason}: about {reason}"
