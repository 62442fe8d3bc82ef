# SPDX-License-Identifier: Apache-2.0
"""The deployment before the rollout: the file's spec with an earlier version of the model in force."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.base import quantity_value
from slmops.api.source import HttpSource, Source
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved, RevisionView, SignatureCheck
from slmops.planning import build
from slmops.planning.adapters import adapters_of, with_adapters
from slmops.planning.expand import expand_spec
from slmops.planning.names import Names
from slmops.planning.needs import assess_needs, with_requests
from slmops.planning.revision import (
    Revision,
    build_revision_data,
    parse_revision,
    resolution_key,
    revision_of,
    source_hash,
)
from slmwire.manifest import Manifest, ManifestFile

CONFIG: Final = OperatorConfig(
    runtime_image="simulated", allowed_host_paths=("/",), allowed_file_paths=("/",),
    prometheus_url="http://simulated", allowed_prometheus_urls=("http://", "https://"),
)  # fmt: skip
"""What an administrator forbids is not what is asked here."""
DEFAULT_SIZE_BYTES: Final = 1_000_000_000
FETCH_MEMORY_BYTES: Final = int(quantity_value(build.FETCH_MEMORY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """The two revisions of a simulation."""

    names: Names
    spec: SLMDeploymentSpec
    stable: Revision
    target: Revision
    stable_view: RevisionView
    resolutions: Mapping[str, Resolved]
    """Of the new version's sources, by source hash."""


def build_versions(names: Names, spec: SLMDeploymentSpec, size_bytes: Mapping[str, int]) -> Versions:
    """The stable revision (the same spec with other files) and the one that `spec` stands for.

    ExpansionError when its overrides make too many variants.
    """
    before = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"version": _earlier(spec.model.version)}),
            "variants": [
                variant.model_copy(
                    update={"source": Source(http=HttpSource(url=f"http://stable.invalid/{variant.name}"))}
                )
                for variant in spec.variants
            ],
        }
    )
    stable, stable_view, _ = _revision(names, before, 1, size_bytes)
    target, _, resolved = _revision(names, spec, 2, size_bytes)
    return Versions(
        names=names,
        spec=spec,
        stable=stable,
        target=target,
        stable_view=stable_view,
        resolutions={resolution_key(v.source, spec.model.signature): resolved[v.name] for v in spec.variants},
    )


def stable_status(versions: Versions) -> SLMDeploymentStatus:
    """Status of a deployment whose stable revision serves and whose spec has just been changed."""
    return SLMDeploymentStatus(
        observed_generation=1,
        stable_revision=versions.stable.revision,
        update_revision=versions.stable.revision,
        model_version=versions.stable.model_version,
    )


def size_of(variant: str, size_bytes: Mapping[str, int]) -> int:
    """Bytes of a variant's files."""
    return size_bytes.get(variant, size_bytes.get("", DEFAULT_SIZE_BYTES))


def _earlier(version: str) -> str:
    return f"before-{version}"[:63]


def _revision(
    names: Names, spec: SLMDeploymentSpec, number: int, size_bytes: Mapping[str, int]
) -> tuple[Revision, RevisionView, dict[str, Resolved]]:
    """Of a written spec, as the planner works it out; the files are those of the written variants."""
    written = {
        variant.name: Resolved(
            manifest=Manifest(
                files=(
                    ManifestFile(
                        path="model.bin",
                        size=size_of(variant.name, size_bytes),
                        sha256=hashlib.sha256(source_hash(variant.source).encode()).hexdigest(),
                    ),
                )
            ),
            reference="simulated",
            signature=SignatureCheck(text="", key="simulated"),
        )
        for variant in spec.variants
    }
    by_source = {source_hash(variant.source): written[variant.name] for variant in spec.variants}
    spec = expand_spec(spec, known=by_source)
    resolved = {
        variant.name: with_adapters(by_source[source_hash(variant.source)], adapters_of(variant))
        for variant in spec.variants
    }
    digests = {name: found.manifest.digest for name, found in resolved.items()}
    revision = revision_of(spec, digests)
    references = {name: found.reference for name, found in resolved.items()}
    needs = assess_needs(spec, resolved)
    spec = with_requests(spec, needs)
    templates = build.build_templates(
        names, spec, config=CONFIG, revision=revision, digests=digests, references=references
    )
    data = build_revision_data(spec, resolved=resolved, templates=templates, needs=needs)
    view = RevisionView(revision=revision, number=number, data=data)
    return parse_revision(revision, number, data), view, written
