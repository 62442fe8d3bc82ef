# SPDX-License-Identifier: Apache-2.0
"""Device profiles, and a fleet that has some, for tests of the planner."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from slmops.api.profile import DeviceProfileSpec
from slmops.model.geometry import Geometry
from slmops.model.observed import NodeView, Observed, ProfileView, Reading, Resolved
from slmops.model.offers import ModelOffer
from slmwire.manifest import Manifest, ManifestFile
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_spec import spec_body

MIB = 1 << 20
GIB = 1 << 30


def profile(name: str, *, device: str = "", **spec: Any) -> ProfileView:
    """A profile of the nodes labelled device=<name>."""
    selector = {"matchLabels": {"device": device or name}}
    return ProfileView(name=name, spec=DeviceProfileSpec.model_validate({"nodeSelector": selector} | spec))


def variant(name: str, weights: str = "1Gi", *, version: str = "v1", **fields: Any) -> dict[str, Any]:
    """A variant whose need is known by hints: its weights and 100 MiB."""
    return {
        "name": name,
        "source": {"http": {"url": f"http://models/{version}/{name}.json"}},
        "memory": {"weights": weights, "overhead": "100Mi", "cachePerToken": "0"},
    } | fields


def body_of(*variants: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A spec with these variants, rolled out in two waves."""
    return spec_body() | {"variants": list(variants)} | changes


def node(name: str, *, memory: int = 4 * GIB, **labels: str) -> NodeView:
    return NodeView(name=name, labels={"slm": "yes"} | labels, ready=True, allocatable_memory_bytes=memory)


def files(*named: tuple[str, int], geometry: Geometry | None = None) -> Resolved:
    """A model with these files (path, size)."""
    rows = [ManifestFile(path=path, size=size, sha256="0" * 64) for path, size in sorted(named)]
    return Resolved(manifest=Manifest(files=tuple(rows)), reference="abc", geometry=geometry)


class ProfileSim(FleetSim):
    """A fleet with device profiles and perhaps an SLMModel."""

    profiles: tuple[ProfileView, ...] | None = ()
    offer: ModelOffer | None = None
    are_models_known: bool = True

    def observed(self, readings: Iterable[Reading] = ()) -> Observed:
        return replace(
            super().observed(readings),
            profiles=self.profiles,
            offer=self.offer,
            are_models_known=self.are_models_known,
        )

    def _fingerprint(self) -> object:
        return super()._fingerprint(), self.profiles, self.offer, self.are_models_known

    def variants(self) -> dict[str, str]:
        """Variant that each node serves; + between two."""
        return {name: "+".join(sorted(self.given(name).values())) for name in self.cluster.nodes}
