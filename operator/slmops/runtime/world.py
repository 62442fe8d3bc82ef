# SPDX-License-Identifier: Apache-2.0
"""What is known of the cluster: trimmed caches, who is woken by a change, and what we wrote."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slmops.adapters.kube import KubeClient
from slmops.adapters.reflector import Key, Reflector
from slmops.adapters.resources import DEVICE_PROFILES, NODES, OWNED, PODS, Resource
from slmops.adapters.trim import OwnedMeta, OwnedPod, trim_node, trim_owned, trim_pod, trim_profile
from slmops.api.base import LabelSelector
from slmops.api.spec import ModelSource
from slmops.model.observed import Deployment, NodeView, OwnedKind, ProfileView
from slmops.model.offers import ModelOffer
from slmops.planning import times
from slmops.planning.names import Names
from slmops.planning.selectors import matches
from slmops.runtime.jobs import JobCache
from slmops.runtime.models.world import ModelWorld
from slmops.runtime.onlooker import Onlooker
from slmops.runtime.resource import DeploymentKey, StoredDeployment, is_newer, key_of_body, parse_deployment
from slmwire.labels import ADAPTATION, MANAGED_BY, MANAGED_BY_VALUE, MODEL

_OURS = f"{MANAGED_BY}={MANAGED_BY_VALUE},!{MODEL},!{ADAPTATION}"
"""Pods of Jobs are the models' business, or that of `World.trainings`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How an owned object looked in the answer to our own write."""

    uid: str
    generation: int
    resource_version: str
    labels: Mapping[str, str]


@dataclass(slots=True)
class _Members:
    """The nodes that concern one SLMDeployment: they match its placement or carry its labels."""

    selector: LabelSelector | None
    prefix: str
    nodes: dict[str, NodeView] = field(default_factory=dict)

    def concerns(self, view: NodeView) -> bool:
        if self.selector is not None and matches(self.selector, view.labels):
            return True
        return any(key.startswith(self.prefix) for key in view.labels)


@dataclass(slots=True)
class _Belongings:
    """What one SLMDeployment has in the cluster."""

    pods: dict[Key, OwnedPod] = field(default_factory=dict)
    owned: dict[tuple[OwnedKind, str], OwnedMeta] = field(default_factory=dict)


class World:
    """Caches of Nodes, Pods and owned objects, and the SLMDeployments that were seen.

    `on_wake` is called with each deployment that a change concerns: its own objects, and nodes that
    carry its labels or that its placement selects.
    """

    def __init__(
        self,
        kube: KubeClient,
        *,
        namespaces: tuple[str, ...],
        on_wake: Callable[[DeploymentKey], None],
        on_profile: Callable[[], None] = lambda: None,
        onlooker: Onlooker | None = None,
    ) -> None:
        """`on_profile` is called when any DeviceProfile has changed."""
        self._wake_worker = on_wake
        self._onlooker = onlooker or Onlooker()
        self._on_profile = on_profile
        self.models: ModelWorld | None = None
        """What is known of SLMModels, once somebody looks after them."""
        self._deployments: dict[DeploymentKey, StoredDeployment] = {}
        self._belongings: dict[DeploymentKey, _Belongings] = {}
        self._members: dict[DeploymentKey, _Members] = {}
        self._marks: dict[tuple[OwnedKind, str, str], Mark] = {}
        self._nodes = Reflector(kube, NODES, trim=trim_node, on_change=self._node_changed)
        self._profiles = Reflector(kube, DEVICE_PROFILES, trim=trim_profile, on_change=self._profile_changed)
        self._pods = [
            Reflector(
                kube,
                PODS,
                trim=trim_pod,
                on_change=self._pod_changed,
                namespace=namespace,
                label_selector=_OURS,
            )
            for namespace in namespaces or ("",)
        ]
        self._owned = {
            kind: [
                Reflector(
                    kube,
                    resource,
                    trim=_trimmer(kind),
                    on_change=self._owned_changed,
                    namespace=namespace,
                    label_selector=_OURS,
                )
                for namespace in namespaces or ("",)
            ]
            for kind, resource in OWNED.items()
        }
        self.trainings = JobCache(kube, owner_label=ADAPTATION, namespaces=namespaces, on_wake=self._on_wake)
        """Jobs that train adapters, with their pods."""

    # Caches

    @property
    def reflectors(self) -> list[Reflector[Any]]:
        """All caches, to be run."""
        owned = (reflector for group in self._owned.values() for reflector in group)
        return [self._nodes, self._profiles, *self._pods, *owned, *self.trainings.reflectors]

    async def wait_synced(self) -> None:
        """Until every cache has seen its whole list once. DeviceProfiles may be unknown to the cluster: what
        was made with them is left alone until they can be read. And an account from before NetworkPolicies
        may not list them, or not Jobs, which must not keep the operator from its work."""
        optional = [
            self._profiles,
            *self._owned[OwnedKind.NETWORK_POLICY],
            *self.trainings.reflectors,
        ]
        for reflector in self.reflectors:
            await (reflector.tried if reflector in optional else reflector.synced).wait()

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        """All nodes."""
        return tuple(self._nodes.values())

    @property
    def profiles(self) -> tuple[ProfileView, ...] | None:
        """All DeviceProfiles by name; None while they cannot be read."""
        if not self._profiles.synced.is_set():
            return None
        found = [profile for profile in self._profiles.values() if profile is not None]
        return tuple(sorted(found, key=lambda profile: profile.name))

    @property
    def are_nodes_known(self) -> bool:
        """Whether nodes and pods were listed: an operator that waits for the Lease knows of none."""
        return self._nodes.synced.is_set() and all(reflector.synced.is_set() for reflector in self._pods)

    @property
    def node_count(self) -> int:
        """Number of all nodes."""
        return len(self._nodes)

    def nodes_of(self, key: DeploymentKey) -> tuple[NodeView, ...]:
        """Nodes that match the deployment's placement or carry its labels."""
        return tuple(self._members_of(key).nodes.values())

    def _members_of(self, key: DeploymentKey) -> _Members:
        stored = self._deployments.get(key)
        spec = stored.deployment.spec if stored else None
        selector = spec.placement.node_selector if spec else None
        members = self._members.get(key)
        if members is None or members.selector != selector:
            members = _Members(selector, Names(*key).label_prefix)
            members.nodes = {view.name: view for view in self._nodes.values() if members.concerns(view)}
            self._members[key] = members
        return members

    def pods_of(self, key: DeploymentKey) -> Iterable[OwnedPod]:
        """Pods that carry the deployment's label."""
        found = self._belongings.get(key)
        return found.pods.values() if found else ()

    def owned_by(self, key: DeploymentKey, uid: str) -> Iterable[OwnedMeta]:
        """Objects owned by this very deployment, not by an earlier one of that name."""
        found = self._belongings.get(key)
        return (meta for meta in found.owned.values() if uid in meta.owner_uids) if found else ()

    def is_known(self, kind: OwnedKind, key: DeploymentKey, name: str) -> bool:
        """Whether an object with our labels is in the cache, whoever owns it."""
        found = self._belongings.get(key)
        return found is not None and (kind, name) in found.owned

    def owned_meta(self, kind: OwnedKind, key: DeploymentKey, name: str) -> OwnedMeta | None:
        """What is known of an owned object."""
        found = self._belongings.get(key)
        return found.owned.get((kind, name)) if found else None

    def node(self, name: str) -> NodeView | None:
        """A node."""
        return self._nodes.get(("", name))

    # Own writes

    def take_in_node(self, body: Mapping[str, Any]) -> None:
        """The answer to a patch of a node."""
        self._nodes.put(body)

    def take_in_owned(self, kind: OwnedKind, body: Mapping[str, Any]) -> None:
        """The answer to an apply: remember it, so that a later change by others shows."""
        meta = trim_owned(kind, body)
        self._marks[(kind, meta.namespace, meta.name)] = Mark(
            meta.uid, meta.generation, meta.resource_version, meta.labels
        )
        for reflector in self._owned[kind]:
            if reflector.namespace in ("", meta.namespace):
                reflector.put(body)

    def has_drifted(self, meta: OwnedMeta) -> bool:
        """Whether somebody changed an object since our own last write.

        A body is not compared: the API server fills in defaults that would have to be known. What our
        own apply returned is remembered instead. After a restart nothing is remembered, so each
        object that can be changed is applied once more, which changes nothing where nothing differs.
        """
        mark = self._marks.get((meta.kind, meta.namespace, meta.name))
        if mark is None or mark.uid != meta.uid:
            # The content of these two is immutable, or told by a digest: that they exist is all there is to
            # say.
            return meta.kind not in (OwnedKind.CONFIG_MAP, OwnedKind.CONTROLLER_REVISION)
        return (
            mark.generation != meta.generation
            or mark.resource_version != meta.resource_version
            or mark.labels != meta.labels
        )

    # SLMDeployments

    @property
    def keys(self) -> tuple[DeploymentKey, ...]:
        """All SLMDeployments."""
        return tuple(self._deployments)

    def stored(self, key: DeploymentKey) -> StoredDeployment | None:
        """The latest known state of a deployment."""
        return self._deployments.get(key)

    def take_in_deployment(self, body: Mapping[str, Any]) -> bool:
        """Take in a body from the stream, a list or an answer; False when it was no news."""
        key = key_of_body(body)
        known = self._deployments.get(key)
        if not is_newer(body, known):
            return False
        stored = self._deployments[key] = parse_deployment(body, known)
        self._onlooker.status_seen(stored.deployment)
        return True

    def forget_deployment(self, key: DeploymentKey) -> None:
        """The deployment is gone."""
        self._deployments.pop(key, None)
        self._members.pop(key, None)
        self._onlooker.gone(key)

    # SLMModels

    def offer_of(self, namespace: str, name: str) -> ModelOffer | None:
        """What an SLMModel offers; None when there is no such model."""
        return self.models.offer_of(DeploymentKey(namespace, name)) if self.models is not None else None

    @property
    def are_models_known(self) -> bool:
        """Whether an SLMModel without an offer is known not to be there."""
        return self.models is None or self.models.is_listed

    def wake_followers(self, namespace: str, name: str) -> None:
        """The offer of an SLMModel has changed: wake the SLMDeployments that follow it."""
        for deployment, _ in self._followers(namespace, name):
            self._on_wake(DeploymentKey(namespace, deployment.name))

    def versions_in_use(self, namespace: str, name: str) -> frozenset[str]:
        """Versions of an SLMModel that the SLMDeployments which follow it name or run."""
        found = {
            version
            for deployment, source in self._followers(namespace, name)
            for version in (source.version, deployment.status.model_version)
        }
        return frozenset(version for version in found if version)

    def look_asked_at(self, namespace: str, name: str) -> float:
        """When a rule of an SLMDeployment that follows the SLMModel asked last for another look; 0 for
        never."""
        feedback = (deployment.status.feedback for deployment, _ in self._followers(namespace, name))
        asked = [found.look_asked_at for found in feedback if found is not None and found.look_asked_at]
        return max((times.to_seconds(text) for text in asked), default=0.0)

    def _followers(self, namespace: str, name: str) -> Iterator[tuple[Deployment, ModelSource]]:
        for key, stored in self._deployments.items():
            spec = stored.deployment.spec
            source = spec.model.from_ if spec is not None else None
            if key.namespace == namespace and source is not None and source.name == name:
                yield stored.deployment, source

    # Wakes

    def _on_wake(self, key: DeploymentKey) -> None:
        self._onlooker.changed(key)
        self._wake_worker(key)

    def _node_changed(self, _: Key, old: NodeView | None, new: NodeView | None) -> None:
        self._onlooker.changed(None)
        for key in self._deployments:
            members = self._members_of(key)
            name = new.name if new is not None else old.name if old is not None else ""
            was = members.nodes.pop(name, None) is not None
            if new is not None and members.concerns(new):
                members.nodes[name] = new
                was = True
            if was:
                self._on_wake(key)

    def _profile_changed(self, _: Key, old: ProfileView | None, new: ProfileView | None) -> None:
        # It may concern any: through its nodes, or through a revision that was made with it. It is rare.
        for key in self._deployments:
            self._on_wake(key)
        self._on_profile()

    def _pod_changed(self, key: Key, old: OwnedPod | None, new: OwnedPod | None) -> None:
        for pod in (old, new):
            if pod is not None and (new is None or pod.deployment != new.deployment):
                self._of(pod).pods.pop(key, None)
        if new is not None:
            self._of(new).pods[key] = new
        self._wake_owners(old, new)

    def _owned_changed(self, _: Key, old: OwnedMeta | None, new: OwnedMeta | None) -> None:
        if old is not None:
            self._of(old).owned.pop((old.kind, old.name), None)
        if new is not None:
            self._of(new).owned[(new.kind, new.name)] = new
        else:
            assert old is not None
            self._marks.pop((old.kind, old.namespace, old.name), None)
        self._wake_owners(old, new)

    def _wake_owners(self, *values: OwnedPod | OwnedMeta | None) -> None:
        for key in {DeploymentKey(v.namespace, v.deployment) for v in values if v is not None}:
            belongings = self._belongings.get(key)
            if belongings is not None and not belongings.pods and not belongings.owned:
                del self._belongings[key]
            self._on_wake(key)

    def _of(self, value: OwnedPod | OwnedMeta) -> _Belongings:
        return self._belongings.setdefault(DeploymentKey(value.namespace, value.deployment), _Belongings())


def _trimmer(kind: OwnedKind) -> Callable[[Mapping[str, Any]], OwnedMeta]:
    return lambda body: trim_owned(kind, body)


def resource_of(kind: OwnedKind) -> Resource:
    """Resource type of an owned kind."""
    return OWNED[kind]
