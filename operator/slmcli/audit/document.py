# SPDX-License-Identifier: Apache-2.0
"""`AuditReport`: the whole audit for a program."""

from collections.abc import Sequence
from typing import Any

from slmcli.audit.facts import ContainerFacts, PodFacts
from slmcli.audit.policies import Reach, managed_names
from slmcli.audit.report import Audit, Finding, by_design
from slmcli.output import with_head
from slmcli.times import clock_text

Document = dict[str, Any]


def audit_document(audit: Audit, findings: Sequence[Finding], *, now: float) -> Document:
    """All keys are always there; null where it could not be read."""
    observed = audit.observed
    view, status = observed.view, observed.view.status
    signature = audit.signature
    body: Document = {
        "namespace": view.namespace,
        "name": view.name,
        "at": clock_text(now),
        "model": view.spec.model.name if view.spec is not None else None,
        "stableVersion": (status.model_version or None) if status is not None else None,
        "stableRevision": (status.stable_revision or None) if status is not None else None,
        "allowedSites": sorted(view.spec.privacy.allowed_sites)
        if view.spec is not None and view.spec.privacy.allowed_sites is not None
        else None,
        "pods": [_pod(pod, audit) for pod in observed.pods],
        "variants": [
            {
                "revision": v.revision,
                "variant": v.variant,
                "digest": v.digest or None,
                "reference": v.reference or None,
                "sizeBytes": v.size_bytes,
                "inUse": v.in_use == "yes",
            }
            for v in audit.variants
        ],
        "signature": {
            "state": signature.state,
            "policy": signature.policy or None,
            "trustedKeys": list(signature.trusted_keys),
            "signedBy": list(signature.signed_by),
            "message": signature.message or None,
        },
        "egress": None
        if observed.policies is None
        else [{"role": role} | _reach(reach, "Egress") for role, reach in audit.egress.items()],
        "managedPolicies": None if observed.policies is None else sorted(managed_names(observed.policies)),
        "ingress": None if audit.ingress is None else _reach(audit.ingress, "Ingress"),
        "services": None
        if observed.services is None
        else [
            {"name": s.name, "type": s.kind, "trafficPolicy": s.traffic, "external": list(s.external)}
            for s in observed.services
        ],
        "kept": None
        if audit.kept is None
        else {
            "sites": list(audit.kept.sites),
            "retention": audit.kept.retention,
            "maxExamples": audit.kept.max_examples,
            "redacted": list(audit.kept.redacted),
            "notRedacted": list(audit.kept.not_redacted),
            "patterns": list(audit.kept.patterns),
            "nodes": list(audit.kept.nodes),
        },
        "trained": [
            {
                "site": t.site or None,
                "name": t.name,
                "sha256": t.sha256,
                "sizeBytes": t.size_bytes,
                "baseDigest": t.base_digest or None,
                "trainedAt": t.trained_at or None,
                "examples": t.examples,
                "revision": t.revision or None,
                "variant": t.variant or None,
                "nodes": list(t.nodes),
            }
            for t in audit.trained
        ],
        "byDesign": list(by_design(audit)),
        "findings": [
            {
                "severity": f.severity,
                "reason": f.reason,
                "subject": f.subject,
                "message": f.message,
                "cure": f.cure,
            }
            for f in findings
        ],
    }
    return with_head("AuditReport", body)


def _reach(reach: Reach, direction: Any) -> Document:
    return {
        "restricted": reach.is_restricted,
        "policies": list(reach.policies),
        "allowed": list(reach.allowed),
        "summary": reach.describe(direction),
    }


def _pod(pod: PodFacts, audit: Audit) -> Document:
    sites = audit.observed.sites
    return {
        "name": pod.name,
        "node": pod.node or None,
        "site": None if sites is None else sites.get(pod.node) or None,
        "role": pod.role,
        "revision": pod.revision,
        "variant": pod.variant,
        "ready": pod.ready,
        "since": pod.since,
        "serviceAccountToken": pod.token == "mounted",
        "hostNamespaces": list(pod.host_namespaces),
        "mounts": [
            {"container": m.container, "kind": m.kind, "what": m.what, "writable": m.access == "writable"}
            for m in pod.mounts
        ],
        "containers": [_container(container) for container in pod.containers],
    }


def _container(container: ContainerFacts) -> Document:
    return {
        "name": container.name,
        "kind": container.kind,
        "image": container.image,
        "imageDigest": container.image_digest or None,
        "nonRoot": container.non_root,
        "readOnlyRoot": container.read_only_root,
        "noPrivilegeEscalation": container.no_escalation,
        "privileged": container.privileged,
        "dropsAllCapabilities": container.drops_all,
        "addedCapabilities": list(container.added_capabilities),
        "seccomp": container.seccomp or None,
        "environment": dict(container.env),
        "secretEnvironment": list(container.secret_env),
    }
