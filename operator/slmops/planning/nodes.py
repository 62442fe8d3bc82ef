# SPDX-License-Identifier: Apache-2.0
"""What each node was given, what runs on it and what is wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.spec import Placement, Privacy
from slmops.model.observed import NodeView, PodView
from slmops.planning.effective import choose, find_rule, fits_memory
from slmops.planning.misfit import describe_misfit
from slmops.planning.names import MOVING_KEY, PREFETCH_SUFFIX, RELEASE_KEY, Names
from slmops.planning.residency import is_site_allowed
from slmops.planning.revision import Revision, RevisionVariant
from slmops.planning.selectors import matches
from slmwire.labels import Role
from slmwire.reasons import Reason, Termination

CRASH_RESTARTS: Final = 2
"""Restarts of a new pod after which it counts as crash-looping even between two back-offs."""

IMAGE_PULL_REASONS: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull"})
"""The link, the registry or the node keeps the image away: nothing that the revision has done."""

_CONFIG_REASONS: Final = frozenset({"InvalidImageName", "CreateContainerConfigError"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a pod does not get ready."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node as seen by one SLMDeployment."""

    node: NodeView
    matched: bool
    """Whether placement selects the node, at an allowed site (and the node is not being deleted)."""
    serve: Mapping[str, str]
    """revision -> variant, from the node's labels."""
    prefetch: Mapping[str, str]
    release: bool
    moving: str
    """Rollout that took the node's serving pod away and has not brought one back; mostly empty."""
    pods: tuple[PodView, ...]
    suits: frozenset[tuple[str, str]] | None = None
    """Of a replica: the (revision, variant) pairs that some node can run. None: this is a node."""

    # What follows is derived once: a look asks each node for it many times.
    name: str = field(init=False, compare=False)
    online: bool = field(init=False, compare=False)
    """The kubelet reports."""
    labelled: bool = field(init=False, compare=False)
    """The node carries any label of this deployment."""
    serving: bool = field(init=False, compare=False)
    """A serving pod of any revision is ready, and the node reports."""
    serves_given: bool = field(init=False, compare=False)
    """A serving pod of what the labels ask for is ready; a pod on its way out does not count."""
    troubled: bool = field(init=False, compare=False)
    """Some pod has a problem."""
    _serves: tuple[tuple[str, str], ...] = field(init=False, compare=False, repr=False)
    """(revision, variant) of the ready serving pods."""
    _holds: tuple[tuple[str, str], ...] = field(init=False, compare=False, repr=False)
    """(revision, variant) of the ready serving and prefetching pods."""
    _chosen: dict[str, tuple[Revision, RevisionVariant | None]] = field(
        init=False, compare=False, repr=False, default_factory=dict
    )
    """What `variant_of` has found, by revision; a function of the node and the revision alone."""

    def __post_init__(self) -> None:
        fix = object.__setattr__
        ready = [p for p in self.pods if p.ready and not p.deleting]
        serves = tuple((p.revision, p.variant) for p in ready if p.role is Role.SERVE)
        fix(self, "name", self.node.name)
        fix(self, "online", self.node.ready)
        fix(self, "labelled", bool(self.serve or self.prefetch or self.release or self.moving))
        fix(self, "_serves", serves)
        holds = tuple((p.revision, p.variant) for p in ready if p.role in (Role.SERVE, Role.PREFETCH))
        fix(self, "_holds", holds)
        fix(self, "serving", self.node.ready and bool(serves))
        fix(self, "serves_given", self.node.ready and any(pair in serves for pair in self.serve.items()))
        fix(self, "troubled", any(pod_problem(p) is not None for p in self.pods))

    def pods_of(self, revision: str, role: Role) -> Iterable[PodView]:
        """Pods of one revision and role that are not being deleted."""
        return (p for p in self.pods if p.revision == revision and p.role is role and not p.deleting)

    def serves(self, revision: str, variant: str | None = None) -> bool:
        """A serving pod of the revision (and variant) is ready, and the node reports."""
        if not self.online:
            return False
        if variant is not None:
            return (revision, variant) in self._serves
        return any(served == revision for served, _ in self._serves)

    def cached(self, revision: str, variant: str) -> bool:
        """The node is known to hold the verified model: it is prefetched or being served.

        A replica fetches on whichever node it comes to, so nothing is to be fetched ahead for it.
        """
        return self.suits is not None or (revision, variant) in self._holds

    def variant_of(self, revision: Revision) -> RevisionVariant | None:
        """Variant of the revision for this node, see `choose_for`."""
        known = self._chosen.get(revision.revision)
        if known is not None and known[0] is revision:
            return known[1]
        chosen = choose_for(revision, self)
        self._chosen[revision.revision] = revision, chosen
        return chosen

    def serve_problem(self, revision: str) -> Problem | None:
        """What is wrong with the serving pod of the revision; None while it may still come up."""
        if not self.troubled:
            return None
        return next(filter(None, map(pod_problem, self.pods_of(revision, Role.SERVE))), None)

    def prefetch_problem(self, revision: str) -> Problem | None:
        """What is wrong with the prefetching pod of the revision."""
        if not self.troubled:
            return None
        return next(filter(None, map(pod_problem, self.pods_of(revision, Role.PREFETCH))), None)


OOM_KILLED: Final = "OOMKilled"
OOM_PROBLEM: Final = Problem(
    reason=OOM_KILLED, message="the container was killed for using more memory than its limit"
)


def pod_problem(pod: PodView) -> Problem | None:
    """Why the pod is not ready, or None when it is or may still get there by itself."""
    if pod.ready:
        return None
    if pod.last_exit_reason == OOM_KILLED:
        return OOM_PROBLEM
    if pod.termination is not None and pod.termination.reason:
        return _reported(pod.termination)
    if pod.unschedulable:
        return Problem(
            reason="Unschedulable",
            message="the node cannot take the pod; check its free memory and its taints",
        )
    if pod.waiting_reason in IMAGE_PULL_REASONS:
        return Problem(
            reason=pod.waiting_reason, message="the runtime image cannot be pulled; check its name"
        )
    if pod.waiting_reason in _CONFIG_REASONS:
        return Problem(
            reason=pod.waiting_reason, message="the container cannot be made; check image and Secrets"
        )
    if pod.waiting_reason == "CrashLoopBackOff" or pod.restarts >= CRASH_RESTARTS:
        return Problem(
            reason="CrashLoopBackOff",
            message=f"the container ended {pod.restarts} times, last with exit code {pod.last_exit_code}",
        )
    return None


def _reported(termination: Termination) -> Problem:
    # The text comes from a node, which may have been tampered with; reasons go into conditions.
    known = termination.reason in Reason.__members__.values()
    reason = termination.reason if known else Reason.INTERNAL_ERROR.value
    return Problem(reason=reason, message=termination.message)


DOWNLOAD_REASONS: Final = frozenset(
    {
        Reason.INSUFFICIENT_CAPACITY,
        Reason.INTEGRITY_MISMATCH,
        Reason.SIGNATURE_INVALID,
        Reason.SOURCE_UNAVAILABLE,
        Reason.ADAPTER_LOST,
        Reason.ACCESS_DENIED,
        Reason.RATE_LIMITED,
    }
)
"""Problems of getting a model, which say nothing about the model and never count as canary failures."""


def read_node(names: Names, spec: SLMDeploymentSpec, node: NodeView, pods: tuple[PodView, ...]) -> NodeState:
    """State of one node from its labels and pods."""
    serve: dict[str, str] = {}
    prefetch: dict[str, str] = {}
    release, moving = False, ""
    prefix = names.label_prefix
    for key, value in node.labels.items():
        if not key.startswith(prefix):
            continue
        tail = key.removeprefix(prefix)
        if tail == RELEASE_KEY:
            release = True
        elif tail == MOVING_KEY:
            moving = value
        elif tail.endswith(PREFETCH_SUFFIX):
            prefetch[tail.removesuffix(PREFETCH_SUFFIX)] = value
        else:
            serve[tail] = value
    return NodeState(
        node=node,
        matched=not node.deleting
        and matches(spec.placement.node_selector, node.labels)
        and is_site_allowed(spec, node.labels),
        serve=serve,
        prefetch=prefetch,
        release=release,
        moving=moving,
        pods=pods,
    )


class NodeMemory:
    """What earlier looks at one deployment have derived, kept while it rests on the same things.

    It changes no result: a state is taken again only for the same node, the same pods and the same
    spec, and a revision only if its record is equal.
    """

    def __init__(self) -> None:
        self._basis: tuple[Names, Placement, Privacy] | None = None
        self._states: dict[str, NodeState] = {}
        self._revisions: dict[str, Revision] = {}

    def read_node(
        self, names: Names, spec: SLMDeploymentSpec, node: NodeView, pods: tuple[PodView, ...]
    ) -> NodeState:
        """As the function of this name."""
        basis = self._basis
        # Of the spec nothing but these is read, which stay the same objects while the rest is worked out.
        same = basis is not None and basis[1] is spec.placement and basis[2] is spec.privacy
        if basis is None or not same or basis[0] != names:
            self._basis, self._states = (names, spec.placement, spec.privacy), {}
        known = self._states.get(node.name)
        if known is not None and known.node is node and known.pods == pods:
            return known
        state = self._states[node.name] = read_node(names, spec, node, pods)
        return state

    def keep_only(self, states: Iterable[NodeState]) -> None:
        """Forget the nodes that are gone."""
        self._states = {state.name: state for state in states}

    def same_revisions(self, revisions: Mapping[str, Revision]) -> dict[str, Revision]:
        """`revisions`, each as the object of the last look where it is equal."""
        self._revisions = {
            name: known if (known := self._revisions.get(name)) == revision else revision
            for name, revision in revisions.items()
        }
        return dict(self._revisions)


def read_nodes(
    names: Names,
    spec: SLMDeploymentSpec,
    nodes: Iterable[NodeView],
    pods: Iterable[PodView],
    *,
    memory: NodeMemory | None = None,
) -> tuple[NodeState, ...]:
    """States of the nodes that match placement or carry our labels, sorted by name."""
    by_node: dict[str, list[PodView]] = {}
    for pod in pods:
        by_node.setdefault(pod.node, []).append(pod)
    read = read_node if memory is None else memory.read_node
    states = [read(names, spec, node, tuple(by_node.get(node.name, ()))) for node in nodes]
    if memory is not None:
        memory.keep_only(states)
    return tuple(sorted((s for s in states if s.matched or s.labelled), key=attrgetter("name")))


def choose_variant(revision: Revision, node: NodeView) -> RevisionVariant | None:
    """First variant of the revision that is for the node's profile, selects the node and fits it."""
    return choose(revision.variants, revision.profiles, node)


def choose_variant_names(
    revisions: Iterable[Revision], nodes: Sequence[NodeView]
) -> frozenset[tuple[str, str]]:
    """(revision, variant) pairs that any of the nodes can run."""
    # A node that has just joined does not say yet how much memory it has; better ask the others.
    known = [node for node in nodes if node.allocatable_memory_bytes] or nodes
    return frozenset(
        (revision.revision, variant.name)
        for revision in revisions
        for variant in revision.variants
        if any(matches(variant.node_selector, n.labels) and fits_memory(variant, None, n) for n in known)
    )


def choose_for(revision: Revision, state: NodeState) -> RevisionVariant | None:
    """The variant of the revision for the node; for a replica the first that suits any node.

    A replica keeps the variant that it has while there is a node for it: that a node has joined is no
    reason to take pods away.
    """
    if state.suits is None:
        return choose_variant(revision, state.node)
    kept = revision.variant(state.serve.get(revision.revision, ""))
    variants = (kept, *revision.variants) if kept else revision.variants
    return next((v for v in variants if (revision.revision, v.name) in state.suits), None)


def unfit_reason(revision: Revision, state: NodeState) -> Problem:
    """Why no variant suits the node, with the numbers."""
    if state.suits is not None:
        return Problem(
            reason=Reason.UNFIT,
            message="no node that matches spec.placement.nodeSelector suits any variant; label a node for "
            "it, or add a smaller variant",
        )
    rule = find_rule(revision.profiles, state.node.labels)
    return Problem(reason=Reason.UNFIT, message=describe_misfit(revision.variants, rule, state.node))
