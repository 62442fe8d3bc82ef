# SPDX-License-Identifier: Apache-2.0
"""What is to be served here: the variant that suits this machine, with the settings of the manifest."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from slmcli.errors import CliError, RefusedError, UsageError
from slmcli.fitting import read_documents, read_profiles
from slmcli.safe import clean
from slmops.api import KIND, SLMDeploymentSpec
from slmops.api.base import LabelSelector
from slmops.api.spec import Source, Variant
from slmops.model.config import OperatorConfig
from slmops.model.observed import NodeView, ProfileView, Resolved
from slmops.planning.adapters import adapters_of, default_adapter, with_adapters
from slmops.planning.expand import ExpansionError, expand_spec
from slmops.planning.fit import assess_fit
from slmops.planning.revision import source_hash
from slmops.planning.serving import Serving, serving_of
from slmwire.manifest import ManifestError

Resolve = Callable[[Source], Resolved]
"""What a source stands for; CliError when that cannot be found out from here."""
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_NODE: Final = "this-machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An SLMDeployment as it stands in a file."""

    name: str
    namespace: str
    spec: SLMDeploymentSpec
    profiles: tuple[ProfileView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides which variant suits a machine; the architecture as nodes are labelled."""

    architecture: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is fetched and served."""

    namespace: str
    name: str
    model: str
    version: str
    variant: str
    resolved: Resolved
    serving: Serving
    default_adapter: str
    """That answers who names the model alone; empty for none."""
    evaluate: bool
    file_root: str
    """Folder that the files are read from; empty where they come over HTTP."""
    notes: tuple[str, ...]
    """What is otherwise than in a cluster, for people."""

    @property
    def revision(self) -> str:
        """Stands for the bytes alone."""
        return self.resolved.manifest.digest.removeprefix("sha256:")[:10]


def observe_machine() -> Machine:
    """This machine."""
    machine = platform.machine().lower()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(architecture=_ARCHITECTURES.get(machine, machine), memory_bytes=memory)


def read_wanted(path: Path) -> Wanted:
    """One SLMDeployment and any DeviceProfiles. UsageError names the place and the cure."""
    documents = read_documents(path)
    found = [d for d in documents if d.get("kind") == KIND]
    if len(found) != 1:
        raise UsageError(f"{path}: holds {len(found)} objects of kind {KIND}; give a file with exactly one")
    metadata = found[0].get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    try:
        spec = SLMDeploymentSpec.model_validate(found[0].get("spec") or {})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(["spec", *map(str, problem["loc"])])
        raise UsageError(f"{path}: {field}: {clean(problem['msg'])}") from None
    if spec.model.from_ is not None:
        raise UsageError(
            f"{path}: spec.model.from names an SLMModel, whose variants are known to the cluster alone; "
            "write the variant that is to be tried into spec.variants, kubectl slm models shows its source"
        )
    if not spec.variants:
        raise UsageError(f"{path}: spec.variants: give at least 1")
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: metadata.name is missing")
    return Wanted(
        name=name,
        namespace=str(metadata.get("namespace") or "default"),
        spec=spec,
        profiles=tuple(read_profiles(str(path), documents)),
    )


def plan_trial(wanted: Wanted, machine: Machine, *, variant: str | None, resolve: Resolve) -> Plan:
    """What to serve: `variant`, or the one that a node like this machine would take. Raises CliError."""
    written = [v for v in wanted.spec.variants if variant in (None, v.name)]
    if not written:
        known = ", ".join(v.name for v in wanted.spec.variants)
        raise UsageError(f"spec.variants has no {variant}; it has {known}")
    known_files, notes = _resolve_all(written, resolve)
    spec = wanted.spec.model_copy(
        update={
            "variants": [v for v in written if source_hash(v.source) in known_files],
            # Which machine it runs on is said already.
            "placement": wanted.spec.placement.model_copy(update={"node_selector": LabelSelector()}),
            # It is at no site, and its user gave it no folder for what is said.
            "adaptation": None,
        }
    )
    chosen = _choose(spec, wanted.profiles, machine, known_files, how="best" if variant is None else "named")
    if spec.model.signature is not None:
        notes.append("spec.model.signature is not checked here; the operator does that")
    if spec.service.auth is not None or spec.service.tls is not None:
        notes.append(
            "spec.service.auth and tls are left out here: it answers on this machine alone, over HTTP"
        )
    if wanted.spec.adaptation is not None:
        notes.append("spec.adaptation: nothing that is said is kept here, and no site's adapter is had")
    source = chosen.source
    try:
        resolved = with_adapters(known_files[source_hash(source)], adapters_of(chosen))
    except ManifestError as error:
        raise RefusedError(f"variant {chosen.name}: {error}") from None
    return Plan(
        namespace=wanted.namespace,
        name=wanted.name,
        model=spec.model.name,
        version=spec.model.version,
        variant=chosen.name,
        resolved=resolved,
        serving=serving_of(spec, chosen, OperatorConfig(runtime_image="")),
        default_adapter=default_adapter(chosen),
        evaluate=spec.evaluation.enabled,
        file_root=source.file.path if source.file is not None else "",
        notes=tuple(notes),
    )


def _resolve_all(variants: list[Variant], resolve: Resolve) -> tuple[dict[str, Resolved], list[str]]:
    found: dict[str, Resolved] = {}
    problems: list[tuple[str, CliError]] = []
    for variant in variants:
        identity = source_hash(variant.source)
        try:
            if identity not in found:
                found[identity] = resolve(variant.source)
        except CliError as error:
            problems.append((variant.name, error))
    if not found:
        raise RefusedError("variant {}: {}".format(*problems[0]))
    return found, [f"variant {name} is left out: {error}" for name, error in problems]


def _choose(
    spec: SLMDeploymentSpec,
    profiles: tuple[ProfileView, ...],
    machine: Machine,
    known: dict[str, Resolved],
    *,
    how: Literal["best", "named"],
) -> Variant:
    """A variant of the effective spec. With `named` the one that there is, whether it fits or not."""
    node = NodeView(
        name=_NODE,
        labels={
            "kubernetes.io/arch": machine.architecture,
            "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": platform.node(),
        },
        ready=True,
        allocatable_memory_bytes=machine.memory_bytes,
    )
    try:
        effective = expand_spec(spec, profiles=profiles, known=known)
        row = assess_fit(spec, profiles=profiles, nodes=[node], resolved=known).rows[0]
    except ExpansionError as error:
        if how == "named":
            return spec.variants[0]
        raise RefusedError(str(error)) from None
    names = [row.chosen.name] if row.chosen is not None else []
    if how == "named":
        names += [judged.candidate.name for judged in row.candidates]
    for variant in effective.variants:
        if names and variant.name == names[0]:
            return variant
    if how == "named":
        return spec.variants[0]
    raise RefusedError(
        f"no variant suits this machine ({machine.architecture}): {row.problem}; name one with --variant"
    )
