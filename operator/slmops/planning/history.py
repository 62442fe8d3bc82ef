# SPDX-License-Identifier: Apache-2.0
"""The history of revisions: what is stored, and the one that is wanted added to it."""

from slmops.api import SLMDeploymentSpec
from slmops.model.observed import Observed, OwnedKind
from slmops.model.plan import ApplyObject
from slmops.planning import build
from slmops.planning.names import Names
from slmops.planning.needs import assess_needs, with_requests
from slmops.planning.resolution import Resolution
from slmops.planning.revision import Revision, build_revision_data, parse_revision


def parse_stored(observed: Observed) -> dict[str, Revision]:
    """The revisions of the history that can be read."""
    result = {}
    for view in observed.revisions:
        try:
            result[view.revision] = parse_revision(view.revision, view.number, view.data)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            continue  # altered by somebody; made anew when it is the target, else unusable
    return result


def with_target(
    names: Names,
    spec: SLMDeploymentSpec,
    observed: Observed,
    resolution: Resolution,
    stored: dict[str, Revision],
    target: str,
    stable: str,
) -> tuple[dict[str, Revision], tuple[ApplyObject, ...]]:
    """All revisions with the target among them, and the write that stores it if need be.

    The target gets the highest number, also when it is an earlier revision taken up again.
    """
    if not target or (target != resolution.revision and target not in stored):
        return stored, ()
    newest = max((r.number for r in stored.values()), default=0)
    known = stored.get(target)
    view = next((v for v in observed.revisions if v.revision == target), None)
    if known is not None and view is not None and (known.number == newest or target == stable):
        return stored, ()
    if known is not None and view is not None:
        data, why = dict(view.data), "taken up again"
    else:
        needs = assess_needs(spec, resolution.resolved)
        spec = with_requests(spec, needs)
        templates = build.build_templates(
            names,
            spec,
            config=observed.config,
            revision=target,
            digests={name: found.manifest.digest for name, found in resolution.resolved.items()},
            references={name: found.reference for name, found in resolution.resolved.items()},
        )
        data = build_revision_data(spec, resolved=resolution.resolved, templates=templates, needs=needs)
        why = "new revision"
    number = newest + 1
    body = build.build_controller_revision(names, revision=target, number=number, data=data)
    write = ApplyObject(
        kind=OwnedKind.CONTROLLER_REVISION, name=names.controller_revision(target), body=body, why=why
    )
    return stored | {target: parse_revision(target, number, data)}, (write,)
