# SPDX-License-Identifier: Apache-2.0
"""What is known of SLMModels, and caches of their Jobs and pods."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from slmops.adapters.kube import KubeClient
from slmops.adapters.reflector import Reflector
from slmops.model import observed
from slmops.model.jobs import JobPodView, JobView
from slmops.model.offers import ModelOffer
from slmops.model.slmmodel import ProfileView
from slmops.planning.expand import measured_nodes
from slmops.planning.slmmodel.offer import to_offer
from slmops.runtime.jobs import JobCache
from slmops.runtime.models.resource import StoredModel, is_newer, parse_model
from slmops.runtime.resource import DeploymentKey, key_of_body
from slmwire.labels import MODEL

ModelKey = DeploymentKey


class ModelWorld:
    """SLMModels that were seen, with their Jobs and pods.

    `on_wake` is called with each model that a change concerns, `on_offer` with one whose offer has changed.
    """

    def __init__(
        self,
        kube: KubeClient,
        *,
        namespaces: tuple[str, ...],
        on_wake: Callable[[ModelKey], None],
        on_offer: Callable[[ModelKey], None],
        read_profiles: Callable[[], Iterable[observed.ProfileView] | None],
        read_in_use: Callable[[ModelKey], frozenset[str]] = lambda key: frozenset(),
        read_look_asked_at: Callable[[ModelKey], float] = lambda key: 0.0,
        on_seen: Callable[[], None] = lambda: None,
    ) -> None:
        """`read_in_use` names the versions of a model that SLMDeployments name or run, `read_look_asked_at`
        tells when one of them asked last for another look at the source (0 for never); `on_seen` is called
        when any model is new, differs or is gone."""
        self._on_seen = on_seen
        self.in_use = read_in_use
        self.look_asked_at = read_look_asked_at
        self._read_profiles = read_profiles
        self._on_offer = on_offer
        self.is_listed = False
        """Whether all SLMModels have been seen once: one that is not known is not there then."""
        self._models: dict[ModelKey, StoredModel] = {}
        self._offers: dict[ModelKey, ModelOffer] = {}
        self.jobs = JobCache(kube, owner_label=MODEL, namespaces=namespaces, on_wake=on_wake)
        """Their Jobs, with pods."""

    @property
    def reflectors(self) -> list[Reflector[Any]]:
        """All caches, to be run."""
        return self.jobs.reflectors

    async def wait_synced(self) -> None:
        """Until every cache has seen its whole list once."""
        for reflector in self.reflectors:
            await reflector.synced.wait()

    @property
    def keys(self) -> tuple[ModelKey, ...]:
        """All SLMModels."""
        return tuple(self._models)

    def stored(self, key: ModelKey) -> StoredModel | None:
        """The latest known state of a model."""
        return self._models.get(key)

    def take_in_model(self, body: Mapping[str, Any]) -> bool:
        """Take in a body from the stream, a list or an answer; False when it was no news."""
        key = key_of_body(body)
        if not is_newer(body, self._models.get(key)):
            return False
        stored = parse_model(body)
        self._models[key] = stored
        self._on_seen()
        if not stored.status_error:
            offer = to_offer(key.namespace, key.name, stored.model.status)
            if offer != self._offers.get(key):
                self._offers[key] = offer
                self._on_offer(key)
        return True

    def forget_model(self, key: ModelKey) -> None:
        """The model is gone."""
        self._models.pop(key, None)
        self._on_seen()
        if self._offers.pop(key, None) is not None:
            self._on_offer(key)

    def offer_of(self, key: ModelKey) -> ModelOffer | None:
        """What the model offers to deployments; None when there is no such model."""
        return self._offers.get(key)

    def profiles(self) -> Mapping[str, ProfileView] | None:
        """DeviceProfiles by name: where a measurement finds its node; None while they cannot be read."""
        found = self._read_profiles()
        if found is None:
            return None
        return {
            profile.name: ProfileView(
                node_selector=measured_nodes(profile),
                engine=profile.spec.engine or "",
                engine_image=profile.spec.engine_image or "",
            )
            for profile in found
        }

    def jobs_of(self, key: ModelKey, uid: str) -> tuple[JobView, ...]:
        """Jobs owned by this very model, not by an earlier one of that name, by name."""
        return self.jobs.jobs_of(key, uid)

    def pods_of(self, key: ModelKey) -> tuple[JobPodView, ...]:
        """Pods that carry the model's label."""
        return self.jobs.pods_of(key)
