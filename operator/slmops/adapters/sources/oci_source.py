# SPDX-License-Identifier: Apache-2.0
"""Images and artifacts in OCI registries: which file lies in which layer, and where."""

import asyncio
import fnmatch
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from slmops.adapters.sources.listing import build_manifest
from slmops.adapters.sources.registry import (
    INDEX_TYPES,
    ImageName,
    Registry,
    parse_image,
    read_docker_config,
)
from slmops.adapters.sources.tarscan import TarError, TarFile, TarScanner, gunzip
from slmops.adapters.sources.web import WebClient
from slmops.api.source import OciSource
from slmops.model.observed import Resolved
from slmops.ports.sources import SourceError
from slmwire.manifest import MAX_FILES, ManifestFile
from slmwire.reasons import Reason

MAX_LAYERS: Final = 500
MAX_LAYER_BYTES: Final = 64 << 30
MAX_UNPACKED_BYTES: Final = 128 << 30
MAX_ROWS: Final = 20 * MAX_FILES
"""Files at a time while layers are read; later ones may take some away again."""
PIECE_BYTES: Final = 1 << 20
_PACKED: Final = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0")
"""How gzip, zstd, bzip2 and xz begin. Some runtimes go by this and not by the media type."""
_TITLE: Final = "org.opencontainers.image.title"
_FILE_PATH: Final = "org.cncf.model.filepath"
"""Of the ModelPack specification, on raw layers and on tar layers."""
_UNPACK: Final = "io.deis.oras.content.unpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    digest: str
    size: int
    media_type: str
    annotations: Mapping[str, str]

    @property
    def title(self) -> str:
        """Path of the file that the layer is as it stands; empty for an archive."""
        if self.annotations.get(_UNPACK) == "true":
            return ""
        if self.annotations.get(_TITLE):
            return self.annotations[_TITLE]
        return self.annotations.get(_FILE_PATH, "") if ".tar" not in self.media_type else ""

    @property
    def packing(self) -> str:
        """`tar`, `gzip` or the name of what is not supported."""
        kind = self.media_type
        for name in ("gzip", "zstd"):
            if kind.endswith((f"+{name}", f".{name}")):
                return name
        return "tar" if kind.endswith(".tar") else kind


async def resolve_oci(source: OciSource, client: WebClient, *, docker_config: str) -> Resolved:
    """Resolve an `oci` source; the reference is the image's name by digest.

    `client` must allow bodies that take long. The operator reads archives through once and keeps
    nothing of them. URLs name layers by digest; a file inside a layer has its offset.
    """
    image = parse_image(source.image)
    registry = _build_registry(source, client, docker_config)
    manifest, digest = await _find_manifest(registry, image, source.platform)
    where = image.at(digest)
    layers = _parse_layers(manifest, where=where)
    _check_delivery(layers, source, where=where)
    wants = _selection(source)
    rows: dict[str, ManifestFile] = {}
    for layer in layers:
        url = registry.blob_url(layer.digest)
        if layer.title:
            path = layer.title.removeprefix("./")
            if wants(path):
                rows[path] = ManifestFile(
                    path=path, size=layer.size, sha256=layer.digest.removeprefix("sha256:"), url=url
                )
            continue
        scanner = await _scan(registry, layer, source, wants, where=where)
        _refuse_links(scanner.links, where=where)
        rows = {path: row for path, row in rows.items() if not _is_removed(path, scanner.removed)}
        rows |= {path: _row(found, url) for path, found in scanner.files.items()}
        if len(rows) > MAX_ROWS:
            raise SourceError(
                Reason.UNFIT,
                f"{where} holds more than {MAX_ROWS} files that match; name path or files",
                permanent=True,
            )
    if not rows:
        raise SourceError(
            Reason.UNFIT,
            f"{where}: no file matches path {source.path or '/'} and files "
            f"({', '.join(source.files) or 'all'})",
            permanent=True,
        )
    prefix = f"{source.path}/" if source.path else ""
    entries = [
        ManifestFile(
            path=row.path.removeprefix(prefix),
            size=row.size,
            sha256=row.sha256,
            # The kubelet brings an image volume; nobody may take its files from anywhere else.
            url="" if source.delivery == "ImageVolume" else row.url,
            offset=0 if source.delivery == "ImageVolume" else row.offset,
        )
        for row in rows.values()
    ]
    return Resolved(manifest=build_manifest(entries, where=where), reference=where)


async def read_oci_file(
    source: OciSource, file: ManifestFile, client: WebClient, *, docker_config: str
) -> bytes:
    """Content of a small file that `source` was resolved to; not checked against its hash."""
    registry = _build_registry(source, client, docker_config)
    return await registry.read_part(file.url, offset=file.offset, size=file.size)


def _build_registry(source: OciSource, client: WebClient, docker_config: str) -> Registry:
    image = parse_image(source.image)
    login = read_docker_config(docker_config, image) if docker_config else None
    scheme = "http" if source.plain_http else "https"
    return Registry(client, image, scheme=scheme, login=login)


def _row(found: TarFile, url: str) -> ManifestFile:
    return ManifestFile(path=found.path, size=found.size, sha256=found.sha256, url=url, offset=found.offset)


async def _find_manifest(
    registry: Registry, image: ImageName, platform: str | None
) -> tuple[dict[str, Any], str]:
    manifest, digest = await registry.read_manifest(image.reference)
    if manifest["mediaType"] not in INDEX_TYPES and "manifests" not in manifest:
        return manifest, digest
    where = image.at(digest)
    entries = _objects(manifest.get("manifests"), where=where, what="manifests")
    choices = {_platform_of(e): str(e.get("digest", "")) for e in entries}
    # Build tools put attestations beside the images.
    choices = {name: value for name, value in choices.items() if name != "unknown/unknown"}
    if platform is None and len(choices) == 1:
        (chosen,) = choices.values()
    elif platform in choices:
        chosen = choices[platform]
    else:
        raise SourceError(
            Reason.UNFIT,
            f"{where} is an index of {', '.join(sorted(choices)[:10]) or 'nothing'}; name one of them in "
            "source.oci.platform",
            permanent=True,
        )
    manifest, digest = await registry.read_manifest(_digest(chosen, where=where))
    if manifest["mediaType"] in INDEX_TYPES or "manifests" in manifest:
        raise SourceError(Reason.UNFIT, f"{where}: an index inside an index is not supported", permanent=True)
    return manifest, digest


def _platform_of(entry: Mapping[str, Any]) -> str:
    platform = entry.get("platform")
    if not isinstance(platform, Mapping):
        return "any"
    names = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
    return "/".join(str(name) for name in names if name)


def _objects(value: Any, *, where: str, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise SourceError(Reason.UNFIT, f"{where} has no list of {what}", permanent=True)
    if len(value) > MAX_LAYERS:
        raise SourceError(
            Reason.UNFIT, f"{where} has {len(value)} {what}; at most {MAX_LAYERS} are read", permanent=True
        )
    return value


def _digest(text: str, *, where: str) -> str:
    hexadecimal = text.removeprefix("sha256:")
    if len(text) != 71 or len(hexadecimal) != 64 or set(hexadecimal) - set("0123456789abcdef"):
        raise SourceError(Reason.UNFIT, f"{where}: {text[:80]!r} is not a sha256 digest", permanent=True)
    return text


def _parse_layers(manifest: Mapping[str, Any], *, where: str) -> list[_Layer]:
    layers = []
    for entry in _objects(manifest.get("layers"), where=where, what="layers"):
        size, annotations = entry.get("size"), entry.get("annotations") or {}
        if (
            not isinstance(size, int)
            or not 0 <= size <= MAX_LAYER_BYTES
            or not isinstance(annotations, Mapping)
        ):
            raise SourceError(
                Reason.UNFIT,
                f"{where}: a layer says that it has {str(size)[:30]} bytes; at most {MAX_LAYER_BYTES} are "
                "taken",
                permanent=True,
            )
        layers.append(
            _Layer(
                digest=_digest(str(entry.get("digest", "")), where=where),
                size=size,
                media_type=str(entry.get("mediaType", "")),
                annotations={str(key): str(value) for key, value in annotations.items()},
            )
        )
    return layers


def _check_delivery(layers: Iterable[_Layer], source: OciSource, *, where: str) -> None:
    """Refuse what nodes could not use, before anything large is read."""
    if source.delivery == "ImageVolume" and source.files:
        raise SourceError(
            Reason.UNFIT,
            f"source.oci.files: delivery ImageVolume mounts {source.path or '/'}, so a choice of files "
            "would leave the others there unverified; leave files out, or use delivery: Pull",
            permanent=True,
        )
    for layer in layers:
        if source.delivery == "ImageVolume":
            if layer.title or layer.packing not in ("tar", "gzip"):
                raise SourceError(
                    Reason.UNFIT,
                    f"{where}: layer {layer.digest} ({layer.title or layer.packing}) cannot be mounted and "
                    "hashed as part of an image; use delivery: Pull for artifacts, tar or gzip layers for "
                    "images",
                    permanent=True,
                )
        elif not layer.title and layer.packing != "tar":
            raise SourceError(
                Reason.UNFIT,
                f"{where}: layer {layer.digest} is packed ({layer.packing}), so nodes could not read single "
                "files out of it; use delivery: ImageVolume, or push the files uncompressed (an artifact "
                "with titles, or tar layers)",
                permanent=True,
            )


def _selection(source: OciSource) -> Callable[[str], bool]:
    """Whether a path in the image is one of the model's files. `*` crosses folders. Hidden files are
    left out unless a pattern names a hidden one itself, which then is refused for its path."""
    prefix = f"{source.path}/" if source.path else ""

    def wants(path: str) -> bool:
        if not path.startswith(prefix):
            return False
        path = path.removeprefix(prefix)
        hidden = any(part.startswith(".") for part in path.split("/"))
        if not source.files:
            return not hidden
        return any(
            fnmatch.fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
            and (not hidden or pattern.startswith(".") or "/." in pattern)
            for pattern in source.files
        )

    return wants


def _refuse_links(links: Collection[str], *, where: str) -> None:
    """Refuse a link in the place of the model's folder or above it: what a mount shows is something else."""
    for link in sorted(links):
        raise SourceError(
            Reason.UNFIT,
            f"{where}: the folder {link} is a link in one of the layers; put the files themselves there",
            permanent=True,
        )


def _is_removed(path: str, removed: Set[str]) -> bool:
    """Looked up, not searched: a hostile layer may take away a hundred thousand paths."""
    if "/" in removed or path in removed:
        return True
    parts = path.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
    return any(parent in removed or f"{parent}/" in removed for parent in parents)


async def _scan(
    registry: Registry, layer: _Layer, source: OciSource, wants: Callable[[str], bool], *, where: str
) -> TarScanner:
    scanner = TarScanner(wants=wants, folder=source.path or "")
    unpack = gunzip(MAX_UNPACKED_BYTES) if layer.packing == "gzip" else None
    hasher, total = hashlib.sha256(), 0

    def take(piece: bytes) -> None:
        if not unpack and scanner.is_at_start and piece.startswith(_PACKED):
            raise TarError(
                f"its media type ({layer.media_type}) says that it is not packed, and it is; push it afresh"
            )
        hasher.update(piece)
        for unpacked in unpack(piece) if unpack else (piece,):
            scanner.feed(unpacked)

    try:
        async with registry.open_blob(layer.digest) as content:
            buffer = bytearray()
            async for chunk in content.iter_chunked(PIECE_BYTES):
                total += len(chunk)
                if total > layer.size:
                    break
                buffer += chunk
                if len(buffer) >= PIECE_BYTES:
                    piece, buffer = bytes(buffer), bytearray()
                    # Hashing and unpacking take longer than the loop may stand still.
                    await asyncio.to_thread(take, piece)
            await asyncio.to_thread(take, bytes(buffer))
        if total != layer.size or f"sha256:{hasher.hexdigest()}" != layer.digest:
            raise SourceError(
                Reason.INTEGRITY_MISMATCH,
                f"{where}: what came for layer {layer.digest} is something else ({total} of {layer.size} "
                "bytes); something between alters it or cuts it off",
            )
        scanner.finish()
    except TarError as error:
        raise SourceError(Reason.UNFIT, f"{where}: layer {layer.digest}: {error}", permanent=True) from error
    return scanner
