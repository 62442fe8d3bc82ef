# SPDX-License-Identifier: Apache-2.0
"""From the written spec to the effective one: the version of the SLMModel that is followed, and one variant
for each class of nodes and each variant that they may take. A class is a DeviceProfile, or none, with an
override, or none.

Which profiles are worked in must not depend on what comes and goes, or every change of it would be a new
revision and a rollout. So those that no node is of are left alone, and one that was worked in once stays.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from pydantic import ValidationError

from slmops.api import SLMDeploymentSpec
from slmops.api.base import NAME_PATTERN, LabelSelector, LabelSelectorRequirement
from slmops.api.overrides import Override
from slmops.api.spec import Variant
from slmops.api.variant import AUTO, EngineName
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.model.offers import OfferedVariant, OfferedVersion
from slmops.planning.adaptation_sites import (
    TrainedAdapters,
    adapters_with,
    examples_of,
    site_of,
    with_sites,
)
from slmops.planning.effective import (
    EffectiveSpec,
    EffectiveVariant,
    Measurement,
    ProfileRule,
    find_rule,
)
from slmops.planning.expand_limits import MAX_VARIANTS, say_too_many
from slmops.planning.needs import engine_of_files
from slmops.planning.overrides import (
    in_order,
    is_for_all,
    overridden_resources,
    overridden_runtime,
    overrides_of_class,
    rule_of_override,
)
from slmops.planning.profile_settings import resources_with, runtime_with
from slmops.planning.revision import source_hash
from slmops.planning.selectors import matches

MAX_NAME_LENGTH: Final = 40
_ARCHITECTURE: Final = "kubernetes.io/arch"
_ANY_NODE: Final = ProfileRule(name="", node_selector=LabelSelector(), hardware=LabelSelector())


class ExpansionError(ValueError):
    """The spec cannot be worked out; the message names the field and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """A variant with what its SLMModel says of it, if it comes from one."""

    variant: Variant
    offered: OfferedVariant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Nodes that take the same variants with the same settings."""

    profile: ProfileView | None
    override: Override | None

    @property
    def profile_name(self) -> str:
        return self.profile.name if self.profile is not None else ""

    @property
    def engine(self) -> EngineName | None:
        """What variants must be for; None for any."""
        if self.override is not None and self.override.engine is not None:
            return self.override.engine
        return self.profile.spec.engine if self.profile is not None else None

    def rule(self, site_label: str) -> ProfileRule:
        """What the planner goes by."""
        rule = rule_of(self.profile) if self.profile is not None else _ANY_NODE
        if self.override is None:
            return rule
        return rule.model_copy(update={"override": rule_of_override(self.override, site_label=site_label)})


def expand_spec(
    spec: SLMDeploymentSpec,
    *,
    profiles: Iterable[ProfileView] = (),
    known: Mapping[str, Resolved],
    offered: OfferedVersion | None = None,
    trained: TrainedAdapters | None = None,
) -> SLMDeploymentSpec:
    """The effective spec; `spec` itself where nothing is to be worked in. Raises ExpansionError.

    `known` holds the files of sources by `source_hash`; preferences that go by size are provisional until
    all are known. `offered` is the version of the SLMModel that spec follows. `trained` are the adapters that
    were trained at sites of spec.adaptation.
    """
    forms = [_Form(variant=variant) for variant in spec.variants]
    if offered is not None:
        forms = [_Form(variant=_from_offer(entry), offered=entry) for entry in offered.variants]
        model = spec.model.model_copy(update={"version": offered.version})
        spec = spec.model_copy(update={"model": model})
    ranked = rank_profiles(profiles) if spec.placement.mode == "PerNode" else []
    classes = _classes(ranked, _overrides(spec) if spec.placement.mode == "PerNode" else ())
    plain = [_plain(form) for form in forms if not form.variant.profiles or spec.placement.mode != "PerNode"]
    names = _Names(form.variant.name for form in forms)
    pairs = [
        _pair(spec, form, one, name=names.of_pair(form.variant.name, one), known=known, trained=trained or {})
        for one in classes
        for form in _preferred([f for f in forms if _is_usable(f, one, known)], one.profile, known)
    ]
    variants = [*pairs, *plain]
    where = "variants[].profiles" if offered is None else "recipes[].profiles of the SLMModel"
    if len(variants) > MAX_VARIANTS:
        raise ExpansionError(say_too_many(spec, len(variants), profiles=len(ranked), where=where))
    if not variants and forms:
        wanted = sorted({name for form in forms for name in form.variant.profiles or ()})
        raise ExpansionError(
            f"{where}: no DeviceProfile {', '.join(wanted)} takes a variant; make one of "
            "that name (kubectl get devp), or leave profiles out"
        )
    if classes:
        rules = [one.rule(spec.placement.site_label) for one in classes]
        fields = {name: getattr(spec, name) for name in type(spec).model_fields}
        return EffectiveSpec.model_construct(**fields | {"variants": variants, "profiles": rules})
    if offered is None and len(variants) == len(spec.variants):
        return spec
    return spec.model_copy(update={"variants": variants})


def _overrides(spec: SLMDeploymentSpec) -> list[Override]:
    try:
        return with_sites(spec)
    except ValueError as error:
        raise ExpansionError(str(error)) from error


def _classes(ranked: Iterable[ProfileView], overrides: Iterable[Override]) -> list[_Class]:
    """In the order in which they count; nodes that are of none of them take the variants as written."""
    ordered = in_order(overrides)
    result = []
    for profile in (*ranked, None):
        name = profile.name if profile is not None else ""
        mine = overrides_of_class(ordered, name)
        result += [_Class(profile=profile, override=override) for override in mine]
        if profile is not None and not any(is_for_all(override) for override in mine):
            result.append(_Class(profile=profile, override=None))
    return result


def rank_profiles(profiles: Iterable[ProfileView]) -> list[ProfileView]:
    """The one that counts for a node that several match comes first."""
    return sorted(profiles, key=lambda profile: (-profile.spec.priority, profile.name))


def rule_of(profile: ProfileView) -> ProfileRule:
    """What the planner goes by."""
    spec = profile.spec
    expressions = []
    if spec.architectures:
        values = sorted(spec.architectures)
        expressions.append(LabelSelectorRequirement(key=_ARCHITECTURE, operator="In", values=values))
    if spec.accelerator is not None:
        expressions.append(
            LabelSelectorRequirement(
                key=spec.accelerator.label, operator="In", values=[spec.accelerator.value]
            )
        )
    return ProfileRule(
        name=profile.name,
        node_selector=spec.node_selector,
        hardware=LabelSelector(match_expressions=expressions),
        memory=spec.budgets.memory,
        disk=spec.budgets.disk,
    )


def measured_nodes(profile: ProfileView) -> LabelSelector:
    """Nodes that a measurement for the class may run on; one of a class before it may be among them."""
    rule = rule_of(profile)
    return LabelSelector(
        match_labels=rule.node_selector.match_labels,
        match_expressions=[*rule.node_selector.match_expressions, *rule.hardware.match_expressions],
    )


def find_used(
    spec: SLMDeploymentSpec,
    profiles: Iterable[ProfileView],
    *,
    nodes: Iterable[NodeView],
    kept: Collection[str],
) -> list[ProfileView]:
    """The profiles that are to be worked in: those of `kept`, and those that a matching node is of."""
    ranked = rank_profiles(profiles)
    used = {profile.name for profile in ranked if profile.name in kept}
    if len(used) < len(ranked):
        rules = [rule_of(profile) for profile in ranked]
        selector = spec.placement.node_selector
        for node in nodes:
            if node.deleting or not matches(selector, node.labels):
                continue
            rule = find_rule(rules, node.labels)
            if rule is not None:
                used.add(rule.name)
                if len(used) == len(ranked):
                    break
    return [profile for profile in ranked if profile.name in used]


def _from_offer(entry: OfferedVariant) -> Variant:
    try:
        return Variant(
            name=entry.name,
            source=entry.source,
            profiles=list(entry.profiles) or None,
            engine=entry.engine or None,
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise ExpansionError(
            f"spec.model.from: variant {entry.name} of the SLMModel cannot be used: {field}: {problem['msg']}"
        ) from error


def _plain(form: _Form) -> Variant:
    """The variant for nodes that are of no profile: as it is written."""
    if form.offered is None:
        return form.variant
    return EffectiveVariant.model_construct(**_fields(form.variant), measured=_measured(form, ""))


def _is_usable(form: _Form, one: _Class, known: Mapping[str, Resolved]) -> bool:
    variant = form.variant
    if variant.profiles and one.profile_name not in variant.profiles:
        return False
    wanted = one.engine
    if wanted in (None, AUTO):
        return True
    engine: str = variant.engine or ""
    found = known.get(source_hash(variant.source))
    # A variant for some profiles only would not be looked up any more if its files ruled it out.
    if not engine and found is not None and not variant.profiles:
        engine = engine_of_files(found.manifest)
    # An encoder runs on plain onnxruntime.
    return engine in ("", AUTO, wanted) or (engine == "encoder" and wanted == "onnxruntime")


def _preferred(forms: list[_Form], profile: ProfileView | None, known: Mapping[str, Resolved]) -> list[_Form]:
    """In the order in which the profile takes them; as written without one."""
    if profile is None:
        return forms
    preference = profile.spec.variants
    order: Callable[[_Form], tuple[float, ...]]
    match preference.strategy:
        case "Preferred":
            patterns = preference.prefer

            def order(form: _Form) -> tuple[float, ...]:
                places = [i for i, p in enumerate(patterns) if fnmatchcase(form.variant.name, p)]
                return (min(places, default=len(patterns)),)

        case "BestQuality":

            def order(form: _Form) -> tuple[float, ...]:
                quality = _number(form, profile.name, "quality")
                return (0, -quality) if quality is not None else (1, -_size(form, known))

        case "Fastest":

            def order(form: _Form) -> tuple[float, ...]:
                speed = _number(form, profile.name, "decode_tokens_per_second")
                return (0, -speed) if speed is not None else (1, _size(form, known))

        case "Smallest":

            def order(form: _Form) -> tuple[float, ...]:
                return (_size(form, known),)

    return sorted(forms, key=order)


def _number(form: _Form, profile: str, name: str) -> float | None:
    measured = form.offered.measured.get(profile) if form.offered is not None else None
    return None if measured is None else getattr(measured, name)


def _size(form: _Form, known: Mapping[str, Resolved]) -> int:
    if form.offered is not None and form.offered.size_bytes:
        return form.offered.size_bytes
    found = known.get(source_hash(form.variant.source))
    return found.manifest.size_bytes if found is not None else 0


class _Names:
    """Names of pairs: none that is given already, and short enough for labels and names of objects."""

    def __init__(self, given: Iterable[str]) -> None:
        self._given = set(given)

    def of_pair(self, variant: str, one: _Class) -> str:
        parts = [variant, one.profile_name]
        if one.override is not None:
            parts.append(one.override.name)
        name = "-".join(part for part in parts if part)
        if name in self._given or len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
            digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
            short = re.sub(r"[^a-z0-9]+", "-", name)[: MAX_NAME_LENGTH - 9].strip("-")
            name = f"{short}-{digest}"
        self._given.add(name)
        return name


def _fields(variant: Variant) -> dict[str, Any]:
    return {name: getattr(variant, name) for name in Variant.model_fields}


def _pair(
    spec: SLMDeploymentSpec,
    form: _Form,
    one: _Class,
    *,
    name: str,
    known: Mapping[str, Resolved],
    trained: TrainedAdapters,
) -> EffectiveVariant:
    variant, override = form.variant, one.override
    settings = one.profile.spec if one.profile is not None else None
    resources, runtime, engine = variant.resources, variant.runtime, variant.engine
    image: str | None = None
    if settings is not None:
        resources, runtime = resources_with(settings, variant), runtime_with(settings, spec, variant)
        engine = variant.engine or settings.engine or spec.runtime.engine
        image = settings.engine_image
    if override is not None and override.engine not in (None, engine):
        # The profile's image has the profile's engine.
        engine, image = override.engine, None
    found = known.get(source_hash(variant.source)) if site_of(override) else None
    examples = examples_of(spec, variant, override, engine=engine or spec.runtime.engine, found=found)
    changes: dict[str, Any] = {
        "name": name,
        "profiles": None,
        "profile": one.profile_name or None,
        "override": override.name if override is not None else None,
        "resources": overridden_resources(override, resources),
        "engine": engine,
        "runtime": overridden_runtime(override, runtime),
        "image": image,
        "adapters": adapters_with(
            override.adapters if override is not None else None,
            trained.get(site_of(override)),
            examples=examples,
            base=found.manifest.digest if found is not None else "",
        ),
        "examples": examples,
        "measured": _measured(form, one.profile_name),
    }
    return EffectiveVariant.model_construct(**_fields(variant) | changes)


def _measured(form: _Form, profile: str) -> Measurement | None:
    offered = form.offered
    if offered is None:
        return None
    there = offered.measured.get(profile)
    return Measurement(
        size_bytes=offered.size_bytes,
        memory_bytes=there.memory_bytes if there is not None else None,
        cache_bytes_per_token=offered.cache_bytes_per_token,
    )
