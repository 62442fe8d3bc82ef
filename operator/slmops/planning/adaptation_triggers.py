# SPDX-License-Identifier: Apache-2.0
"""Why a site trains: a rule of spec.feedback that has fired, a person, or a new version of the model."""

from collections.abc import Iterable
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.adaptation import Adaptation
from slmops.api.feedback_status import FeedbackRuleStatus, FeedbackStatus
from slmops.planning import times
from slmops.planning.adaptation_jobs import base_digest_of
from slmops.planning.adaptation_sites import find_site
from slmops.planning.adapters import trained_in
from slmops.planning.analysis import Verdict
from slmops.planning.decision import FINISHED, Decision
from slmops.planning.examples_mount import keeps_examples
from slmops.planning.finding import Finding
from slmops.planning.operations import Standing
from slmops.planning.resolution import Resolution
from slmops.planning.revision import Revision, RevisionVariant

ACTION: Final = "TrainAdapter"
REST_SECONDS: Final = 5.0


def fired_rules(
    spec: SLMDeploymentSpec, feedback: FeedbackStatus | None, stable: Revision | None
) -> list[FeedbackRuleStatus]:
    """Rules about the stable revision that have fired and are to make sites train."""
    if spec.feedback is None or feedback is None or stable is None or feedback.revision != stable.revision:
        return []
    named = {rule.name for rule in spec.feedback.rules if rule.action == ACTION}
    return [state for state in feedback.rules if state.name in named and state.fired_at is not None]


def blamed_sites(
    adaptation: Adaptation, fired: Iterable[FeedbackRuleStatus], stable: Revision | None
) -> frozenset[str]:
    """Sites that train for rules that have fired, by the variant that decided last.

    Where it is of no site that takes part, or there is none, all of them are meant. A measurement that tells
    nothing blames nobody.
    """
    sites = frozenset(adaptation.sites)
    found: set[str] = set()
    for state in fired:
        variant = stable.variant(state.variant) if stable is not None else None
        if stable is not None and state.verdict == Verdict.FAIL:
            site = site_of_variant(stable, variant) if variant is not None else ""
            found |= {site} if site in sites else sites
    return frozenset(found)


def site_of_variant(revision: Revision, variant: RevisionVariant) -> str:
    """The one site that the variant is for; empty when it is for several or for any."""
    return find_site(revision.profiles, profile=variant.profile, override=variant.override)


def variants_of_site(revision: Revision | None, site: str) -> list[RevisionVariant]:
    """Variants of a stored revision that are for this site alone."""
    if revision is None:
        return []
    return [v for v in revision.variants if v.override and site_of_variant(revision, v) == site]


def holds_adapter(revision: Revision | None, site: str, sha256: str) -> bool:
    """Whether the revision brings the trained file to the site."""
    return sha256 in trained_in(variants_of_site(revision, site))


def find_busy(
    spec: SLMDeploymentSpec,
    decision: Decision,
    standing: Standing,
    resolution: Resolution,
    finding: Finding | None,
) -> str:
    """Why no training may begin, and none that has ended may count; empty when both may.

    The result is another revision: it must neither come in the middle of a rollout, nor undo what somebody
    has chosen, nor try a spec once more that has failed.
    """
    stable, rollout = decision.stable_revision, decision.rollout
    if not stable:
        return "no revision is the stable one yet"
    if spec.rollout.paused:
        return "rollouts are paused"
    if rollout is not None and rollout.step not in FINISHED:
        return f"the rollout of revision {rollout.revision} is under way"
    if standing.pinned is not None:
        return f"revision {standing.pinned.revision} was taken up instead of spec's"
    if finding is not None or resolution.unmet is not None:
        return "spec is not accepted as it stands"
    if not resolution.revision:
        return "the files that spec stands for are not known"
    if resolution.revision != stable:
        return f"revision {resolution.revision}, which spec stands for, is not the stable one"
    return ""


def seconds_to_rest(decision: Decision, now: float) -> float:
    """Until the end of the last rollout is long enough ago: one look must not end one and begin the next."""
    rollout = decision.rollout
    if rollout is None or rollout.finished_at is None:
        return 0.0
    return min(REST_SECONDS, times.to_seconds(rollout.finished_at) + REST_SECONDS - now)


def trained_bases(stable: Revision | None, site: str) -> frozenset[str]:
    """Digests of the model files that adapters can be trained for at the site."""
    return frozenset(base_digest_of(v) for v in variants_of_site(stable, site) if keeps_examples(v))
