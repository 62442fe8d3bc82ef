# SPDX-License-Identifier: Apache-2.0
"""What a reviewer should know of words that sites keep (`spec.adaptation`)."""

from collections.abc import Iterable

from slmcli.audit.kept import keepers
from slmcli.audit.report import Audit, Finding


def assess_kept(audit: Audit) -> Iterable[Finding]:
    """Findings about examples from feedback."""
    kept, sites = audit.kept, audit.observed.sites
    if kept is not None:
        yield Finding(
            severity="low",
            reason="ExamplesKept",
            subject=f"sites {', '.join(kept.sites)}",
            message=f"what users correct is kept on the nodes there for {kept.retention} and trained on; "
            "names of people and the like are not recognised by redaction",
            cure="see that users know; a site that is taken out of spec.adaptation.sites removes what it has",
        )
        if kept.not_redacted:
            yield Finding(
                severity="medium",
                reason="ExamplesNotRedacted",
                subject="spec.adaptation.collect.redact",
                message=f"{', '.join(kept.not_redacted)} are left in what is kept",
                cure="name them in collect.redact, or leave it out: all kinds are the default",
            )
    if sites is None:
        return
    allowed = kept.sites if kept is not None else ()
    outside = [pod for pod in keepers(audit.observed.pods) if pod.node and sites.get(pod.node) not in allowed]
    if outside:
        where = sorted({sites.get(pod.node) or "no site" for pod in outside})
        yield Finding(
            severity="high",
            reason="ExamplesOutsideSites",
            subject=f"pod {', '.join(pod.name for pod in outside[:3])}"
            + (f" and {len(outside) - 3} more" if len(outside) > 3 else ""),
            message=f"the server may keep what users correct at {', '.join(where)}, which "
            "spec.adaptation.sites does not name",
            cure="if it lasts: the revision without it has not reached the node yet (kubectl slm explain); "
            "the folder goes when its next pod starts",
        )
