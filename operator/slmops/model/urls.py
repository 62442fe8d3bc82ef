# SPDX-License-Identifier: Apache-2.0
"""Which URLs an administrator's list of prefixes allows."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_Parts = tuple[str, str, int, tuple[str, ...]]


def is_allowed_url(url: str, allowed: Iterable[str]) -> bool:
    """Whether `url` lies under one of the prefixes: same scheme, host and port, path by whole segments.

    Text alone would not do: `https://metrics.example` is how `https://metrics.example.evil` begins.
    """
    parts = _parse(url)
    if parts is None:
        return False
    for prefix in allowed:
        limit = _parse(prefix)
        if limit is not None and parts[:3] == limit[:3] and parts[3][: len(limit[3])] == limit[3]:
            return True
    return False


def _parse(url: str) -> _Parts | None:
    """Scheme, host, port and path; None for what could be read in two ways."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return None
    if split.scheme not in _PORTS or not split.hostname or split.query or split.fragment:
        return None
    if "@" in split.netloc or "\\" in url or any(not " " < letter < "\x7f" for letter in url):
        return None
    segments = tuple(segment for segment in split.path.split("/") if segment)
    # A client or server that resolves these would end up outside of the prefix.
    if any(set(unquote(segment)) & set("/\\%") or unquote(segment) in (".", "..") for segment in segments):
        return None
    return split.scheme, split.hostname, port or _PORTS[split.scheme], segments
