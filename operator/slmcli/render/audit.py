# SPDX-License-Identifier: Apache-2.0
"""The audit for people."""

from collections.abc import Iterable, Sequence

from rich.text import Text

from slmcli.audit.facts import PodFacts
from slmcli.audit.kept import KeptFacts, TrainedFacts
from slmcli.audit.report import Audit, Finding, by_design
from slmcli.lines import Lines, table, wrapped
from slmcli.render.cache import size_text
from slmcli.times import clock_text
from slmwire.labels import Role

_STYLES = {"high": "bold red", "medium": "yellow", "low": "cyan"}


def render_audit(audit: Audit, findings: Sequence[Finding], *, now: float, width: int) -> Lines:
    """All of it, section by section."""
    observed = audit.observed
    view, status = observed.view, observed.view.status
    title = Text(f"{view.namespace}/{view.name}", style="bold")
    if view.spec is not None:
        title.append(f"  model {view.spec.model.name} {view.spec.model.version}", style="")
    stable = f"stable {status.stable_revision or '-'}" if status is not None else "not looked at yet"
    title.append(f"  {stable}  at {clock_text(now)}", style="")
    lines = [title]
    where = [*(_pods(audit, width) or [Text("no pod")]), *wrapped(residency_text(audit), width=width)]
    lines += _section("WHERE IT RUNS", where)
    lines += _section("WHICH BYTES", [*_variants(audit, width), *wrapped(_signature(audit), width=width)])
    lines += _section("IMAGES", _images(observed.pods, width) or [Text("no pod")])
    lines += _section("WHAT MAY LEAVE AND COME IN", _texts(_network(audit), width))
    lines += _section("CREDENTIALS AND CONFINEMENT", _texts(_confinement(observed.pods), width))
    lines += _section("WHAT IS KEPT AND LEARNT OF USERS' WORDS", _learnt(audit, width))
    lines += _section("BY DESIGN", _texts(by_design(audit), width))
    return [*lines, *_section("FINDINGS", _findings(findings, width) or [Text("none", style="green")])]


def residency_text(audit: Audit) -> str:
    """At which sites it may run."""
    spec = audit.observed.view.spec
    allowed = spec.privacy.allowed_sites if spec is not None else None
    if spec is None or allowed is None:
        return "residency: spec.privacy.allowedSites is not set, any node that placement selects may run it"
    return f"residency: sites {', '.join(sorted(allowed))} only (node label {spec.placement.site_label})"


def _section(title: str, body: Sequence[Text]) -> Lines:
    return [Text(""), Text(title, style="bold"), *body]


def _texts(texts: Iterable[str], width: int) -> Lines:
    return [line for text in texts for line in wrapped(text, width=width)]


def _pods(audit: Audit, width: int) -> Lines:
    sites = audit.observed.sites or {}
    rows = [
        [
            pod.node or "-",
            sites.get(pod.node) or "-",
            pod.role,
            pod.revision,
            pod.variant,
            "yes" if pod.ready else "no",
            pod.since or "-",
            pod.name,
        ]
        for pod in audit.observed.pods
    ]
    headers = ["NODE", "SITE", "ROLE", "REVISION", "VARIANT", "READY", "SINCE", "POD"]
    return table(headers, rows, width=width, flexible=7) if rows else []


def _variants(audit: Audit, width: int) -> Lines:
    lines: Lines = []
    for v in audit.variants:
        used = "in use" if v.in_use == "yes" else "not in use"
        head = f"{v.revision} {v.variant}: {size_text(v.size_bytes)}, {used}"
        # A hash that is cut proves nothing, so these are no columns of a table.
        lines += [Text(head), *wrapped(f"digest {v.digest or 'not known'}", width=width, indent=2)]
        lines += wrapped(f"source resolved to {v.reference}", width=width, indent=2) if v.reference else []
    return lines or [Text("no revision is stored yet")]


def _signature(audit: Audit) -> str:
    signature = audit.signature
    if signature.state == "unsigned":
        return "signature: unsigned"
    keys = ", ".join(signature.signed_by or signature.trusted_keys)
    word = "signed by" if signature.signed_by else "trusted keys"
    return f"signature: {signature.state} (policy {signature.policy}), {word} {keys}"


def _images(pods: Iterable[PodFacts], width: int) -> Lines:
    found = sorted({(c.image, c.image_digest or "not reported") for pod in pods for c in pod.containers})
    lines: Lines = []
    for image, digest in found:
        lines += wrapped(image or "-", width=width)
        lines += wrapped(f"on the nodes {digest}", width=width, indent=2)
    return lines


def _network(audit: Audit) -> Iterable[str]:
    if audit.observed.policies is None:
        yield "NetworkPolicies could not be read"
    for role, reach in audit.egress.items():
        by = f" (by {', '.join(reach.policies)})" if reach.policies else ""
        yield f"out, {role}: {reach.describe('Egress')}{by}"
    if audit.ingress is not None:
        by = f" (by {', '.join(audit.ingress.policies)})" if audit.ingress.policies else ""
        yield f"in, serve: {audit.ingress.describe('Ingress')}{by}"
    if audit.observed.services is None:
        yield "Services could not be read"
    for service in audit.observed.services or ():
        outside = ", ".join(service.external) or "not from outside"
        yield f"Service {service.name}: {service.kind}, traffic policy {service.traffic}, {outside}"


def _confinement(pods: Sequence[PodFacts]) -> Iterable[str]:
    servers = [pod for pod in pods if pod.role == Role.SERVE]
    if not servers:
        yield "no serving pod"
        return
    yield f"service account token: {'mounted' if any(p.token == 'mounted' for p in pods) else 'in no pod'}"
    main = [c for pod in servers for c in pod.containers if c.kind == "main"]
    facts = {
        "not root": all(c.non_root for c in main),
        "read-only root file system": all(c.read_only_root for c in main),
        "no privilege escalation": all(c.no_escalation for c in main),
        "all capabilities dropped": all(c.drops_all and not c.added_capabilities for c in main),
        "seccomp profile": all(c.seccomp in ("RuntimeDefault", "Localhost") for c in main),
    }
    yield "serving containers: " + ", ".join(
        f"{name}: {'yes' if holds else 'NO'}" for name, holds in facts.items()
    )
    yield from sorted(
        {
            f"{m.container} has {'folder ' if m.kind == 'hostPath' else 'Secret '}{m.what}"
            f"{' of the node' if m.kind == 'hostPath' else ''}, {m.access}"
            for pod in pods
            for m in pod.mounts
        }
    )


def _learnt(audit: Audit, width: int) -> Lines:
    lines = [Text("nothing")] if audit.kept is None else _texts(_kept(audit.kept), width)
    for trained in audit.trained:
        lines += wrapped(_trained(trained), width=width)
        # As above: a hash is never cut.
        lines += wrapped(f"sha256 {trained.sha256}", width=width, indent=2)
        if trained.base_digest:
            lines += wrapped(f"for the model {trained.base_digest}", width=width, indent=2)
        where = f"in revision {trained.revision} {trained.variant}" if trained.revision else "in no revision"
        lines += wrapped(f"{where}, on {', '.join(trained.nodes) or 'no node'}", width=width, indent=2)
    return lines


def _kept(kept: KeptFacts) -> Iterable[str]:
    yield (
        f"at sites {', '.join(kept.sites)}: what users correct, for {kept.retention}, at most "
        f"{kept.max_examples} on a node"
    )
    yield f"on nodes {', '.join(kept.nodes)}" if kept.nodes else "on no node yet"
    patterns = f", and what matches {len(kept.patterns)} pattern(s) of spec" if kept.patterns else ""
    yield f"redacted before it is written: {', '.join(kept.redacted) or 'nothing'}{patterns}"


def _trained(trained: TrainedFacts) -> str:
    learnt = f" from {trained.examples} examples" if trained.examples is not None else ""
    when = f" at {trained.trained_at}" if trained.trained_at else ""
    return (
        f"adapter {trained.name} ({size_text(trained.size_bytes)}), trained at site "
        f"{trained.site or 'not known any more'}{learnt}{when}"
    )


def _findings(findings: Sequence[Finding], width: int) -> Lines:
    lines: Lines = []
    for found in findings:
        head = Text(f"{found.severity:<7}", style=_STYLES[found.severity])
        head.append(f"{found.reason}  ", style="bold")
        head.append(found.subject, style="")
        lines += [head, *wrapped(found.message, width=width, indent=7)]
        lines += wrapped(f"-> {found.cure}", width=width, indent=7, style="dim")
    return lines
