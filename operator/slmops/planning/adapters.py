# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of `spec.overrides[]`: further files of a variant, in the folder `adapters` beside the model.

They are part of the variant's manifest, so they are fetched, verified, kept and mounted as the model is. A
stored revision keeps them beside the model's own files, which many overrides have in common.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from slmops.api.overrides import Adapter
from slmops.api.source import Source
from slmops.api.spec import Variant
from slmops.model.observed import Resolved
from slmops.model.source_secret import secret_of
from slmops.model.urls import is_allowed_url, origin_of
from slmops.planning.effective import EffectiveVariant
from slmops.planning.needs import engine_of_files
from slmwire.manifest import MAX_FILES, STORE_URL, Manifest, ManifestError, ManifestFile, parse_manifest

FOLDER: Final = "adapters"
"""Where the inference server looks for them."""
_ENGINES: Final = {"gguf": "llama.cpp", "onnx_adapter": "onnxruntime"}
"""By the ending of an adapter's file."""
_PUBLIC_HUB: Final = "https://huggingface.co"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """An adapter that was trained at a site, for the model whose own files have the digest `base_digest`."""

    adapter: Adapter
    base_digest: str


def build_trained(*, name: str, sha256: str, size: int, base_digest: str) -> TrainedAdapter:
    """The adapter as the default one. Its URL is one that users cannot give: it has no source."""
    adapter = Adapter.model_construct(name=name, url=STORE_URL, sha256=sha256, size=size, default=True)
    return TrainedAdapter(adapter=adapter, base_digest=base_digest)


def default_adapter(variant: Variant) -> str:
    """Name of the adapter that answers requests which name the model alone; empty for none."""
    return next((adapter.name for adapter in adapters_of(variant) if adapter.default), "")


def adapters_of(variant: Variant) -> Sequence[Adapter]:
    """Those that an override gives a variant of an effective spec."""
    return (variant.adapters or ()) if isinstance(variant, EffectiveVariant) else ()


def file_of(adapter: Adapter) -> ManifestFile:
    """Its entry of a manifest; the engine goes by the ending."""
    ending = "onnx_adapter" if adapter.url == STORE_URL else adapter.url.rpartition(".")[2]
    return ManifestFile(
        path=f"{FOLDER}/{adapter.name}.{ending}",
        size=adapter.size,
        sha256=adapter.sha256,
        url=adapter.url,
    )


def with_adapters(found: Resolved, adapters: Iterable[Adapter]) -> Resolved:
    """The files of the source and the adapters; one of the model's own by the same name is replaced.

    Raises ManifestError when they cannot stand beside the model's files.
    """
    own = {file.path: file for file in found.manifest.files}
    added = {file.path: file for file in map(file_of, adapters)}
    if not added:
        return found
    _check_engine(found.manifest, added)
    if FOLDER in own:
        raise ManifestError(f"the model has a file {FOLDER}, so it can have no adapters; rename the file")
    files = own | added
    if len(files) > MAX_FILES:
        raise ManifestError(
            f"the model and its adapters are {len(files)} files; at most {MAX_FILES} are allowed"
        )
    manifest = Manifest(files=tuple(files[path] for path in sorted(files)))
    return replace(found, manifest=manifest, base=found.manifest)


def _check_engine(model: Manifest, added: Iterable[str]) -> None:
    """A server passes over files that are not its engine's: the adapter would be missing without a word."""
    engine = engine_of_files(model)
    for path in added if engine else ():
        wanted = _ENGINES[path.rpartition(".")[2]]
        if wanted != engine and (wanted, engine) != ("onnxruntime", "encoder"):
            raise ManifestError(
                f"{path} is an adapter for {wanted}, and the model's files are for {engine}; give the "
                f"override engine: {wanted} if other variants are for it, or an adapter for {engine}"
            )


def adapters_to_body(found: Resolved) -> list[Any]:
    """What a stored revision keeps beside the model's own files; empty without adapters."""
    if found.base is None:
        return []
    own = set(found.base.files)
    return _rows(file for file in found.manifest.files if file not in own)


def join_adapters(base: Manifest, rows: Iterable[Any]) -> Manifest:
    """All files again, from the model's own and what `adapters_to_body` gave. ManifestError if it was
    altered."""
    own = {str(row["path"]): row for row in _rows(base.files)}
    files = own | {str(row["path"]): row for row in rows}
    return parse_manifest(json.dumps({"files": [files[path] for path in sorted(files)]}))


def _rows(files: Iterable[ManifestFile]) -> list[Any]:
    rows: list[Any] = json.loads(Manifest(files=tuple(files)).to_json())["files"]
    return rows


class HasFiles(Protocol):
    """A variant, resolved or of a stored revision."""

    @property
    def manifest(self) -> Manifest: ...


def trained_in(variants: Iterable[HasFiles]) -> frozenset[str]:
    """Hashes of the files that have no source: adapters that were trained at sites."""
    return frozenset(f.sha256 for v in variants for f in v.manifest.files if f.url == STORE_URL)


def find_problem(variant: Variant) -> str:
    """Why the variant cannot have its adapters; empty when it can."""
    oci = variant.source.oci
    if not adapters_of(variant):
        return ""
    if oci is not None and oci.delivery == "ImageVolume":
        return (
            "delivery ImageVolume mounts the image and nothing beside it; use delivery Pull, or put the "
            "adapter into the image"
        )
    if secret_of(variant.source) is None:
        return ""
    origin = _origin(variant.source)
    for adapter in adapters_of(variant):
        if adapter.url == STORE_URL:
            continue  # nobody is asked for it but the nodes' own stores, which are shown no credential
        # The fetcher shows the source's credential to whoever serves a file of the manifest.
        if not origin or not is_allowed_url(adapter.url, [origin]):
            return (
                f"adapter {adapter.name} is not on the server of the source of variant {variant.name}, and "
                "its own would be shown that credential; put it there, or let the source need none"
            )
    return ""


def _origin(source: Source) -> str:
    """Of the server that is shown the credential; empty where adapters cannot lie on it."""
    if source.http is not None:
        url = source.http.url
    elif source.hf is not None:
        url = source.hf.endpoint or _PUBLIC_HUB
    else:
        return ""
    return origin_of(url)
