# SPDX-License-Identifier: Apache-2.0
"""Pushes models to an OCI registry on plain HTTP: as an artifact with a layer per file, or as an image."""

import gzip
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from e2e.rig import RigError
from e2e.rig.oci import architecture

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
TAR_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
GZIP_TYPE: Final = f"{TAR_TYPE}+gzip"
TITLE: Final = "org.opencontainers.image.title"
_EMPTY: Final = b"{}"

Descriptor = dict[str, Any]


class Repository:
    """A repository of a registry (`host:port`) that lets everybody push."""

    def __init__(self, registry: str, name: str) -> None:
        self._base = f"http://{registry}/v2/{name}"

    def push_files(self, folder: Path, tag: str) -> str:
        """The folder's files as ORAS would push them, a layer each with its title; the manifest's digest."""
        layers = [
            self._push_blob(file.read_bytes(), kind="application/octet-stream")
            | {"annotations": {TITLE: file.name}}
            for file in sorted(folder.iterdir())
            if file.is_file()
        ]
        config = self._push_blob(_EMPTY, kind="application/vnd.oci.empty.v1+json")
        return self._push_manifest(
            {"artifactType": "application/vnd.slmops.model", "config": config, "layers": layers}, tag
        )

    def push_image(self, folder: Path, tag: str, *, inside: str, kind: str = TAR_TYPE) -> str:
        """The folder as an image of one layer of that media type, below `inside`; the manifest's digest."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file in sorted(folder.iterdir()):
                info = tarfile.TarInfo(f"{inside}/{file.name}")
                info.size, info.mode = file.stat().st_size, 0o644
                archive.addfile(info, io.BytesIO(file.read_bytes()))
        content = packed.getvalue()
        layer = self._push_blob(gzip.compress(content) if kind == GZIP_TYPE else content, kind=kind)
        config = {
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
        }
        described = self._push_blob(json.dumps(config).encode(), kind=CONFIG_TYPE)
        return self._push_manifest({"config": described, "layers": [layer]}, tag)

    def push_archive(self, archive: Path, tag: str) -> str:
        """The only image of an OCI archive (of `write_binary_image`, say) as it is; the manifest's digest."""
        with tarfile.open(archive) as opened:
            (described,) = json.loads(_member(opened, "index.json"))["manifests"]
            body = _member(opened, _blob_path(described["digest"]))
            manifest = json.loads(body)
            for part in (manifest["config"], *manifest["layers"]):
                self._push_blob(_member(opened, _blob_path(part["digest"])), kind=part["mediaType"])
        return self._put_manifest(body, tag)

    def _push_manifest(self, content: Mapping[str, Any], tag: str) -> str:
        body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, **content}).encode()
        return self._put_manifest(body, tag)

    def _put_manifest(self, body: bytes, tag: str) -> str:
        self._send("PUT", f"{self._base}/manifests/{tag}", body, kind=MANIFEST_TYPE)
        return _digest(body)

    def _push_blob(self, content: bytes, *, kind: str) -> Descriptor:
        digest = _digest(content)
        location = self._send("POST", f"{self._base}/blobs/uploads/", b"")
        join = "&" if "?" in location else "?"
        self._send("PUT", f"{location}{join}digest={digest}", content, kind="application/octet-stream")
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def _send(self, verb: str, url: str, body: bytes, *, kind: str = "") -> str:
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(url, data=body, headers=headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.headers.get("Location", ""))
        except urllib.error.HTTPError as error:
            raise RigError(f"{verb} {url}: {error.code} {error.read()[:500]!r}") from error
        except OSError as error:
            raise RigError(f"{verb} {url}: {error}") from error


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of an archive; raises RigError when there is none."""
    try:
        found = archive.extractfile(name)
    except KeyError:
        found = None
    if found is None:
        raise RigError(f"{archive.name!r} has no file {name}")
    return found.read()
