# SPDX-License-Identifier: Apache-2.0
"""API keys: who may use the API."""

import hashlib
import hmac
import logging
from pathlib import Path

from slmserve.errors import StartError
from slmserve.watched import Stamp, observe_stamp
from slmwire.reasons import Reason

_log = logging.getLogger(__name__)


def parse_keys(text: str) -> list[str]:
    """One key a line; white space around it, empty lines and lines that begin with `#` do not count."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class KeyRing:
    """The keys of a file, read again when it changes; for the event loop only.

    Only digests are kept. A file that goes away leaves the last keys in force, so that a mistake on the
    way to new keys shuts nobody out; an empty one shuts everybody out. Raises StartError when the file
    cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: Stamp | None = None
        self._unread: Stamp | None = None
        """Of a file that could not be read, so that the log says it once."""
        self._digests: list[bytes] = []
        self._refresh()
        if self._stamp is None:
            raise StartError(Reason.UNFIT, f"the file of API keys {path} cannot be read; mount it")
        if not self._digests:
            raise StartError(Reason.UNFIT, f"the file of API keys {path} has no key; write one a line")

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header has one of the keys as its bearer token; takes constant time."""
        self._refresh()
        scheme, _, token = authorization.partition(" ")
        given = _digest(token.strip())
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return found and scheme.lower() == "bearer"

    def _refresh(self) -> None:
        stamp = observe_stamp(self._path)
        if stamp is None or stamp == self._stamp:
            return
        try:
            keys = parse_keys(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            if stamp != self._unread:
                _log.warning("the file of API keys cannot be read; the keys before it stay in force")
            self._unread = stamp
            return
        self._stamp = stamp
        self._digests = [_digest(key) for key in keys]
        _log.info("API keys read", extra={"fields": {"keys": len(keys)}})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
