# SPDX-License-Identifier: Apache-2.0
"""Memory of bytes that failed verification, so that a bad source is not downloaded again and again."""

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmfetch.log import log, plain_url
from slmfetch.store import Store, discard, read_json, scan, write_json
from slmwire.manifest import ManifestFile

SAMPLE_BYTES: Final = 1024
MAX_RECORDS: Final = 32
HOLD_OFF_SECONDS: Final = 30.0
MAX_HOLD_OFF_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known about a bad blob."""

    failures: int
    actual_sha256: str
    not_before: float
    """Seconds since the epoch before which it is not tried again from the same place."""
    url: str
    """Where the bad bytes came from, as `plain_url`: another deployment's source may be sound."""

    def hold_off_seconds(self, file: ManifestFile, now: float) -> float:
        """Seconds until `file` may be tried again; a record from the future is a clock's error."""
        wait = self.not_before - now
        return wait if self.url == plain_url(file.url) and 0 < wait <= MAX_HOLD_OFF_SECONDS else 0.0


def read_record(store: Store, sha256: str) -> Record | None:
    """The record of a blob that failed before, if there is one."""
    body = read_json(store.quarantine / f"{sha256}.json")
    if body is None:
        return None
    try:
        return Record(
            failures=int(body["failures"]),
            actual_sha256=str(body["actualSha256"]),
            not_before=float(body["notBefore"]),
            url=str(body["url"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def add_record(store: Store, file: ManifestFile, *, actual_sha256: str, sample: bytes) -> Record:
    """Note one more failure. The bytes themselves are not kept, only their beginning.

    The hold-off doubles with each failure from 30 s up to an hour.
    """
    earlier = read_record(store, file.sha256)
    url = plain_url(file.url)
    failures = (earlier.failures if earlier and earlier.url == url else 0) + 1
    now = time.time()
    wait = min(HOLD_OFF_SECONDS * 2 ** min(failures - 1, 20), MAX_HOLD_OFF_SECONDS)
    record = Record(failures=failures, actual_sha256=actual_sha256, not_before=now + wait, url=url)
    body = {
        "path": file.path,
        "url": url,
        "expectedSha256": file.sha256,
        "actualSha256": actual_sha256,
        "size": file.size,
        "failures": failures,
        "at": now,
        "notBefore": record.not_before,
        "sample": base64.b64encode(sample[:SAMPLE_BYTES]).decode(),
    }
    try:
        write_json(store.quarantine / f"{file.sha256}.json", body)
        _bound(store)
    except OSError as error:
        # A full disk must not hide what is wrong with the source.
        log("the failed verification cannot be recorded", level="warning", why=str(error))
    return record


def clear_record(store: Store, sha256: str) -> None:
    """Forget a blob that has come in whole at last."""
    discard(store.quarantine / f"{sha256}.json")


def _bound(store: Store) -> None:
    entries = sorted(scan(store.quarantine), key=lambda e: e.stat(follow_symlinks=False).st_mtime)
    for entry in entries[:-MAX_RECORDS]:
        discard(Path(entry.path))
