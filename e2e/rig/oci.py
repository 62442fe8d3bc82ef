# SPDX-License-Identifier: Apache-2.0
"""Images of one static binary, written as OCI archives without a builder: pause and CoreDNS."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """This machine's architecture in Go's words."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _member(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def write_binary_image(
    target: Path, *, reference: str, binary: Path, entrypoint: Sequence[str], user: str = ""
) -> None:
    """Write an OCI archive with `binary` at `entrypoint[0]` and nothing else.

    The bytes depend on the arguments only: no time stamp, no owner. `reference` becomes the image's name
    when containerd imports it.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _member(archive, entrypoint[0].lstrip("/"), binary.read_bytes(), mode=0o755)
    layer_bytes = layer.getvalue()
    layer_digest = hashlib.sha256(layer_bytes).hexdigest()
    config = _json(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint)} | ({"User": user} if user else {}),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    )
    blobs = {layer_digest: layer_bytes, hashlib.sha256(config).hexdigest(): config}
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar", layer_bytes)],
        }
    )
    blobs[hashlib.sha256(manifest).hexdigest()] = manifest
    named = _descriptor(f"{kind}.manifest.v1+json", manifest)
    named["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = _json({"schemaVersion": 2, "mediaType": f"{kind}.index.v1+json", "manifests": [named]})
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, mode="w") as archive:
        _member(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _member(archive, "index.json", index)
        for digest, content in sorted(blobs.items()):
            _member(archive, f"blobs/sha256/{digest}", content)
    partial.replace(target)


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content)}
