# SPDX-License-Identifier: Apache-2.0
"""Takes the page's snapshots from what a running operator has in memory; asks nobody for anything."""

import time
from collections.abc import Callable

from slmops.model.config import OperatorConfig
from slmops.page.detail import DeploymentSnapshot, build_deployment
from slmops.page.documents import encode
from slmops.page.feed import Feed
from slmops.page.overview import FleetSnapshot, build_overview
from slmops.runtime.observe import observe
from slmops.runtime.resource import DeploymentKey
from slmops.runtime.world import World


class WorldSource:
    """Implements `server.Source`."""

    def __init__(
        self, world: World, feed: Feed, *, config: OperatorConfig, leads: Callable[[], bool]
    ) -> None:
        self._world = world
        self._feed = feed
        self._config = config
        self._leads = leads

    def take_overview(self) -> Callable[[], bytes]:
        """A snapshot of the fleet."""
        world = self._world
        stored = (world.stored(key) for key in world.keys)
        models = world.models
        found = (models.stored(key) for key in models.keys) if models is not None else ()
        snapshot = FleetSnapshot(
            deployments=tuple(entry.deployment for entry in stored if entry is not None),
            nodes=world.nodes,
            models=tuple(entry.model for entry in found if entry is not None),
            leads=self._leads(),
            nodes_known=world.are_nodes_known,
        )
        return lambda: encode(build_overview(snapshot))

    def take_deployment(self, key: DeploymentKey) -> Callable[[], bytes] | None:
        """A snapshot of one deployment; None when it is not known."""
        stored = self._world.stored(key)
        if stored is None:
            return None
        history = self._feed.history(key)
        snapshot = DeploymentSnapshot(
            observed=observe(self._world, stored, config=self._config, resolutions={}, readings=()),
            now=time.time(),
            series=history.copy_series(),
            events=tuple(history.events),
            leads=self._leads(),
            nodes_known=self._world.are_nodes_known,
        )
        return lambda: encode(build_deployment(snapshot))
