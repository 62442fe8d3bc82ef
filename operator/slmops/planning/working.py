# SPDX-License-Identifier: Apache-2.0
"""The spec that a look works with: what `expand_spec` makes of the written one and of what is observed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from slmops.api import PAUSED_ANNOTATION, SLMDeploymentSpec
from slmops.model.observed import Observed, ProfileView, Resolved
from slmops.model.offers import OfferedVersion
from slmops.planning.adaptation_state import trained_adapters
from slmops.planning.expand import ExpansionError, expand_spec, find_used
from slmops.planning.finding import Finding
from slmops.planning.follow import follow
from slmops.planning.resolution import known_sources
from slmops.planning.revision import Revision, resolution_key, source_hash
from slmops.planning.validate import validate
from slmops.planning.waves import effective_rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """The effective spec, or why there is none."""

    spec: SLMDeploymentSpec
    finding: Finding | None = None
    """Why nothing can be done with it at all."""
    unmet: Finding | None = None
    """What it hangs on is not there for the moment: what is wanted stays as it is."""
    note: str = ""
    """What a person should know of the SLMModel although nothing is wrong."""


def work_out(observed: Observed, spec: SLMDeploymentSpec, stored: Mapping[str, Revision]) -> Working:
    """The spec of this look; `stored` are the revisions of the history by name."""
    anchors = _anchors(observed, stored)
    profiles = observed.profiles
    if profiles is None:
        if any(rule.name for revision in anchors for rule in revision.profiles):
            message = "the DeviceProfiles cannot be read; is their CustomResourceDefinition installed?"
            return Working(spec=spec, unmet=Finding(reason="ProfilesUnknown", message=message))
        profiles = ()
    offered: OfferedVersion | None = None
    note = ""
    if spec.model.from_ is not None:
        source = spec.model.from_
        if observed.offer is None and not observed.are_models_known:
            message = "the SLMModels cannot be read; is their CustomResourceDefinition installed?"
            return Working(spec=spec, unmet=Finding(reason="ModelsUnknown", message=message))
        present = next((r.model_version for r in anchors if r.model_from == source.name), "")
        followed = follow(source, observed.offer, present=present)
        if followed.version is None:
            return Working(spec=spec, unmet=Finding(reason="NoAcceptedVersion", message=followed.problem))
        offered, note = followed.version, followed.note
    finding: Finding | None = None
    effective = spec
    try:
        effective = _expand(observed, spec, stored, profiles, anchors, offered)
        if effective is not spec:
            finding = validate(replace(observed.deployment, spec=effective), observed.config)
    except ExpansionError as error:
        finding = Finding(reason="InvalidSpec", message=str(error))
    if finding is None:
        return Working(spec=effective, note=note)
    if offered is None:
        return Working(spec=spec, finding=finding)
    # Nobody has changed spec: what runs is looked after as before.
    message = f"version {offered.version} of the SLMModel cannot be used: {finding.message}"
    return Working(spec=spec, unmet=Finding(reason="VersionUnfit", message=message))


def _expand(
    observed: Observed,
    spec: SLMDeploymentSpec,
    stored: Mapping[str, Revision],
    profiles: tuple[ProfileView, ...],
    anchors: list[Revision],
    offered: OfferedVersion | None,
) -> SLMDeploymentSpec:
    if not profiles and offered is None and not spec.overrides and spec.adaptation is None:
        return expand_spec(spec, known={})
    known = known_sources(stored.values())
    known |= _fresh(observed, spec, offered)
    used = list(profiles)
    if anchors:
        # Before the first revision all are worked in: that a node of a class joins later changes nothing.
        kept = frozenset(rule.name for revision in anchors for rule in revision.profiles)
        used = find_used(spec, profiles, nodes=observed.nodes, kept=kept)
        used = used or [profile for profile in profiles if _is_only_for_profiles(spec, offered)]
    # Where a revision knows a source's files, `resolve` takes these: an adapter has to be for the same.
    known |= known_sources(stored.values()) if spec.adaptation is not None else {}
    trained = trained_adapters(spec, observed.deployment.status)
    return expand_spec(spec, profiles=used, known=known, offered=offered, trained=trained)


def _is_only_for_profiles(spec: SLMDeploymentSpec, offered: OfferedVersion | None) -> bool:
    """No variant is for nodes that are of no profile: without any there would be nothing left."""
    entries = offered.variants if offered is not None else spec.variants
    return all(entry.profiles for entry in entries)


def _anchors(observed: Observed, stored: Mapping[str, Revision]) -> list[Revision]:
    """The revisions that are in force: the one that spec stood for first."""
    status = observed.deployment.status
    wanted = status.pinned.instead_of if status.pinned is not None else status.update_revision
    names = dict.fromkeys((wanted, status.update_revision, status.stable_revision))
    return [stored[name] for name in names if name in stored]


def _fresh(
    observed: Observed, spec: SLMDeploymentSpec, offered: OfferedVersion | None
) -> dict[str, Resolved]:
    """By source hash: what was resolved since the operator was started and is in no revision yet."""
    sources = [variant.source for variant in spec.variants]
    sources += [entry.source for entry in offered.variants] if offered is not None else []
    result = {}
    for source in sources:
        outcome = observed.resolutions.get(resolution_key(source, spec.model.signature))
        if isinstance(outcome, Resolved):
            result[source_hash(source)] = outcome
    return result


def wanted_before(observed: Observed, stored: Mapping[str, Revision]) -> Revision | None:
    """The revision that spec stood for at the last look, if it is kept."""
    status = observed.deployment.status
    wanted = status.pinned.instead_of if status.pinned is not None else status.update_revision
    return stored.get(wanted)


def in_force(spec: SLMDeploymentSpec, annotations: Mapping[str, str]) -> SLMDeploymentSpec:
    """The spec with its waves spelled out, and paused if an annotation says so."""
    rollout = effective_rollout(spec.rollout)
    if annotations.get(PAUSED_ANNOTATION, "").lower() == "true":
        rollout = rollout.model_copy(update={"paused": True})
    return spec if rollout is spec.rollout else spec.model_copy(update={"rollout": rollout})
