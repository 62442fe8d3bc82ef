# SPDX-License-Identifier: Apache-2.0
"""A registry and a bucket on loopback that take what is pushed, and say what they were asked."""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from slmwire.sigv4 import sign_get
from tests.unit.sources.fake_registry import digest_of
from tests.unit.sources.serving import AnsweringHandler, serve


@dataclass(slots=True)
class PushRegistry:
    """Takes blobs and manifests of any repository."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    auth: str = ""
    """`bearer` or `basic`: wants the user `edge` with the password `pass`."""
    redirects: bool = False
    """Blobs that are there are answered with a redirect."""
    upload_host: str = ""
    """Where uploads are sent, `scheme://host:port`; empty: here."""
    logins: list[str] = field(default_factory=list)
    """Authorization headers of requests, as far as they had one."""
    failures: list[int] = field(default_factory=list)
    """Statuses that the next uploads get."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(method, path without query)"""
    tokens: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, method: str) -> int:
        return sum(1 for verb, _ in self.seen if verb == method)


class _RegistryHandler(AnsweringHandler):
    protocol_version = "HTTP/1.1"
    registry: PushRegistry

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond()

    do_GET = do_POST = do_PUT = do_HEAD

    def _respond(self) -> None:
        registry, parts = self.registry, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        registry.seen.append((self.command, parts.path))
        given = self.headers.get("Authorization", "")
        registry.logins += [given] if given else []
        basic = "Basic " + base64.b64encode(b"edge:pass").decode()
        if parts.path == "/token":
            scope = parse_qs(parts.query).get("scope")
            if given != basic or scope != ["repository:team/orders:pull,push"]:
                return self._answer(401, {}, b"")
            registry.tokens.add("t1")
            return self._answer(200, {}, json.dumps({"token": "t1"}).encode())
        if registry.auth == "bearer" and given.removeprefix("Bearer ") not in registry.tokens:
            challenge = f'Bearer realm="http://{registry.host}/token",service="reg"'
            return self._answer(401, {"WWW-Authenticate": challenge}, b"")
        if registry.auth == "basic" and given != basic:
            return self._answer(401, {"WWW-Authenticate": 'Basic realm="reg"'}, b"")
        folder, _, name = parts.path.rpartition("/")
        if folder.endswith("/manifests"):
            return self._manifest(name, body)
        if self.command == "POST":
            return self._answer(202, {"Location": f"{registry.upload_host}{folder}/uploads/1?state=x"}, b"")
        if self.command == "PUT":
            return self._upload(parse_qs(parts.query), body)
        if name not in registry.blobs:
            return self._answer(404, {}, b"")
        if registry.redirects:
            return self._answer(307, {"Location": "http://127.0.0.1:1/elsewhere"}, b"")
        return self._answer(200, {}, registry.blobs[name])

    def _upload(self, query: dict[str, list[str]], body: bytes) -> None:
        if self.registry.failures:
            return self._answer(self.registry.failures.pop(0), {}, b"")
        if query.get("state") != ["x"] or query.get("digest") != [digest_of(body)]:
            return self._answer(400, {}, b"digest invalid")
        self.registry.blobs[digest_of(body)] = body
        return self._answer(201, {}, b"")

    def _manifest(self, name: str, body: bytes) -> None:
        if self.command == "PUT":
            layers = [*json.loads(body)["layers"], json.loads(body)["config"]]
            if any(layer["digest"] not in self.registry.blobs for layer in layers):
                return self._answer(400, {}, b"blob unknown")
            row = (self.headers["Content-Type"], body)
            self.registry.manifests[name] = self.registry.manifests[digest_of(body)] = row
            return self._answer(201, {}, b"")
        if name not in self.registry.manifests:
            return self._answer(404, {}, b"")
        kind, content = self.registry.manifests[name]
        return self._answer(200, {"Content-Type": kind}, content)


@contextlib.contextmanager
def serve_push_registry() -> Iterator[PushRegistry]:
    """Run a registry until the block ends."""
    registry = PushRegistry()
    with serve(_RegistryHandler, registry=registry) as registry.port:
        yield registry


@dataclass(slots=True)
class PushStore:
    """The bucket `models` of the access key `AKEDGE` with the secret `shh`, in region `eu-1`."""

    objects: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """By upload: those that are not finished."""
    broken_part: int = 0
    """Number of a part that is refused."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(method, path with query)"""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, method: str) -> int:
        return sum(1 for verb, _ in self.seen if verb == method)


class _StoreHandler(AnsweringHandler):
    protocol_version = "HTTP/1.1"
    store: PushStore

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD

    def _respond(self) -> None:
        store = self.store
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.seen.append((self.command, self.path))
        if not self._is_signed(body):
            return self._answer(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        if bucket != "models":
            return self._answer(404, {}, b"<Error><Code>NoSuchBucket</Code></Error>")
        query = parse_qs(parts.query, keep_blank_values=True)
        if self.command in ("HEAD", "GET"):
            if key not in store.objects:
                return self._answer(404, {}, b"")
            hashed = {"x-amz-meta-slmops-sha256": store.hashes[key]} if key in store.hashes else {}
            return self._answer(200, hashed, store.objects[key])
        if "uploads" in query:
            store.parts["u1"] = {}
            store.hashes[key] = self.headers["x-amz-meta-slmops-sha256"]
            return self._answer(200, {}, b"<R xmlns='urn:s3'><UploadId>u1</UploadId></R>")
        if "uploadId" in query:
            return self._part(key, query, body)
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if self.headers["x-amz-checksum-sha256"] != checksum:
            return self._answer(400, {}, b"<Error><Code>BadDigest</Code></Error>")
        store.objects[key] = body
        store.hashes[key] = self.headers["x-amz-meta-slmops-sha256"]
        return self._answer(200, {}, b"")

    def _part(self, key: str, query: dict[str, list[str]], body: bytes) -> None:
        store, upload = self.store, query["uploadId"][0]
        if self.command == "DELETE":
            del store.parts[upload]
            return self._answer(204, {}, b"")
        if self.command == "PUT":
            number = int(query["partNumber"][0])
            if number == store.broken_part:
                return self._answer(400, {}, b"<Error><Code>InvalidPart</Code></Error>")
            store.parts[upload][number] = body
            return self._answer(200, {"ETag": f'"{number}"'}, b"")
        numbers = [int(text) for text in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        tags = re.findall(rb"<ETag>\"(\d+)\"</ETag>", body)
        if [int(tag) for tag in tags] != numbers:
            return self._answer(400, {}, b"<Error><Code>InvalidPart</Code></Error>")
        parts = store.parts.pop(upload)
        store.objects[key] = b"".join(parts[number] for number in numbers)
        return self._answer(200, {}, b"<R/>")

    def _is_signed(self, body: bytes) -> bool:
        given = self.headers.get("Authorization", "")
        match = re.search(r"Credential=AKEDGE/.*SignedHeaders=([a-z0-9;-]+),", given)
        hashed = hashlib.sha256(body).hexdigest()
        if match is None or self.headers["x-amz-content-sha256"] != hashed:
            return False
        own = {"host", "x-amz-date", "x-amz-content-sha256"}
        expected = sign_get(
            f"{self.store.url}{self.path}",
            region="eu-1",
            access_key="AKEDGE",
            secret_key="shh",
            now=datetime.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC),
            extra_headers={name: self.headers[name] for name in match[1].split(";") if name not in own},
            method=self.command,
            body_sha256=hashed,
        )
        return expected["Authorization"] == given


@contextlib.contextmanager
def serve_push_store() -> Iterator[PushStore]:
    """Run a store until the block ends."""
    store = PushStore()
    with serve(_StoreHandler, store=store) as store.port:
        yield store
