# SPDX-License-Identifier: Apache-2.0
"""Puts a model directory below a prefix of an S3-compatible store.

Each object carries its file's sha256, so what is there already is not sent again; slm-manifest.json comes
last, so a source that reads it finds everything. Files above 64 MiB go in parts. URLs are path-style.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from slmopt.errors import OptimizeError, unfit
from slmopt.job import S3Target
from slmopt.log import log
from slmopt.web import Answer, Body, Part, Web, refusal
from slmwire.manifest import Manifest
from slmwire.paths import MODEL_MANIFEST_FILE
from slmwire.reasons import Reason
from slmwire.sigv4 import EMPTY_SHA256, sign_get

PART_BYTES: Final = 64 << 20
MAX_PARTS: Final = 10_000
_HASH: Final = "x-amz-meta-slmops-sha256"
_CURE: Final = (
    "the Secret needs accessKeyId and secretAccessKey of a user that may list the bucket, and read and put "
    "objects there"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Login:
    """Keys for signing; all empty means anonymous."""

    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""


def push_s3(
    directory: Path,
    manifest: Manifest,
    target: S3Target,
    web: Web,
    *,
    login: S3Login,
    part_bytes: int = PART_BYTES,
) -> str:
    """Put the files and their manifest; the reference. Raises OptimizeError."""
    store = _Store(target, web, login, part_bytes)
    text = manifest.to_json().encode()
    store.refuse_others(text)
    for entry in manifest.files:
        store.ensure(entry.path, Part(path=directory / entry.path, offset=0, size=entry.size), entry.sha256)
    store.ensure(MODEL_MANIFEST_FILE, text, hashlib.sha256(text).hexdigest())
    return f"s3://{target.bucket}/{target.prefix}"


class _Store:
    def __init__(self, target: S3Target, web: Web, login: S3Login, part_bytes: int) -> None:
        self._target, self._web, self._login, self._part_bytes = target, web, login, part_bytes

    def refuse_others(self, manifest: bytes) -> None:
        """Raises OptimizeError (Unfit) when a complete model of other bytes lies there.

        Nodes may fetch its objects still; what was begun and never finished has no manifest.
        """
        there = self._send("GET", self._url(MODEL_MANIFEST_FILE))
        if there.status == 200 and there.body != manifest:
            raise unfit(
                f"publish.s3.prefix: {self._target.prefix} in bucket {self._target.bucket} has another "
                "model, which may be in use; name a new version, or remove the objects"
            )
        if there.status not in (200, 404):
            raise refusal(there, what=f"look for a model in bucket {self._target.bucket}", cure=_CURE)

    def _url(self, path: str) -> str:
        key = quote(self._target.prefix + path, safe="/-_.~")
        return f"{self._target.endpoint}/{self._target.bucket}/{key}"

    def ensure(self, path: str, body: bytes | Part, sha256: str) -> None:
        """Put an object unless it is there with this hash."""
        url = self._url(path)
        size = body.size if isinstance(body, Part) else len(body)
        there = self._send("HEAD", url)
        if there.status == 200 and there.headers.get(_HASH) == sha256:
            log("object is there", key=path)
            return
        if there.status not in (200, 404):
            raise refusal(there, what=f"look for {path} in bucket {self._target.bucket}", cure=_CURE)
        if isinstance(body, Part) and size > self._part_bytes:
            self._put_parts(url, path, body, sha256)
        else:
            checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
            extra = {_HASH: sha256, "x-amz-checksum-sha256": checksum}
            answer = self._send("PUT", url, body=body, sha256=sha256, extra=extra)
            self._check(answer, f"put {path}")
        log("object sent", key=path, bytes=size)

    def _put_parts(self, url: str, path: str, body: Part, sha256: str) -> None:
        begun = self._send("POST", f"{url}?uploads=", extra={_HASH: sha256}, body=b"")
        self._check(begun, f"begin to put {path}")
        query = {"uploadId": _find_text(begun, "UploadId", path)}
        size = max(self._part_bytes, -(-body.size // MAX_PARTS))
        tags = []
        try:
            for number, offset in enumerate(range(0, body.size, size), 1):
                part = Part(path=body.path, offset=offset, size=min(size, body.size - offset))
                place = f"{url}?{urlencode({'partNumber': number} | query)}"
                sent = self._send("PUT", place, body=part, sha256=_hash_part(part))
                self._check(sent, f"put part {number} of {path}")
                tags.append((number, sent.headers.get("etag", "")))
            rows = "".join(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>" for number, tag in tags
            )
            xml = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()
            ended = self._send(
                "POST", f"{url}?{urlencode(query)}", body=xml, sha256=hashlib.sha256(xml).hexdigest()
            )
            self._check(ended, f"finish {path}")
            if b"<Error>" in ended.body:  # S3 may fail after it has said 200
                raise refusal(ended, what=f"finish {path}", cure=_CURE)
        except BaseException:  # a store keeps, and bills, parts of what is never finished
            with suppress(OptimizeError):  # the first failure is the one to tell
                self._send("DELETE", f"{url}?{urlencode(query)}")
            raise

    def _check(self, answer: Answer, what: str) -> None:
        if answer.status not in (200, 201, 204):
            raise refusal(answer, what=f"{what} in bucket {self._target.bucket}", cure=_CURE)

    def _send(
        self,
        method: str,
        url: str,
        *,
        body: Body = None,
        sha256: str = EMPTY_SHA256,
        extra: Mapping[str, str] | None = None,
    ) -> Answer:
        return self._web.send(method, url, headers=self._headers(method, url, sha256, extra or {}), body=body)

    def _headers(
        self, method: str, url: str, sha256: str, extra: Mapping[str, str]
    ) -> Callable[[], Mapping[str, str]]:
        def build() -> Mapping[str, str]:
            if not self._login.access_key:
                return dict(extra)
            signed = sign_get(
                url,
                region=self._target.region,
                access_key=self._login.access_key,
                secret_key=self._login.secret_key,
                session_token=self._login.session_token,
                now=datetime.now(UTC),
                extra_headers=extra,
                method=method,
                body_sha256=sha256,
            )
            return dict(extra) | signed

        return build


def _hash_part(part: Part) -> str:
    digest = hashlib.sha256()
    with part.path.open("rb") as file:
        file.seek(part.offset)
        left = part.size
        while left:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _find_text(answer: Answer, name: str, path: str) -> str:
    try:
        text = answer.body.decode("utf-8-sig")
        if "<!DOCTYPE" in text:  # entities could unfold to any size
            raise ValueError("it has a document type")
        for element in ElementTree.fromstring(text).iter():  # noqa: S314
            if element.tag.rpartition("}")[2] == name and element.text:
                return element.text
        raise ValueError(f"it has no {name}")
    except (ElementTree.ParseError, ValueError) as error:
        raise OptimizeError(
            Reason.SOURCE_UNAVAILABLE,
            f"put {path}: the store's answer is not S3's ({error}); check the endpoint",
        ) from error
