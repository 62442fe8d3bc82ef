# SPDX-License-Identifier: Apache-2.0
"""A small S3-compatible store on loopback; it checks signatures by making them itself."""

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from slmwire.sigv4 import sign_get
from tests.unit.sources.serving import AnsweringHandler, serve


@dataclass(slots=True)
class FakeS3:
    """The bucket `models`."""

    objects: dict[str, bytes] = field(default_factory=dict)
    checksums: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By key: headers x-amz-checksum-type and x-amz-checksum-sha256."""
    private: bool = False
    """Wants the access key `AKEDGE` with the secret `shh`, in region `eu-1`."""
    page: int = 1000
    listing: bytes = b""
    """Answered instead of a listing."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(method, path with query)"""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, key: str, data: bytes, *, part_count: int = 0) -> None:
        """Store an object with the checksum of a single upload, or of one in parts."""
        self.objects[key] = data
        text = base64.b64encode(hashlib.sha256(data).digest()).decode()
        self.checksums[key] = ("COMPOSITE", f"{text}-{part_count}") if part_count else ("FULL_OBJECT", text)


class _Handler(AnsweringHandler):
    protocol_version = "HTTP/1.1"
    store: FakeS3

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        store = self.store
        store.seen.append((self.command, self.path))
        if store.private and not self._is_signed():
            return self._answer(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        if bucket != "models":
            return self._answer(404, {}, b"")
        if not key:
            return self._answer(200, {}, store.listing or self._list(parse_qs(parts.query)))
        if key not in store.objects:
            return self._answer(404, {}, b"")
        headers = {}
        if self.headers.get("x-amz-checksum-mode") == "ENABLED" and key in store.checksums:
            kind, text = store.checksums[key]
            headers = {"x-amz-checksum-type": kind, "x-amz-checksum-sha256": text}
        return self._answer(200, headers, store.objects[key])

    def _list(self, query: dict[str, list[str]]) -> bytes:
        (prefix,) = query.get("prefix", [""])
        keys = sorted(key for key in self.store.objects if key.startswith(prefix))
        start = int(query.get("continuation-token", ["0"])[0])
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.store.objects[key])}</Size></Contents>"
            for key in keys[start : start + self.store.page]
        )
        more = start + self.store.page < len(keys)
        token = f"<NextContinuationToken>{start + self.store.page}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{rows}{token}</ListBucketResult>"
        ).encode()

    def _is_signed(self) -> bool:
        given = self.headers.get("Authorization", "")
        match = re.search(r"Credential=AKEDGE/.*SignedHeaders=([a-z0-9;-]+),", given)
        if match is None:
            return False
        own = {"host", "x-amz-date", "x-amz-content-sha256"}
        extra = {name: self.headers[name] for name in match[1].split(";") if name not in own}
        stamp = datetime.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expected = sign_get(
            f"{self.store.url}{self.path}",
            region="eu-1",
            access_key="AKEDGE",
            secret_key="shh",
            now=stamp,
            extra_headers=extra,
            method=self.command,
        )
        return expected["Authorization"] == given


@contextlib.contextmanager
def serve_s3() -> Iterator[FakeS3]:
    """Run a store until the block ends."""
    store = FakeS3()
    with serve(_Handler, store=store) as store.port:
        yield store
