# SPDX-License-Identifier: Apache-2.0
"""The spec that the planner goes by, once DeviceProfiles and the SLMModel that it follows are worked in.

Where neither matters it is the written spec itself, so that its revisions are what they always were.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import Field

from slmops.api.base import ApiModel, LabelSelector, quantity_value
from slmops.api.overrides import Adapter
from slmops.api.spec import SLMDeploymentSpec, Variant
from slmops.model.observed import NodeView
from slmops.planning.overrides import OverrideRule
from slmops.planning.selectors import matches


class ProfileRule(ApiModel):
    """What a revision keeps of a class of nodes: those of a DeviceProfile, those that an override is for, or
    those of a profile that an override is for; and what a model may take there."""

    name: str = Field(description="Name of the profile; empty for nodes that are of none.")
    node_selector: LabelSelector = Field(description="Labels of its nodes.")
    hardware: LabelSelector = Field(description="Architecture and accelerator, as labels, too.")
    memory: str | None = Field(default=None, description="Quantity or percentage.")
    disk: str | None = Field(default=None, description="Quantity.")
    override: OverrideRule | None = Field(default=None, description="Which of the profile's nodes it is for.")

    @property
    def override_name(self) -> str:
        """Name of the override; empty for none."""
        return self.override.name if self.override is not None else ""

    def is_of_profile(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is of the profile, or it takes no profile to be of the class."""
        return matches(self.node_selector, labels) and matches(self.hardware, labels)

    def is_of(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is of the class, if it is of none before it."""
        return self.is_of_profile(labels) and (self.override is None or self.override.is_for(labels))

    def capacity_bytes(self, allocatable_bytes: int) -> int:
        """Memory that models may take of what the node can allocate."""
        if self.memory is None:
            return allocatable_bytes
        if self.memory.endswith("%"):
            return allocatable_bytes * int(self.memory[:-1]) // 100
        return min(allocatable_bytes, int(quantity_value(self.memory)))

    @property
    def disk_bytes(self) -> int | None:
        """Most bytes of one model's files."""
        return None if self.disk is None else int(quantity_value(self.disk))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an SLMModel says of a variant's memory; no part of a revision, as it may be measured again."""

    size_bytes: int = 0
    memory_bytes: int | None = None
    """Peak with one request at a time on this class of devices."""
    cache_bytes_per_token: int | None = None


class Examples(ApiModel):
    """What the servers of a site that adapts the model keep of feedback."""

    site: str = Field(description="The site.")
    retention_seconds: int = Field(description="For how long.")
    max_examples: int = Field(description="How many on a node.")
    redact: list[str] = Field(description="Kinds of texts that are taken out, sorted.")
    patterns: list[str] = Field(description="Regular expressions of what is taken out, too, sorted.")


class EffectiveVariant(Variant):
    """A variant as it runs on the nodes of one class: of a profile or none, with an override or without."""

    name: str = Field(description="Of the variant, the profile and the override.")
    profile: str | None = Field(default=None, description="Name of the profile.")
    override: str | None = Field(default=None, description="Name of the override.")
    image: str | None = Field(default=None, description="The profile's image of the server.")
    adapters: list[Adapter] | None = Field(
        default=None, description="The override's adapters, and the one that was trained at the site."
    )
    examples: Examples | None = Field(default=None, description="What is kept of feedback at the site.")
    measured: Measurement | None = Field(default=None, exclude=True)


class EffectiveSpec(SLMDeploymentSpec):
    """A spec whose variants are those of several classes of nodes."""

    profiles: list[ProfileRule] = Field(description="The one that counts first comes first.")


class Choosable(Protocol):
    """What a choice of variants looks at."""

    @property
    def profile(self) -> str:
        """Name of the profile that it is for; empty for nodes that are of none."""
        ...

    @property
    def override(self) -> str:
        """Name of the override that it is for; empty for nodes that none is for."""
        ...

    @property
    def node_selector(self) -> LabelSelector: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Of its files."""
        ...


V = TypeVar("V", bound=Choosable)


def profile_of(variant: Variant) -> str:
    """Name of the profile of a variant of an effective spec; empty for none."""
    return (variant.profile or "") if isinstance(variant, EffectiveVariant) else ""


def override_of(variant: Variant) -> str:
    """Name of the override of a variant of an effective spec; empty for none."""
    return (variant.override or "") if isinstance(variant, EffectiveVariant) else ""


def rules_of(spec: SLMDeploymentSpec) -> Sequence[ProfileRule]:
    """The classes of an effective spec."""
    return spec.profiles if isinstance(spec, EffectiveSpec) else ()


def find_rule(rules: Iterable[ProfileRule], labels: Mapping[str, str]) -> ProfileRule | None:
    """The class that a node with these labels is of; None if it is of no profile and no override is for it.

    Rules of a profile stand together, and its last one, without an override, is for all of its nodes unless
    an override is.
    """
    profile: str | None = None
    is_of_profile = False
    for rule in rules:
        if rule.name != profile:
            profile, is_of_profile = rule.name, rule.is_of_profile(labels)
        if is_of_profile and (rule.override is None or rule.override.is_for(labels)):
            return rule
    return None


def class_of(rule: ProfileRule | None) -> tuple[str, str]:
    """(profile, override) that a variant for these nodes has; empty for none."""
    return (rule.name, rule.override_name) if rule is not None else ("", "")


def selected_for(variants: Sequence[V], rule: ProfileRule | None, labels: Mapping[str, str]) -> list[V]:
    """The variants that are meant for the node, in order of preference, whether they fit or not."""
    profile, override = class_of(rule)
    return [
        v
        for v in variants
        if v.profile == profile and v.override == override and matches(v.node_selector, labels)
    ]


def capacity_bytes(rule: ProfileRule | None, node: NodeView) -> int:
    """Memory that models may take on the node; 0 when it does not say yet what it has."""
    allocatable = node.allocatable_memory_bytes
    return allocatable if rule is None else rule.capacity_bytes(allocatable)


def fits_memory(variant: Choosable, rule: ProfileRule | None, node: NodeView) -> bool:
    """Whether the node can ever hold the variant in memory."""
    # A node that reports no allocatable memory has not registered fully; the scheduler decides then.
    return node.allocatable_memory_bytes == 0 or variant.memory_bytes <= capacity_bytes(rule, node)


def fits_disk(variant: Choosable, rule: ProfileRule | None) -> bool:
    """Whether the profile's budget holds the variant's files."""
    return rule is None or rule.disk_bytes is None or variant.size_bytes <= rule.disk_bytes


def choose(variants: Sequence[V], rules: Sequence[ProfileRule], node: NodeView) -> V | None:
    """The first variant that is meant for the node and fits it."""
    rule = find_rule(rules, node.labels) if rules else None
    profile, override = class_of(rule)
    # A plain loop: this runs for each node and revision.
    for variant in variants:
        if (
            variant.profile == profile
            and variant.override == override
            and matches(variant.node_selector, node.labels)
            and fits_memory(variant, rule, node)
            and fits_disk(variant, rule)
        ):
            return variant
    return None
