# SPDX-License-Identifier: Apache-2.0
"""Puts together what is known of a deployment; `slmcli.audit.findings` judges it."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from slmcli.audit.facts import PodFacts, ServiceFacts, observe_pod_facts, observe_services
from slmcli.audit.kept import KeptFacts, TrainedFacts, observe_kept, observe_trained
from slmcli.audit.policies import Reach, assess_reach
from slmcli.revisions import StoredRevision
from slmcli.view import Body, DeploymentView
from slmops.api.status import ConditionType
from slmwire import labels
from slmwire.labels import Role

Severity = Literal["high", "medium", "low"]
SEVERITIES: Final[tuple[Severity, ...]] = ("high", "medium", "low")
TRAIN: Final = "train"
"""Role, as an audit shows it, of pods that train an adapter."""
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")

_FEEDBACK: Final = "feedback: /v1/feedback counts ratings; texts are neither stored nor logged nor exported"
_CORRECTIONS: Final = (
    "feedback: /v1/feedback counts ratings; what users correct is written, redacted, into a folder of the "
    "node at the sites of spec.adaptation and nowhere else, and is not logged or exported"
)
_BY_DESIGN: Final = (
    "logs: the server writes no prompt and no answer, also not in errors",
    "metrics: counts and times only, no texts and nothing that names a client",
    "status and Events: hold names of nodes, sizes, hashes and measurements",
    "sandbox: before it reads a model the server gives up opening connections, and the kernel enforces it "
    "(the metric slmserve_sandbox is 1), whatever the policies leave to the fetcher of its pod",
    "telemetry: the images of this release set ORT_DISABLE_TELEMETRY=1 for onnxruntime; the variables of "
    "an image cannot be seen through the API, only those that the pod sets",
)
"""What holds for the servers of this release, and not for a runtime.image of somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a reviewer should know."""

    severity: Severity
    reason: str
    """CamelCase, for programs."""
    subject: str
    message: str
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """The bytes of one variant of a revision."""

    revision: str
    variant: str
    digest: str
    reference: str
    size_bytes: int
    in_use: Literal["yes", "no"]
    """Whether a pod has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFacts:
    """Who must have signed, and who has."""

    state: Literal["unsigned", "verified", "invalid", "unknown"]
    policy: str
    trusted_keys: tuple[str, ...]
    """Fingerprints (`sha256:<hex>` of the PEM text) of the keys that spec trusts."""
    signed_by: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was read from the cluster. None where the account may not read it; `unread` says so."""

    view: DeploymentView
    pods: tuple[PodFacts, ...]
    revisions: tuple[StoredRevision, ...]
    services: tuple[ServiceFacts, ...] | None
    policies: tuple[Body, ...] | None
    sites: Mapping[str, str] | None
    """Site by node."""
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The report without its judgement."""

    observed: Observed
    variants: tuple[VariantFacts, ...]
    signature: SignatureFacts
    egress: Mapping[str, Reach]
    """By role of the pods; empty when policies could not be read."""
    ingress: Reach | None
    """Of the serving pods."""
    kept: KeptFacts | None = None
    """None where spec lets no site keep anything of what users write."""
    trained: tuple[TrainedFacts, ...] = ()


def by_design(audit: Audit) -> tuple[str, ...]:
    """What the servers of this release do and do not."""
    return (*_BY_DESIGN, _FEEDBACK if audit.kept is None else _CORRECTIONS)


def build_observed(
    view: DeploymentView,
    *,
    pods: Iterable[Body],
    revisions: tuple[StoredRevision, ...],
    services: Sequence[Body] | None,
    policies: Sequence[Body] | None,
    nodes: Sequence[Body] | None,
    unread: Sequence[str],
) -> Observed:
    """The bodies, read."""
    found = tuple(sorted(map(observe_pod_facts, pods), key=lambda pod: (pod.node, pod.role, pod.name)))
    return Observed(
        view=view,
        pods=found,
        revisions=revisions,
        services=None if services is None else observe_services(services, found or _expected(view)),
        policies=None if policies is None else tuple(policies),
        sites=None if nodes is None else _sites(view, nodes),
        unread=tuple(unread),
    )


def _sites(view: DeploymentView, nodes: Iterable[Body]) -> dict[str, str]:
    key = view.spec.placement.site_label if view.spec is not None else ""
    return {
        str(node["metadata"]["name"]): str((node["metadata"].get("labels") or {}).get(key, ""))
        for node in nodes
    }


def _expected(view: DeploymentView) -> tuple[PodFacts, ...]:
    """The labels that a serving pod would have, where there is none yet."""
    tags = _labels(view, Role.SERVE)
    return (
        PodFacts(
            name="", node="", role=Role.SERVE, revision="", variant="", ready=False, since=None, labels=tags,
            token="not mounted", host_namespaces=(), mounts=(), containers=(),
        ),
    )  # fmt: skip


def _labels(view: DeploymentView, role: str) -> dict[str, str]:
    return {labels.DEPLOYMENT: view.name, labels.ROLE: role, labels.MANAGED_BY: labels.MANAGED_BY_VALUE}


def build_audit(observed: Observed) -> Audit:
    """All that follows from what was read."""
    return Audit(
        observed=observed,
        variants=_variants(observed),
        signature=_signature(observed.view),
        egress=_egress(observed),
        ingress=_reach(observed, Role.SERVE, "Ingress"),
        kept=observe_kept(observed.view, observed.pods),
        trained=observe_trained(observed.view, observed.pods, observed.revisions),
    )


def _egress(observed: Observed) -> dict[str, Reach]:
    known = {*Role, TRAIN}
    roles = sorted({pod.role for pod in observed.pods} & known | {Role.SERVE.value})
    found = {role: _reach(observed, role, "Egress") for role in roles}
    return {role: reach for role, reach in found.items() if reach is not None}


def _reach(observed: Observed, role: str, direction: Literal["Egress", "Ingress"]) -> Reach | None:
    """Of the pod of that role that may do the most: one that no policy selects, else the most rules."""
    if observed.policies is None:
        return None
    tags = [pod.labels for pod in observed.pods if pod.role == role] or [_labels(observed.view, role)]
    reaches = [assess_reach(observed.policies, own, direction) for own in tags]
    return min(reaches, key=lambda reach: (reach.is_restricted, -len(reach.anywhere), -len(reach.allowed)))


def _variants(observed: Observed) -> tuple[VariantFacts, ...]:
    used = {(pod.revision, pod.variant) for pod in observed.pods}
    status = observed.view.status
    wanted = {status.stable_revision, status.update_revision} if status is not None else set()
    found = [
        VariantFacts(
            revision=revision.revision,
            variant=variant.name,
            digest=variant.digest,
            reference=variant.reference,
            size_bytes=variant.size_bytes,
            in_use="yes" if (revision.revision, variant.name) in used else "no",
        )
        for revision in observed.revisions
        for variant in revision.variants
        if revision.revision in wanted or (revision.revision, variant.name) in used
    ]
    return tuple(found)


def _signature(view: DeploymentView) -> SignatureFacts:
    wanted = view.spec.model.signature if view.spec is not None else None
    if wanted is None:
        return SignatureFacts(state="unsigned", policy="", trusted_keys=(), signed_by=(), message="")
    condition = view.condition(ConditionType.SIGNATURE_VERIFIED)
    status = condition.status if condition is not None and view.up_to_date else "Unknown"
    states: dict[str, Literal["verified", "invalid", "unknown"]] = {"True": "verified", "False": "invalid"}
    state = states.get(status, "unknown")
    message = condition.message if condition is not None else "the operator has not looked at it yet"
    return SignatureFacts(
        state=state,
        policy=wanted.policy,
        trusted_keys=tuple(
            "sha256:" + hashlib.sha256(key.strip().encode()).hexdigest() for key in wanted.public_keys
        ),
        signed_by=tuple(_FINGERPRINT.findall(message)) if state == "verified" else (),
        message=message,
    )
