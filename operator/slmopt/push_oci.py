# SPDX-License-Identifier: Apache-2.0
"""Pushes a model directory to an OCI registry: an artifact with one layer for each file.

The operator's `oci` source reads it back: each layer's title is the file's path. Blobs that the registry
has are not sent again, and a tag that names the same manifest already is left alone. After the OCI
distribution specification 1.1.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

from slmopt.errors import OptimizeError, unfit
from slmopt.job import OciTarget
from slmopt.log import log
from slmopt.web import Answer, Body, Part, Web, origin_of, plain_url, refusal
from slmwire.manifest import Manifest
from slmwire.reasons import Reason
from slmwire.registry import Login, LoginError, find_login, parse_challenges

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.slmops.model"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
WEIGHT_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
CONFIG_TYPE: Final = "application/vnd.cncf.model.weight.config.v1.raw"
"""Of the ModelPack specification."""
DIGEST_ANNOTATION: Final = "dev.slmops.model.digest"
_TITLE: Final = "org.opencontainers.image.title"
_FILE_PATH: Final = "org.cncf.model.filepath"
_WEIGHTS: Final = (".onnx", ".data", ".gguf", ".tflite", ".litertlm", ".bin", ".safetensors", ".pte")
_EMPTY: Final = b"{}"
_CURE: Final = "let the Secret's config.json hold a login that may push to the repository"
_HUB: Final = "registry-1.docker.io"


def push_oci(directory: Path, manifest: Manifest, target: OciTarget, web: Web, *, config: bytes) -> str:
    """Push the files of `manifest` and tag them; the OCI manifest's digest. Raises OptimizeError.

    `config` is a Docker configuration with `auths`, empty for anonymous.
    """
    registry = _Registry(target, web, config)
    layers = []
    for entry in manifest.files:
        digest = f"sha256:{entry.sha256}"
        part = Part(path=directory / entry.path, offset=0, size=entry.size)
        registry.ensure_blob(digest, part, name=entry.path)
        kind = WEIGHT_TYPE if entry.path.endswith(_WEIGHTS) else CONFIG_TYPE
        titles = {_TITLE: entry.path, _FILE_PATH: entry.path}
        layers.append({"mediaType": kind, "digest": digest, "size": entry.size, "annotations": titles})
    empty = f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}"
    registry.ensure_blob(empty, _EMPTY, name="config")
    # No time stamp: the same files give the same digest.
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": empty, "size": len(_EMPTY)},
            "layers": layers,
            "annotations": {DIGEST_ANNOTATION: manifest.digest},
        },
        separators=(",", ":"),
    ).encode()
    return registry.ensure_manifest(body)


class _Registry:
    """One repository; logs in when it is asked to."""

    def __init__(self, target: OciTarget, web: Web, config: bytes) -> None:
        self._web, self._target = web, target
        host = _HUB if target.host in ("docker.io", "index.docker.io") else target.host
        self._base = f"{'http' if target.plain_http else 'https'}://{host}/v2/{target.repository}"
        try:
            self._login = find_login(config, f"{self._base}/manifests/") if config.strip() else Login()
        except LoginError as error:
            raise OptimizeError(Reason.ACCESS_DENIED, str(error)) from error
        self._authorization = f"Bearer {self._login.registry_token}" if self._login.registry_token else ""

    def ensure_blob(self, digest: str, body: bytes | Part, *, name: str) -> None:
        """Send a blob that the registry lacks."""
        size = body.size if isinstance(body, Part) else len(body)
        what = f"{name} ({size} bytes) to {self._target.host}/{self._target.repository}"
        found = self._send("HEAD", f"{self._base}/blobs/{digest}")
        # A registry that keeps blobs elsewhere answers with a redirect to where it has it.
        if found.status in (200, 307, 302):
            log("blob is there", file=name, digest=digest)
            return
        if found.status != 404:
            raise refusal(found, what=f"look for {what}", cure=_CURE)
        begun = self._send("POST", f"{self._base}/blobs/uploads/", body=b"")
        if begun.status not in (201, 202) or "location" not in begun.headers:
            raise refusal(begun, what=f"push {what}", cure=_CURE)
        place = urljoin(f"{self._base}/blobs/uploads/", begun.headers["location"])
        parts = urlsplit(place)
        query = "&".join(part for part in (parts.query, f"digest={quote(digest, safe='')}") if part)
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
        octets = {"Content-Type": "application/octet-stream"}
        # Sent to another host than ours (a storage service), the login stays here.
        own = origin_of(place) == origin_of(self._base)
        sent = (self._send if own else self._send_bare)("PUT", url, body=body, extra=octets)
        if sent.status not in (201, 204):
            raise refusal(sent, what=f"push {what}", cure=_CURE)
        log("blob sent", file=name, digest=digest, bytes=size)

    def ensure_manifest(self, body: bytes) -> str:
        """Put the manifest under the tag unless it is there; its digest.

        A tag is not moved: a registry may remove what no tag names, and nodes pull it by digest still.
        """
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        url = f"{self._base}/manifests/{self._target.tag}"
        there = self._send("GET", url, extra={"Accept": MANIFEST_TYPE})
        if there.status == 200 and there.body == body:
            log("tag is there", tag=self._target.tag, digest=digest)
            return digest
        if there.status == 200:
            raise unfit(
                f"publish.oci.image: tag {self._target.tag} of {self._target.host}/{self._target.repository} "
                "names another model, which may be in use; name a new version, or delete the tag"
            )
        if there.status != 404:
            raise refusal(there, what=f"look for {plain_url(url)}", cure=_CURE)
        put = self._send("PUT", url, body=body, extra={"Content-Type": MANIFEST_TYPE})
        if put.status not in (200, 201, 202):
            raise refusal(put, what=f"push {plain_url(url)}", cure=_CURE)
        log("tag pushed", tag=self._target.tag, digest=digest)
        return digest

    def _send(
        self, method: str, url: str, *, body: Body = None, extra: Mapping[str, str] | None = None
    ) -> Answer:
        answer = self._send_bare(method, url, body=body, extra=self._with_login(extra))
        if answer.status == 401 and self._answer(answer):
            answer = self._send_bare(method, url, body=body, extra=self._with_login(extra))
        return answer

    def _send_bare(
        self, method: str, url: str, *, body: Body = None, extra: Mapping[str, str] | None = None
    ) -> Answer:
        return self._web.send(method, url, headers=lambda: dict(extra or {}), body=body)

    def _with_login(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        return dict(extra or {}) | ({"Authorization": self._authorization} if self._authorization else {})

    def _answer(self, refused: Answer) -> bool:
        """Log in as the challenge wants; False when there is nothing to offer."""
        offered = parse_challenges(refused.challenges)
        if "bearer" in offered:
            self._authorization = f"Bearer {self._ask_token(offered['bearer'])}"
            return True
        if "basic" in offered and self._login.username:
            self._authorization = self._basic()
            return True
        return False

    def _basic(self) -> str:
        text = f"{self._login.username}:{self._login.password}"
        return "Basic " + base64.b64encode(text.encode()).decode()

    def _ask_token(self, challenge: Mapping[str, str]) -> str:
        realm = challenge.get("realm", "")
        wanted = ("http", "https") if self._target.plain_http else ("https",)
        if urlsplit(realm).scheme not in wanted:
            raise OptimizeError(
                Reason.ACCESS_DENIED,
                f"{self._target.host} names {plain_url(realm)} as the place to log in, which is not https",
            )
        fields = {"scope": f"repository:{self._target.repository}:pull,push"}
        fields |= {"service": challenge["service"]} if challenge.get("service") else {}
        if self._login.identity_token:
            fields |= {"grant_type": "refresh_token", "refresh_token": self._login.identity_token}
            fields |= {"client_id": "slmopt"}
            answer = self._web.send("POST", realm, headers=dict, body=urlencode(fields).encode())
        else:
            joined = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}"
            headers = {"Authorization": self._basic()} if self._login.username else {}
            answer = self._web.send("GET", joined, headers=lambda: headers)
        if answer.status != 200:
            raise refusal(answer, what=f"log in at {plain_url(realm)}", cure=_CURE)
        try:
            body: Any = json.loads(answer.body)
            return str(body.get("token") or body["access_token"])
        except (ValueError, KeyError, AttributeError) as error:
            raise OptimizeError(
                Reason.SOURCE_UNAVAILABLE, f"{plain_url(realm)} gave no token; is it the registry's?"
            ) from error
