# SPDX-License-Identifier: Apache-2.0
"""The resolved manifest: which bytes make up one variant of a model, and where to get them."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*")
STORE_URL: Final = "store:"
"""`url` of a file that has no source: it was made on a node, and is in the node's own store or that of
another node of the site."""
MAX_PATH_LENGTH: Final = 200
MAX_FILES: Final = 500
MAX_BYTES: Final = 1 << 50
"""A pebibyte: sums of such sizes still fit into every integer that they are put into."""


class ManifestError(ValueError):
    """The manifest is malformed; the message names the entry, the problem and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One file: `path` relative to the model directory, `size` in bytes, lower-case hex `sha256`."""

    path: str
    size: int
    sha256: str
    url: str = ""
    offset: int = 0
    """Where the file begins in what `url` names, in bytes: a file inside an uncompressed tar layer."""


def digest_of(files: Iterable[ManifestFile]) -> str:
    """Identity of the bytes as `sha256:<hex>`; where they come from does not change it."""
    rows = sorted([f.path, f.size, f.sha256] for f in files)
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All files of one variant, sorted by path."""

    files: tuple[ManifestFile, ...]

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over paths, sizes and hashes."""
        return digest_of(self.files)

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(f.size for f in self.files)

    def to_json(self) -> str:
        """Canonical JSON, URLs included: the form that `parse_manifest` reads."""
        rows = [
            {"path": f.path, "size": f.size, "sha256": f.sha256}
            | ({"url": f.url} if f.url else {})
            | ({"offset": f.offset} if f.offset else {})
            for f in self.files
        ]
        return json.dumps({"files": rows}, separators=(",", ":"), sort_keys=True)


def parse_manifest(text: str | bytes) -> Manifest:
    """Read a manifest; raises ManifestError for anything that is not exactly one.

    A path must be relative, of plain characters, without `.`, `..` or hidden segments: the file is
    made below the model directory by that name (path traversal).
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest is not JSON: {error}") from error
    rows = body.get("files") if isinstance(body, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ManifestError(
            'the manifest has no files: it must be {"files": [{"path", "size", "sha256"}, ...]}'
        )
    if len(rows) > MAX_FILES:
        raise ManifestError(f"the manifest lists {len(rows)} files; at most {MAX_FILES} are allowed")
    files = sorted((_parse_file(index, row) for index, row in enumerate(rows)), key=lambda f: f.path)
    _refuse_collisions([f.path for f in files])
    return Manifest(files=tuple(files))


def _refuse_collisions(paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ManifestError(f"files[]: {path!r} occurs twice; each path may occur once")
        seen.add(path)
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise ManifestError(f"files[]: {parent!r} is a file and the directory of {path!r}")
            parent = parent.rpartition("/")[0]


def _parse_file(index: int, row: Any) -> ManifestFile:
    where = f"files[{index}]"
    if not isinstance(row, Mapping):
        raise ManifestError(f"{where}: must be an object with path, size and sha256")
    path, size, sha256, url = row.get("path"), row.get("size"), row.get("sha256"), row.get("url", "")
    if not isinstance(path, str) or len(path) > MAX_PATH_LENGTH or not _PATH.fullmatch(path):
        raise ManifestError(
            f"{where}.path: {_shown(path)} is not a plain relative path (letters, digits, . _ + @ - and /, "
            f"at most {MAX_PATH_LENGTH} characters, no segment may start with a dot)"
        )
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_BYTES:
        raise ManifestError(f"{where}.size: {_shown(size)} is not a number of bytes up to {MAX_BYTES}")
    if not isinstance(sha256, str) or not _HEX.fullmatch(sha256):
        raise ManifestError(f"{where}.sha256: must be 64 lower-case hexadecimal digits")
    if not isinstance(url, str) or any("\ud800" <= character <= "\udfff" for character in url):
        raise ManifestError(f"{where}.url: must be a string of Unicode text")
    offset = row.get("offset", 0)
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= MAX_BYTES:
        raise ManifestError(f"{where}.offset: {_shown(offset)} is not a number of bytes up to {MAX_BYTES}")
    return ManifestFile(path=path, size=size, sha256=sha256, url=url, offset=offset)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 250 else f"{text[:250]}..."
