# SPDX-License-Identifier: Apache-2.0
"""A small Hugging-Face-compatible endpoint on loopback: repositories, revisions, LFS, gating."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.unit.sources.serving import AnsweringHandler, serve


@dataclass(slots=True)
class Repo:
    """Files of one commit; names in `lfs` are kept in LFS."""

    files: dict[str, bytes]
    lfs: set[str] = field(default_factory=set)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    token: str = ""
    gated: bool = False


@dataclass(slots=True)
class Hub:
    """Repositories by name and what was asked of them."""

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(path, Authorization header)"""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """Given out before anything else."""
    altered: dict[str, bytes] = field(default_factory=dict)
    """What is sent instead of a file, by path."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _git_object(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(AnsweringHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        parts = urlsplit(self.path)
        hub.seen.append((parts.path, self.headers.get("Authorization", "")))
        if hub.answers:
            return self._answer(*hub.answers.pop(0))
        segments = [unquote(s) for s in parts.path.strip("/").split("/")]
        if segments[:2] == ["api", "models"] and len(segments) == 6 and segments[4] == "revision":
            blobs = "blobs" in parse_qs(parts.query)
            return self._model_info("/".join(segments[2:4]), segments[5], blobs=blobs)
        if len(segments) >= 5 and segments[2] == "resolve":
            return self._file("/".join(segments[:2]), segments[3], "/".join(segments[4:]))
        if segments[0] == "cdn":
            return self._answer(200, {}, self._lfs_object(segments[1]))
        return self._answer(404, {}, b"")

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        granted = self.headers.get("Authorization", "") == f"Bearer {repo.token}" if repo else False
        if repo is not None and repo.gated and not granted:
            self._answer(403, {"X-Error-Code": "GatedRepo"}, b'{"error":"gated"}')
            return None
        if repo is None or (repo.token and not granted):
            # The Hub hides private repositories: 401, as if there were none.
            self._answer(401, {"X-Error-Code": "RepoNotFound"}, b'{"error":"not found"}')
            return None
        return repo

    def _model_info(self, name: str, revision: str, *, blobs: bool) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        commit = repo.revisions.get(revision) or (revision if revision in repo.revisions.values() else "")
        if not commit:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"}, b'{"error":"no revision"}')
        siblings = []
        for path, data in repo.files.items():
            row: dict[str, Any] = {"rfilename": path}
            if blobs:
                row |= {
                    "size": len(data),
                    "blobId": _git_object(data),
                }
            if blobs and path in repo.lfs:
                sha256 = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(row)
        body = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings}
        return self._answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        if revision not in repo.revisions.values() or path not in repo.files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        if path in repo.lfs:
            target = f"/cdn/{hashlib.sha256(repo.files[path]).hexdigest()}?X-Signature=abc"
            return self._answer(302, {"Location": target}, b"")
        return self._answer(200, {}, self.hub.altered.get(path, repo.files[path]))

    def _lfs_object(self, sha256: str) -> bytes:
        objects = (data for repo in self.hub.repos.values() for data in repo.files.values())
        return next(data for data in objects if hashlib.sha256(data).hexdigest() == sha256)


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub()
    with serve(_Handler, hub=hub) as hub.port:
        yield hub
