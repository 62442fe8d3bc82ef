# SPDX-License-Identifier: Apache-2.0
"""Deployments that follow an SLMModel: which version is run, and what is kept when there is none."""

from dataclasses import replace
from typing import Any

import pytest

from slmops.api.source import HttpSource, Source
from slmops.api.spec import ModelSource
from slmops.model.offers import ModelOffer, OfferedVariant, OfferedVersion
from slmops.planning.follow import follow
from tests.unit.planning.fleet_checks import watch
from tests.unit.planning.profile_kit import ProfileSim, body_of, profile


def offered(version: str, *, accepted: bool = True, reason: str = "", message: str = "") -> OfferedVersion:
    variants = (
        OfferedVariant(name="int4", source=Source(http=HttpSource(url=f"http://models/{version}/int4.json"))),
    )
    return OfferedVersion(
        version=version, accepted=accepted, variants=variants, reason=reason, message=message
    )


def offer(*versions: OfferedVersion) -> ModelOffer:
    """The newest first."""
    return ModelOffer(name="orders", namespace="shop", versions=versions)


ALL = offer(
    offered("2.1", accepted=False, reason="Evaluating"), offered("2.0"), offered("1.9"), offered("1.8")
)


@pytest.mark.parametrize(
    ("source", "present", "expected"),
    [
        ({}, "", "2.0"),
        ({"channel": "Latest"}, "1.9", "2.0"),
        ({"versionPattern": "1.*"}, "", "1.9"),
        ({"versionPattern": "1.*"}, "2.0", "1.9"),
        ({"version": "1.8"}, "2.0", "1.8"),
        ({"version": "2.0"}, "2.0", "2.0"),
        ({}, "2.0", "2.0"),
        # The newest lost its approval: nobody goes back by himself.
        ({}, "2.1", "2.1 is no longer accepted and 2.0 is older"),
        # What is not offered any more is older than all that is, or of an SLMModel of before.
        ({}, "f3c0ffee00", "2.0"),
        ({}, "2.0-rc1", "2.0"),
        ({}, "3.0", "2.0"),
        ({"versionPattern": "2.?"}, "2.10", "2.0"),
        ({"versionPattern": "1.*"}, "1.10", "1.9"),
        # Nothing that could be taken.
        ({"versionPattern": "2.1"}, "", "version 2.1: Evaluating"),
        ({"version": "7"}, "", "has no version 7"),
    ],
)
def test_the_newest_accepted_version_that_matches_is_followed(
    source: dict[str, Any], present: str, expected: str
) -> None:
    followed = follow(ModelSource.model_validate({"name": "orders"} | source), ALL, present=present)
    if followed.version is not None:
        assert followed.version.version == expected and not followed.problem
    else:
        assert expected in followed.problem


def test_without_model_or_version_it_is_said() -> None:
    source = ModelSource(name="orders")
    assert "there is no SLMModel orders" in follow(source, None, present="").problem
    assert "has no version yet" in follow(source, offer(), present="").problem


def following(**source: Any) -> ProfileSim:
    sim = ProfileSim(body_of(model={"name": "orders", "from": {"name": "orders"} | source}))
    watch(sim)
    for name in "abc":
        sim.add_node(name)
    return sim


def test_a_new_accepted_version_is_rolled_out_and_goes_on_serving_without_its_model() -> None:
    sim = following()
    sim.offer = offer(offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.0"}
    sim.offer = offer(
        offered("1.1", accepted=False, reason="GateFailed", message="0.6 < 0.9"), offered("1.0")
    )
    sim.run(60)
    assert set(sim.versions().values()) == {"1.0"} and sim.condition("ModelResolved") == ("True", "Resolved")
    (resolved,) = [c for c in sim.status.conditions if c.type == "ModelResolved"]
    assert resolved.message.endswith("; version 1.1 is not taken: GateFailed: 0.6 < 0.9")
    sim.offer = offer(offered("1.1"), offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.1"}
    stable = sim.status.stable_revision

    sim.offer = offer(offered("1.1", accepted=False), offered("1.0"))
    sim.run(300)
    assert set(sim.versions().values()) == {"1.1"}, "nobody goes back because the newest lost its approval"
    assert sim.condition("ModelResolved") == ("False", "NoAcceptedVersion")
    assert sim.condition("Ready")[0] == "True" and sim.status.stable_revision == stable
    sim.restart_operator()
    sim.offer = None
    sim.run(300)
    assert set(sim.versions().values()) == {"1.1"} and sim.status.stable_revision == stable

    sim.offer = offer(offered("1.0"))
    sim.edit(model={"name": "orders", "from": {"name": "orders", "version": "1.0"}})
    sim.settle()
    assert set(sim.versions().values()) == {"1.0"}, "spec names it"


def test_a_rollout_goes_on_while_the_model_is_away() -> None:
    sim = following()
    sim.offer = offer(offered("1.0"))
    sim.settle()
    sim.offer = offer(offered("1.1"), offered("1.0"))
    assert sim.run_until(lambda: sim.step == "Soaking")
    sim.offer = None
    sim.settle()
    assert set(sim.versions().values()) == {"1.1"}
    assert "RolloutCancelled" not in sim.events()


def test_while_models_cannot_be_read_what_runs_is_kept() -> None:
    sim = following()
    sim.offer, sim.are_models_known = None, False
    sim.run(60)
    assert sim.condition("ModelResolved") == ("False", "ModelsUnknown") and sim.our_labels() == {}
    sim.offer = offer(offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.0"}, "one that was seen counts"
    sim.offer = None
    sim.run(60)
    assert sim.condition("ModelResolved") == ("False", "ModelsUnknown")
    assert set(sim.versions().values()) == {"1.0"} and sim.condition("Ready")[0] == "True"


def test_before_any_version_is_accepted_nothing_runs_and_it_is_said() -> None:
    sim = following()
    sim.offer = offer(offered("1.0", accepted=False, reason="Evaluating", message="job 2 of 3"))
    sim.run(60)
    assert sim.our_labels() == {} and sim.condition("Accepted")[0] == "True"
    (resolved,) = [c for c in sim.status.conditions if c.type == "ModelResolved"]
    assert (resolved.status, resolved.reason) == ("False", "NoAcceptedVersion")
    assert "version 1.0: Evaluating: job 2 of 3" in resolved.message
    sim.offer = offer(offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.0"}


def test_a_followed_model_has_variants_for_profiles_and_can_be_deleted() -> None:
    sim = following()
    sim.profiles = (profile("pi"),)
    sim.cluster.nodes["a"].labels["device"] = "pi"
    form = offered("1.0").variants[0]
    variants = (replace(form, name="npu", profiles=("pi",)), form)
    sim.offer = offer(replace(offered("1.0"), variants=variants))
    sim.settle()
    assert sim.variants() == {"a": "npu-pi", "b": "int4", "c": "int4"}
    sim.offer = None
    sim.delete()
    assert sim.run_until(lambda: sim.gone, limit_seconds=600)


def test_a_version_that_cannot_be_used_is_said_and_what_runs_is_looked_after() -> None:
    sim = following()
    form = offered("1.0").variants[0]
    bad = replace(offered("1.0"), variants=(replace(form, name="No Name"),))
    sim.offer = offer(bad)
    sim.run(30)
    (resolved,) = [c for c in sim.status.conditions if c.type == "ModelResolved"]
    assert (resolved.status, resolved.reason) == ("False", "VersionUnfit")
    assert "variant No Name of the SLMModel cannot be used" in resolved.message
    sim.offer = offer(offered("1.0"))
    sim.settle()
    stable = sim.status.stable_revision
    # Nobody has touched spec: the model offers what only a class takes that is not there.
    gone = replace(form, profiles=("npu",))
    sim.offer = offer(replace(offered("1.1"), variants=(gone,)), offered("1.0"))
    sim.run(60)
    assert sim.condition("Accepted")[0] == "True" and sim.condition("ModelResolved")[1] == "VersionUnfit"
    sim.add_node("d")
    sim.run(60)
    assert set(sim.versions()) == {"a", "b", "c", "d"} and set(sim.versions().values()) == {"1.0"}
    assert sim.status.stable_revision == stable


def judged(action: str) -> ProfileSim:
    """1.1 in the place of 1.0, with a rule of spec.feedback that it breaks soon."""
    sim = following()
    rule = {"name": "score", "metric": {"preset": "FeedbackScore"}, "min": "0.6", "action": action}
    sim.edit(feedback={"interval": "1m", "rules": [rule | {"window": "10m", "for": "5m"}]})
    sim.offer = offer(offered("1.0"))
    sim.settle()
    sim.offer = offer(offered("1.1"), offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.1"} and sim.condition("Accepted")[0] == "True"
    sim.cluster.behaviour("1.1").judged = 0.3
    return sim


def test_a_version_that_users_do_not_like_is_taken_back_until_there_is_a_newer_one() -> None:
    sim = judged("RollBack")
    assert sim.run_until(lambda: sim.version == "1.0"), sim.explain()
    sim.settle()
    sim.run(7200)
    assert set(sim.versions().values()) == {"1.0"}
    assert sim.condition("RolloutSucceeded") == ("False", "FeedbackFailed")
    sim.offer = offer(offered("1.2"), offered("1.1"), offered("1.0"))
    sim.settle()
    assert set(sim.versions().values()) == {"1.2"}


def test_a_hold_keeps_newer_versions_away() -> None:
    sim = judged("Hold")
    sim.run(600)
    sim.offer = offer(offered("1.2"), offered("1.1"), offered("1.0"))
    sim.run(3600)
    assert set(sim.versions().values()) == {"1.1"}
    assert sim.condition("Progressing") == ("False", "FeedbackHold")


def test_a_broken_rule_asks_for_a_newer_version_now_and_then() -> None:
    sim = judged("NewModelVersion")
    asked: set[str] = set()
    for _ in range(25):
        sim.run(1800)
        feedback = sim.status.feedback
        asked |= {feedback.look_asked_at} if feedback and feedback.look_asked_at else set()
    assert len(asked) == 3, "twelve and a half hours, at most every six"
    assert sim.condition("FeedbackHealthy") == ("False", "RuleViolated")
    assert set(sim.versions().values()) == {"1.1"} and not sim.status.failed_revisions
    sim.cluster.behaviour("1.1").judged = 0.9
    sim.run(12 * 3600)
    assert sim.status.feedback is not None and sim.status.feedback.look_asked_at in asked
