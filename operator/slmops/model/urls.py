# SPDX-License-Identifier: Apache-2.0
"""Which URLs an administrator's list of prefixes allows."""

import re
from collections.abc import Iterable
from typing import Final

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?((?:/[a-z0-9._~!$&'()*+,;=:-]*)*)",
    re.IGNORECASE | re.ASCII,
)
"""Nothing that two programs read in two ways: no user, no escapes, no query, no backslash."""
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


def origin_of(url: str) -> str:
    """Scheme, host and port of an HTTP(S) URL with a slash after them; empty for any other text."""
    match = re.match(r"https?://[^/?#\s@]+(?=[/?#]|$)", url, re.IGNORECASE)
    return f"{match[0]}/" if match is not None else ""


def _parse(url: str) -> _Parts | None:
    """Scheme, host, port and path segments; None for any other form."""
    match = _URL.fullmatch(url)
    if match is None:
        return None
    scheme, host, port, path = match.groups()
    segments = tuple(segment for segment in path.split("/") if segment)
    # A client or server that resolves these would end up outside of the prefix; some servers drop what
    # follows a semicolon first.
    if any(segment.partition(";")[0] in (".", "..") for segment in segments):
        return None
    return scheme.lower(), host.lower(), int(port or _PORTS[scheme.lower()]), segments
