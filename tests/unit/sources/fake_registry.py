# SPDX-License-Identifier: Apache-2.0
"""A small OCI registry on loopback: manifests, blobs, tokens, and redirects to another origin."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.unit.sources.serving import AnsweringHandler, serve

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: Mapping[str, bytes], *, members: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """A tar archive of these files, then of members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


@dataclass(slots=True)
class FakeRegistry:
    """One repository, `models/chat`."""

    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """By tag and by digest: (media type, body)."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    auth: str = ""
    """`bearer` or `basic`: wants the user `edge` with the password `pass`, or a token had for it."""
    public: bool = False
    """With `bearer`: anybody gets a token."""
    realm: str = ""
    """Named in challenges instead of this server's own."""
    cdn: str = ""
    """Blobs are redirected to this origin."""
    ranges: bool = True
    tokens: set[str] = field(default_factory=set)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(path with query, Authorization header)"""
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return f"{self.host}/models/chat"

    def add_blob(self, data: bytes) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"digest": digest_of(data), "size": len(data)}

    def push(self, *layers: dict[str, Any], tag: str = "1.0") -> str:
        """Make a manifest of the layers; its digest."""
        body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.add_blob(b"{}"), "layers": layers}
        return self.put(json.dumps(body).encode(), MANIFEST, tag)

    def put(self, body: bytes, media_type: str, tag: str) -> str:
        self.manifests[tag] = self.manifests[digest_of(body)] = (media_type, body)
        return digest_of(body)

    def push_index(self, platforms: Mapping[str, str], tag: str = "1.0") -> str:
        """An index; `platforms` maps `os/architecture` to a digest."""
        rows = []
        for name, digest in platforms.items():
            system, _, architecture = name.partition("/")
            rows.append(
                {"digest": digest, "size": 1, "platform": {"os": system, "architecture": architecture}}
            )
        return self.put(json.dumps({"mediaType": INDEX, "manifests": rows}).encode(), INDEX, tag)

    def raw(self, path: str, data: bytes) -> dict[str, Any]:
        return self.add_blob(data) | {"mediaType": TAR, "annotations": {TITLE: path}}

    def tar(self, data: bytes) -> dict[str, Any]:
        return self.add_blob(data) | {"mediaType": TAR}

    def targz(self, data: bytes) -> dict[str, Any]:
        return self.add_blob(gzip.compress(data)) | {"mediaType": TAR + "+gzip"}


class _Handler(AnsweringHandler):
    protocol_version = "HTTP/1.1"
    registry: FakeRegistry

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        registry = self.registry
        given = self.headers.get("Authorization", "")
        registry.seen.append((self.path, given))
        parts = urlsplit(self.path)
        basic = "Basic " + base64.b64encode(b"edge:pass").decode()
        if parts.path == "/token":
            query = parse_qs(parts.query)
            asked = query.get("scope") == ["repository:models/chat:pull"] and query.get("service") == ["reg"]
            if not asked or not (registry.public or given == basic):
                return self._answer(401, {}, b"")
            token = f"t{len(registry.tokens)}"
            registry.tokens.add(token)
            return self._answer(200, {}, json.dumps({"token": token}).encode())
        if registry.auth == "bearer" and given.removeprefix("Bearer ") not in registry.tokens:
            realm = registry.realm or f"http://{registry.host}/token"
            text = f'Bearer realm="{realm}",service="reg",scope="repository:models/chat:pull"'
            return self._answer(401, {"WWW-Authenticate": text}, b"")
        if registry.auth == "basic" and given != basic:
            return self._answer(401, {"WWW-Authenticate": 'Basic realm="reg"'}, b"")
        folder, _, name = parts.path.rpartition("/")
        if folder == "/v2/models/chat/manifests" and name in registry.manifests:
            media_type, body = registry.manifests[name]
            return self._answer(200, {"Content-Type": media_type}, body)
        if folder == "/v2/models/chat/blobs" and name in registry.blobs:
            if registry.cdn:
                return self._answer(307, {"Location": f"{registry.cdn}/{name}?X-Signature=abc"}, b"")
            body = registry.blobs[name]
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if not wanted or not registry.ranges:
                return self._answer(200, {}, body)
            first, last = (int(text) for text in wanted.split("-"))
            return self._answer(206, {}, body[first : last + 1])
        return self._answer(404, {}, b"")


@contextlib.contextmanager
def serve_registry() -> Iterator[FakeRegistry]:
    """Run a registry until the block ends."""
    registry = FakeRegistry()
    with serve(_Handler, registry=registry) as registry.port:
        yield registry
