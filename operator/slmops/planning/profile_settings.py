# SPDX-License-Identifier: Apache-2.0
"""What a DeviceProfile fills in where a variant and its deployment say nothing."""

from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.api.profile import DeviceProfileSpec
from slmops.api.spec import ResourceAmounts, Resources, Variant
from slmops.api.variant import VariantRuntime

_DEFAULT_CPU: Final = Resources().requests.cpu


def runtime_with(
    profile: DeviceProfileSpec, spec: SLMDeploymentSpec, variant: Variant
) -> VariantRuntime | None:
    """The variant's settings, else the profile's where the deployment has the API's default."""
    values: dict[str, int] = {}
    for name in VariantRuntime.model_fields:
        own = getattr(variant.runtime, name) if variant.runtime is not None else None
        is_default = getattr(spec.runtime, name) == type(spec.runtime).model_fields[name].default
        # A profile does not say everything that a variant may.
        value = getattr(profile.runtime, name, None) if own is None and is_default else own
        if value is not None:
            values[name] = value
    return VariantRuntime.model_validate(values) if values else None


def resources_with(profile: DeviceProfileSpec, variant: Variant) -> Resources:
    """The variant's, the profile's where it says nothing. What the profile asks for stays below a limit."""
    own, other = variant.resources, profile.runtime.resources
    limits = ResourceAmounts(
        cpu=own.limits.cpu or other.limits.cpu, memory=own.limits.memory or other.limits.memory
    )
    cpu = own.requests.cpu
    if cpu in (None, _DEFAULT_CPU):
        cpu = other.requests.cpu or cpu
    memory = own.requests.memory or other.requests.memory
    requests = ResourceAmounts(cpu=_least(cpu, limits.cpu), memory=_least(memory, limits.memory))
    return Resources(requests=requests, limits=limits)


def _least(request: str | None, limit: str | None) -> str | None:
    if request is None or limit is None:
        return request
    return limit if quantity_value(limit) < quantity_value(request) else request
