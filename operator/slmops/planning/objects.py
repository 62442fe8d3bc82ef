# SPDX-License-Identifier: Apache-2.0
"""Which owned objects must exist, which are written now and which are no longer needed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slmops.model.observed import Observed, OwnedKind, OwnedView
from slmops.model.plan import ApplyObject, DeleteObject, PatchNodeLabels
from slmops.planning import build
from slmops.planning.access import scheme_of
from slmops.planning.fleet import Fleet
from slmops.planning.moves import Wish
from slmops.planning.names import MOVING_KEY, PREFETCH_SUFFIX, Names
from slmops.planning.revision import Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """(revision, variant) pairs that need a workload."""

    serve: frozenset[tuple[str, str]]
    prefetch: frozenset[tuple[str, str]]
    deployments: frozenset[str] = frozenset()
    """Names of the Deployments of replicas."""

    @property
    def revisions(self) -> frozenset[str]:
        """Revisions that any workload belongs to."""
        return frozenset(revision for revision, _ in self.serve | self.prefetch)


def needs_of(
    names: Names,
    fleet: Fleet,
    wishes: Mapping[str, Wish],
    patches: Iterable[PatchNodeLabels],
    *,
    prefetching: str,
) -> Needs:
    """What the nodes' labels ask for now and after `patches`.

    `prefetching` names the revision of a rollout under way: its prefetch workloads stay until the
    rollout ends, also between two waves.
    """
    serve = {pair for state in fleet.states for pair in state.serve.items()}
    prefetch = {pair for state in fleet.states for pair in state.prefetch.items()}
    for patch in patches:
        for key, value in patch.labels.items():
            if value is None:
                continue
            tail = key.removeprefix(names.label_prefix)
            if tail.endswith(PREFETCH_SUFFIX):
                prefetch.add((tail.removesuffix(PREFETCH_SUFFIX), value))
            elif tail != MOVING_KEY:
                serve.add((tail, value))
    for wish in wishes.values():
        pair = (wish.revision.revision, wish.variant.name)
        serve.add(pair)
        if pair[0] == prefetching:
            prefetch.add(pair)
    return Needs(serve=frozenset(serve), prefetch=frozenset(prefetch))


def apply_workloads(
    names: Names, fleet: Fleet, needs: Needs, owned: Iterable[OwnedView]
) -> tuple[ApplyObject, ...]:
    """ConfigMaps and DaemonSets that are missing or were changed by somebody else."""
    present = {(view.kind, view.name): view for view in owned}
    result: list[ApplyObject] = []

    def want(kind: OwnedKind, body: Mapping[str, object], name: str) -> None:
        view = present.get((kind, name))
        if view is None:
            result.append(ApplyObject(kind=kind, name=name, body=body, why="missing"))
        elif view.drifted:
            result.append(ApplyObject(kind=kind, name=name, body=body, why="changed by somebody else"))

    for revision_name, variant_name in sorted(needs.serve | needs.prefetch):
        revision = fleet.revisions.get(revision_name)
        variant = revision.variant(variant_name) if revision else None
        if revision is None or variant is None:
            continue  # a label of a revision nobody stored; the node is moved away from it
        name = names.workload(revision_name, variant_name)
        want(OwnedKind.CONFIG_MAP, build.build_config_map(names, revision, variant), name)
        if (revision_name, variant_name) in needs.serve:
            want(OwnedKind.DAEMON_SET, build.build_serve_daemon_set(names, revision, variant), name)
        if (revision_name, variant_name) in needs.prefetch:
            want(
                OwnedKind.DAEMON_SET,
                build.build_prefetch_daemon_set(names, revision, variant),
                names.prefetch_workload(revision_name, variant_name),
            )
    return tuple(result)


def apply_service(names: Names, fleet: Fleet, observed: Observed) -> tuple[ApplyObject, ...]:
    """The Service where it has to be written. `fleet.stable` is the one after this look: what its pods speak
    is what the Service says of itself."""
    deployment, revisions = observed.deployment, fleet.revisions
    view = next((v for v in observed.owned if v.kind is OwnedKind.SERVICE and v.name == names.name), None)
    scheme = scheme_of(fleet.stable, fleet.spec)
    before = scheme_of(revisions.get(deployment.status.stable_revision), fleet.spec)
    same_spec = deployment.generation == deployment.status.observed_generation
    if view is not None and not view.drifted and same_spec and scheme == before:
        return ()
    why = "missing" if view is None else "spec or Service changed"
    body = build.build_service(names, fleet.spec, scheme)
    return (ApplyObject(kind=OwnedKind.SERVICE, name=names.name, body=body, why=why),)


def delete_unneeded(
    names: Names,
    needs: Needs,
    owned: Iterable[OwnedView],
    *,
    keep_revisions: frozenset[str],
    policies: frozenset[str],
) -> tuple[DeleteObject, ...]:
    """Workloads that no node asks for any more, revisions beyond the history, and NetworkPolicies other than
    `policies`."""
    workloads = {names.workload(*pair) for pair in needs.serve}
    prefetches = {names.prefetch_workload(*pair) for pair in needs.prefetch}
    wanted = {
        OwnedKind.DAEMON_SET: workloads | prefetches,
        OwnedKind.DEPLOYMENT: needs.deployments,
        OwnedKind.CONFIG_MAP: workloads
        | {names.distribution}
        | {names.workload(*pair) for pair in needs.prefetch},
        OwnedKind.CONTROLLER_REVISION: {names.controller_revision(r) for r in keep_revisions},
        OwnedKind.SERVICE: {names.name},
        OwnedKind.NETWORK_POLICY: policies,
    }
    return tuple(
        DeleteObject(kind=view.kind, name=view.name, why="no longer needed")
        for view in owned
        if view.name not in wanted[view.kind] and not view.deleting
    )


def revisions_to_keep(
    revisions: Iterable[Revision], *, needed: frozenset[str], previous: str, history_limit: int
) -> frozenset[str]:
    """Needed revisions and `history_limit` others: the previous stable one, and then the newest."""
    others = sorted(
        (r for r in revisions if r.revision not in needed),
        key=lambda r: (r.revision == previous, r.number),
        reverse=True,
    )
    return needed | {r.revision for r in others[:history_limit]}
