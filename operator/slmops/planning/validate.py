# SPDX-License-Identifier: Apache-2.0
"""Checks that keep a spec from being acted on at all: pure functions, the first finding counts.

The API server makes most of them, too; an object can be older than the schema that it is checked by.
"""

from collections.abc import Callable, Iterable
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import duration_seconds, quantity_value
from slmops.api.source import SOURCE_KINDS, Source
from slmops.model.config import OperatorConfig
from slmops.model.observed import Deployment
from slmops.planning.adapters import find_problem
from slmops.planning.effective import override_of
from slmops.planning.finding import Finding
from slmops.planning.source_hosts import find_variant_host_problem
from slmops.planning.validate_access import find_access_problem
from slmops.planning.validate_adaptation import find_adaptation_problem
from slmops.planning.validate_distribution import find_distribution_problem
from slmops.planning.validate_privacy import find_privacy_problem

MAX_NAME_LENGTH: Final = 40


def validate(deployment: Deployment, config: OperatorConfig) -> Finding | None:
    """First finding, or None for a spec that can be acted on."""
    if deployment.spec is None:
        return Finding(reason="InvalidSpec", message=deployment.spec_error)
    spec = deployment.spec
    return next(
        (found for check in _CHECKS if (found := check(deployment.name, spec, config)) is not None), None
    )


def _name(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    if len(name) > MAX_NAME_LENGTH or "." in name:
        return Finding(
            reason="InvalidName",
            message=f"metadata.name: {name!r} becomes part of label keys; use at most {MAX_NAME_LENGTH} "
            "characters and no dot",
        )
    if not name[:1].isalpha():
        return Finding(
            reason="InvalidName",
            message=f"metadata.name: {name!r} becomes the name of a Service; begin it with a letter",
        )
    return None


def _host_path(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    if is_host_path_allowed(spec, config):
        return None
    return Finding(
        reason="HostPathNotAllowed",
        message=f"spec.cache.hostPath: {spec.cache.host_path} is not below "
        f"{_join(config.allowed_host_paths)}; use one of these or let an administrator allow it "
        "(chart value allowedHostPaths)",
    )


def _file_paths(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    found = (
        find_file_problem(f"spec.variants[{index}].source", variant.source, config)
        for index, variant in enumerate(spec.variants)
    )
    return next((finding for finding in found if finding is not None), None)


def _source_hosts(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    return find_variant_host_problem(spec, config)


def find_file_problem(where: str, source: Source, config: OperatorConfig) -> Finding | None:
    """What is wrong with a `file` source at `where` in the spec; None for any other kind."""
    if source.file is None:
        return None
    if not _is_below(source.file.path, config.allowed_file_paths):
        return Finding(
            reason="FilePathNotAllowed",
            message=f"{where}.file.path: {source.file.path} is not below {_join(config.allowed_file_paths)}; "
            "let an administrator allow it (chart value allowedFilePaths)",
        )
    if any(entry.size is None for entry in source.file.files):
        return Finding(
            reason="InvalidSpec",
            message=f"{where}.file.files: every file needs its size; the operator cannot read a node's disk",
        )
    return None


def _source_kind(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    for index, variant in enumerate(spec.variants):
        source = variant.source
        if sum(getattr(source, kind) is not None for kind in SOURCE_KINDS) != 1:
            return Finding(
                reason="InvalidSpec",
                message=f"spec.variants[{index}].source: set exactly one of {', '.join(SOURCE_KINDS)}",
            )
    return None


def _model_source(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    source = spec.model.from_
    if source is None:
        if not spec.variants:
            message = "spec.variants: give at least 1, or an SLMModel in spec.model.from"
            return Finding(reason="InvalidSpec", message=message)
        if not spec.model.version:
            return Finding(reason="InvalidSpec", message="spec.model.version: set it")
        return None
    if sum(value is not None for value in (source.version, source.channel, source.version_pattern)) > 1:
        return Finding(
            reason="InvalidSpec",
            message="spec.model.from: set at most one of version, channel and versionPattern",
        )
    return None


def _profiles(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    if spec.placement.mode == "PerNode" or not any(variant.profiles for variant in spec.variants):
        return None
    return Finding(
        reason="InvalidSpec",
        message="spec.variants[].profiles: they need placement.mode PerNode; leave them out",
    )


def _overrides(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    for override in spec.overrides or ():
        where = f"spec.overrides[{override.name}]"
        if spec.placement.mode != "PerNode":
            return Finding(
                reason="InvalidSpec",
                message=f"{where}: overrides need placement.mode PerNode; leave them out",
            )
        if not override.sites and not override.profiles and override.node_selector is None:
            return Finding(
                reason="InvalidSpec",
                message=f"{where}: say where it counts: set at least one of sites, profiles and nodeSelector",
            )
    for variant in spec.variants:
        problem = find_problem(variant)
        if problem:
            where = f"spec.overrides[{override_of(variant)}].adapters"
            return Finding(reason="InvalidSpec", message=f"{where}: {problem}")
    return None


def _memory_limit(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    for index, variant in enumerate(spec.variants):
        for kind in ("memory", "cpu"):
            request = getattr(variant.resources.requests, kind)
            limit = getattr(variant.resources.limits, kind)
            if request and limit and quantity_value(request) > quantity_value(limit):
                return Finding(
                    reason="InvalidSpec",
                    message=f"spec.variants[{index}].resources: the {kind} request {request} is above its "
                    f"limit {limit}",
                )
    return None


def _tolerations(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    # The API server would refuse every pod template with these, and say so about the DaemonSet only.
    for index, toleration in enumerate(spec.placement.tolerations):
        where = f"spec.placement.tolerations[{index}]"
        if toleration.operator == "Exists" and toleration.value:
            return Finding(reason="InvalidSpec", message=f"{where}.value: leave it out with operator: Exists")
        if toleration.operator == "Equal" and not toleration.key:
            return Finding(
                reason="InvalidSpec",
                message=f"{where}.key: set it, or use operator: Exists to tolerate every taint",
            )
    return None


def _durations(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    interval = duration_seconds(spec.rollout.analysis.interval)
    if interval < 1:
        return Finding(
            reason="InvalidSpec",
            message="spec.rollout.analysis.interval: must be at least 1s",
        )
    deadline = spec.rollout.progress_deadline
    soaks = [("spec.rollout", spec.rollout.soak)]
    soaks += [(f"spec.rollout.waves[{i}]", w.soak) for i, w in enumerate(spec.rollout.waves) if w.soak]
    for where, soak in soaks:
        if duration_seconds(soak) >= duration_seconds(deadline):
            return Finding(
                reason="InvalidSpec",
                message=f"spec.rollout.progressDeadline: {deadline} leaves no time after the soak of {soak} "
                f"({where}.soak); make it longer",
            )
    return None


def _privacy(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    return find_privacy_problem(spec)


def _distribution(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    return find_distribution_problem(spec)


def _access(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    return find_access_problem(spec)


def _adaptation(name: str, spec: SLMDeploymentSpec, config: OperatorConfig) -> Finding | None:
    return find_adaptation_problem(spec)


def is_host_path_allowed(spec: SLMDeploymentSpec, config: OperatorConfig) -> bool:
    """Whether the administrator lets pods mount `cache.hostPath` of the nodes."""
    return _is_below(spec.cache.host_path, config.allowed_host_paths)


def _is_below(path: str, prefixes: Iterable[str]) -> bool:
    segments = path.split("/")
    if ".." in segments or "." in segments:
        return False
    return any(path == p.rstrip("/") or path.startswith(p.rstrip("/") + "/") for p in prefixes)


def _join(prefixes: Iterable[str]) -> str:
    return ", ".join(prefixes) or "any allowed folder (none is)"


_CHECKS: Final[tuple[Callable[[str, SLMDeploymentSpec, OperatorConfig], Finding | None], ...]] = (
    _name,
    _source_kind,
    _model_source,
    _profiles,
    _overrides,
    _host_path,
    _file_paths,
    _source_hosts,
    _privacy,
    _memory_limit,
    _tolerations,
    _durations,
    _distribution,
    _access,
    _adaptation,
)
