# SPDX-License-Identifier: Apache-2.0
"""What of an audit is worth a reviewer's attention, and how much. Every rule is in docs/audit.md."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from slmcli.audit.cures import anywhere_cure, policy_cure
from slmcli.audit.facts import TELEMETRY, ContainerFacts, PodFacts
from slmcli.audit.findings_kept import assess_kept
from slmcli.audit.pins import find_unpinned
from slmcli.audit.report import SEVERITIES, TRAIN, Audit, Finding, Severity
from slmops.planning.access import CHECK
from slmwire import env
from slmwire.labels import Role
from slmwire.scheme import SERVER

_DNS = re.compile(r"\b(UDP|TCP) 53\b")
_OURS = frozenset({SERVER, CHECK, "fetch", "choose", "release"})
_TRAINING = frozenset({"prepare", "train", "judge", "keep"})
"""Containers of a pod that trains an adapter; `keep` is the fetcher's program."""
_WRITERS: Final = {TRAIN: ("keep",)}
"""By role, containers that may write to the store; otherwise the fetcher's."""


def assess_findings(audit: Audit) -> tuple[Finding, ...]:
    """All findings, the most severe first; each once, with all that it is about."""
    found = [
        *_unread(audit),
        *_network(audit),
        *_residency(audit),
        *_services(audit),
        *_credentials(audit),
        *_containers(audit),
        *_bytes(audit),
        *_images(audit),
        *_openness(audit),
        *assess_kept(audit),
    ]
    return tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), f.reason, f.subject)))


def reaches_level(findings: Iterable[Finding], level: Severity) -> bool:
    """Whether some finding is of that severity or a higher one."""
    return any(SEVERITIES.index(found.severity) <= SEVERITIES.index(level) for found in findings)


def _unread(audit: Audit) -> Iterable[Finding]:
    for note in audit.observed.view.notes:
        yield Finding(
            severity="medium",
            reason="NotUnderstood",
            subject="SLMDeployment",
            message=note,
            cure="audit with a kubectl-slm as new as the operator",
        )
    for what in audit.observed.unread:
        yield Finding(
            # Of nodes only the site is read.
            severity="low" if what == "nodes" else "medium",
            reason="NotObserved",
            subject=what,
            message=f"{what} could not be read, so nothing is said about them here",
            cure=f"audit with an account that may list {what}",
        )
    if not any(pod.role == Role.SERVE for pod in audit.observed.pods):
        yield Finding(
            severity="medium",
            reason="NothingServes",
            subject="pods",
            message="there is no serving pod, so its containers and images could not be looked at",
            cure="audit again when nodes serve",
        )


def _network(audit: Audit) -> Iterable[Finding]:
    cure = policy_cure(audit)
    for role, reach in audit.egress.items():
        subject = f"pods of the role {role}"
        if not reach.is_restricted:
            yield Finding(
                severity="high",
                reason="EgressOpen",
                subject=subject,
                message="no NetworkPolicy selects them for egress: everything may leave",
                cure=cure,
            )
        elif reach.anywhere:
            yield Finding(
                severity="high",
                reason="EgressAnywhere",
                subject=subject,
                message=f"data may leave to every address: {'; '.join(reach.anywhere)}",
                cure=anywhere_cure(audit, reach.policies, role),
            )
        names = [text for text in reach.allowed if _DNS.search(text)]
        if names and not reach.anywhere and role == Role.SERVE:
            yield Finding(
                severity="low",
                reason="EgressByName",
                subject=subject,
                message="the cluster's DNS may be asked, which asks others: a name can carry data out",
                cure="give the model source by address and take the rule for DNS out",
            )
        for name in reach.not_understood:
            yield Finding(
                severity="medium",
                reason="PolicyNotUnderstood",
                subject=f"NetworkPolicy {name}",
                message="its podSelector is not understood; whether it selects the pods is not known",
                cure="look at it by hand, or use a newer kubectl-slm",
            )
    if audit.ingress is not None and (not audit.ingress.is_restricted or audit.ingress.anywhere):
        yield Finding(
            severity="medium",
            reason="IngressOpen",
            subject="pods of the role serve",
            message=audit.ingress.describe("Ingress"),
            cure=cure,
        )


def _residency(audit: Audit) -> Iterable[Finding]:
    spec, sites = audit.observed.view.spec, audit.observed.sites
    allowed = spec.privacy.allowed_sites if spec is not None else None
    if allowed is None or sites is None:
        return
    outside = [pod for pod in audit.observed.pods if pod.node and sites.get(pod.node, "") not in allowed]
    if outside:
        where = sorted({sites.get(pod.node) or "no site" for pod in outside})
        yield Finding(
            severity="high",
            reason="OutsideAllowedSites",
            subject=_names(outside),
            message=f"on nodes of {', '.join(where)}; spec.privacy.allowedSites has "
            f"{', '.join(sorted(allowed))}",
            cure="if it lasts: an offline node keeps its pod until it is back, and a replica whose node was "
            "given another site until somebody deletes it",
        )


def _services(audit: Audit) -> Iterable[Finding]:
    for service in audit.observed.services or ():
        if service.external:
            yield Finding(
                severity="high",
                reason="ExposedOutside",
                subject=f"Service {service.name}",
                message=f"type {service.kind}: reachable from outside of the cluster by "
                f"{', '.join(service.external)}",
                cure="use type ClusterIP, or put a gateway with its own authentication before it",
            )
        if service.traffic != "Local":
            plain = [container for _, container in _servers(audit) if _is_plain(container)]
            yield Finding(
                severity="medium" if plain else "low",
                reason="TrafficLeavesNode",
                subject=f"Service {service.name}",
                message="internalTrafficPolicy is Cluster: prompts may go to another node's pod, "
                + ("unencrypted unless the network plugin encrypts" if plain else "by TLS"),
                cure="spec.service.trafficPolicy: Local (mode Replicas needs Cluster), or spec.service.tls",
            )


def _credentials(audit: Audit) -> Iterable[Finding]:
    token = [pod for pod in audit.observed.pods if pod.token == "mounted"]
    if token:
        yield Finding(
            severity="high",
            reason="TokenMounted",
            subject=_names(token),
            message="a service account token is in the pod: who takes it over speaks to the API server",
            cure="the operator's pods have none; find out who made or changed these",
        )
    for pods, what in _grouped(
        (pod, f"{entry.container}: Secret {entry.what}")
        for pod in audit.observed.pods
        for entry in pod.mounts
        if entry.kind == "secret" and entry.container != "fetch" and not entry.is_access
    ):
        yield Finding(
            severity="medium",
            reason="SecretMounted",
            subject=_names(pods),
            message=f"container {what} is mounted, beside those of the model's source and of spec.service",
            cure="find out who added it",
        )
    for pods, what in _grouped(
        (pod, f"{container.name}: {', '.join(container.secret_env)}")
        for pod in audit.observed.pods
        for container in pod.containers
        if container.secret_env
    ):
        yield Finding(
            severity="medium",
            reason="SecretInEnvironment",
            subject=_names(pods),
            message=f"container {what} come out of a Secret, and every process there can read them",
            cure="find out who added them",
        )


def _containers(audit: Audit) -> Iterable[Finding]:
    pairs = [(pod, container) for pod in audit.observed.pods for container in pod.containers]
    rules: list[tuple[Severity, str, list[tuple[PodFacts, str]], str]] = [
        ("high", "HostNamespace",
         [(pod, ", ".join(pod.host_namespaces)) for pod in audit.observed.pods if pod.host_namespaces],
         "find out who made these pods; the operator's have none"),
        ("high", "DebugContainer",
         [(pod, f"container {c.name} ({c.image}) was attached to the running pod: it sees its memory")
          for pod, c in pairs if c.kind == "debug"],
         "find out who did, and delete the pod"),
        ("medium", "ForeignContainer",
         [(pod, f"container {c.name} ({c.image}) is none of the operator's: it shares the pod's network")
          for pod, c in pairs if c.kind != "debug" and c.name not in _containers_of(pod)],
         "find out what added it, for example a service mesh"),
        ("high", "Privileged",
         [(pod, f"container {c.name} is privileged") for pod, c in pairs if c.privileged],
         "find out who changed it"),
        ("high", "RunsAsRoot",
         [(pod, f"container {c.name} may run as root") for pod, c in pairs
          if not c.non_root and c.kind == "main" and pod.role == Role.SERVE],
         "find out who changed it; the operator's server runs as user 65532"),
        ("medium", "NotHardened",
         [(pod, f"container {c.name}: {', '.join(missing)}") for pod, c in pairs if (missing := _soft(c))],
         "find out who changed it"),
        ("high", "HostPathWritable",
         [(pod, f"container {entry.container} may write to {entry.what} of the node")
          for pod in audit.observed.pods for entry in pod.mounts
          if entry.kind == "hostPath" and entry.access == "writable"
          and entry.container not in _WRITERS.get(pod.role, ("fetch", "release")) and not entry.is_examples],
         "find out who changed it; only the fetcher writes to the store"),
    ]  # fmt: skip
    for severity, reason, cases, cure in rules:
        for pods, message in _grouped(cases):
            yield Finding(severity=severity, reason=reason, subject=_names(pods), message=message, cure=cure)


def _containers_of(pod: PodFacts) -> frozenset[str]:
    return _TRAINING if pod.role == TRAIN else _OURS


def _soft(container: ContainerFacts) -> list[str]:
    facts = {
        "root file system is writable": container.read_only_root,
        "may gain privileges": container.no_escalation,
        "capabilities are not dropped": container.drops_all,
        f"has capabilities {', '.join(container.added_capabilities)}": not container.added_capabilities,
        "no seccomp profile": container.seccomp in ("RuntimeDefault", "Localhost"),
    }
    return [text for text, holds in facts.items() if not holds]


def _bytes(audit: Audit) -> Iterable[Finding]:
    signature, view = audit.signature, audit.observed.view
    texts: dict[str, tuple[Severity, str, str, str]] = {
        "unsigned": ("medium", "Unsigned", "spec asks for no signature: who made the model is not known",
                     "set spec.model.signature, see docs/sources.md"),
        "invalid": ("high", "SignatureInvalid", signature.message, "kubectl slm explain says what to do"),
        "unknown": ("medium", "SignatureUnknown", signature.message, "audit again when it was checked"),
    }  # fmt: skip
    if signature.state in texts:
        severity, reason, message, cure = texts[signature.state]
        yield Finding(
            severity=severity, reason=reason, subject="spec.model.signature", message=message, cure=cure
        )
    if signature.policy == "Warn":
        yield Finding(
            severity="medium",
            reason="SignatureNotEnforced",
            subject="spec.model.signature.policy",
            message="Warn: a model without a valid signature is taken all the same",
            cure="set it to Require",
        )
    for variant in view.spec.variants if view.spec is not None else ():
        if (problem := find_unpinned(variant.source)) is not None:
            yield Finding(
                severity="medium" if signature.state == "unsigned" else "low",
                reason="SourceNotPinned",
                subject=f"spec.variants[{variant.name}].source",
                message=problem,
                cure="pin the hash in spec, or require a signature",
            )
    kept = {revision.revision for revision in audit.observed.revisions}
    strange = [pod for pod in audit.observed.pods if pod.role == Role.SERVE and pod.revision not in kept]
    if strange:
        yield Finding(
            severity="medium",
            reason="UnknownRevision",
            subject=_names(strange),
            message="their revision is not in the history: which bytes they serve is not known",
            cure="kubectl slm history shows what is kept",
        )


def _images(audit: Audit) -> Iterable[Finding]:
    digests: dict[str, set[str]] = defaultdict(set)
    for pod in audit.observed.pods:
        for container in pod.containers:
            digests[container.image].update({container.image_digest} - {""})
    for image, found in sorted(digests.items()):
        if len(found) > 1:
            yield Finding(
                severity="medium",
                reason="ImagesDiffer",
                subject=image,
                message=f"is {len(found)} different images on different nodes: {', '.join(sorted(found))}",
                cure="name the image by digest (chart value image.digest, spec.runtime.image)",
            )
        if "@sha256:" not in image:
            yield Finding(
                severity="low",
                reason="ImageByTag",
                subject=image or "image",
                message="is named by a tag, which may stand for something else tomorrow",
                cure="name the image by digest",
            )
    spec = audit.observed.view.spec
    if spec is not None and spec.runtime.image:
        yield Finding(
            severity="low",
            reason="OwnImage",
            subject="spec.runtime.image",
            message=f"{spec.runtime.image} takes the place of the operator's image: what is said below of "
            "logs and telemetry holds only if it is built from it",
            cure="review the image",
        )


def _servers(audit: Audit) -> list[tuple[PodFacts, ContainerFacts]]:
    return [(pod, c) for pod in audit.observed.pods for c in pod.containers if c.name == SERVER]


def _is_plain(container: ContainerFacts) -> bool:
    return env.TLS_CERT_FILE not in container.env


def _openness(audit: Audit) -> Iterable[Finding]:
    servers = _servers(audit)
    on = [pod for pod, container in servers if container.env.get(TELEMETRY, "1") not in ("1", "true", "True")]
    if on:
        yield Finding(
            severity="medium",
            reason="TelemetryOn",
            subject=_names(on),
            message=f"the pod sets {TELEMETRY} to something else than 1",
            cure="take the variable out",
        )
    keyless = [pod for pod, container in servers if env.API_KEYS_FILE not in container.env]
    if keyless:
        yield Finding(
            severity="low",
            reason="NoKeys",
            subject=_names(keyless),
            message="the pod names no file of API keys: whoever reaches the server may ask it",
            cure="set spec.service.auth, or confine who reaches it by a NetworkPolicy",
        )
    plain = [pod for pod, container in servers if _is_plain(container)]
    if plain:
        yield Finding(
            severity="low",
            reason="PlainHttp",
            subject=_names(plain),
            message="the server speaks HTTP: prompts are readable on the way unless the network encrypts",
            cure="set spec.service.tls, keep traffic on the node (trafficPolicy Local), or encrypt the pod "
            "network",
        )


def _grouped(cases: Iterable[tuple[PodFacts, str]]) -> list[tuple[list[PodFacts], str]]:
    """Pods by what is to be said of them."""
    found: dict[str, list[PodFacts]] = defaultdict(list)
    for pod, text in cases:
        if pod not in found[text]:
            found[text].append(pod)
    return [(pods, text) for text, pods in found.items()]


def _names(pods: list[PodFacts]) -> str:
    shown = ", ".join(pod.name for pod in pods[:3])
    return f"pod {shown}" + (f" and {len(pods) - 3} more" if len(pods) > 3 else "")
