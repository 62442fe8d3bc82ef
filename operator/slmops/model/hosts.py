# SPDX-License-Identifier: Apache-2.0
"""Which hosts an administrator's list allows, and which one a URL names."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:%\[\]\\]+)(?::(?P<port>[0-9]{1,5}))?(?:[/?#]\S*)?",
    re.IGNORECASE,
)
"""No user and no escapes in the host: two programs may read them in two ways."""
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ENTRY: Final = re.compile(
    rf"(?P<host>(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """Whom a URL names. `host` is lower case, an IPv6 address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


def read_host(url: str) -> HostPort | None:
    """Host and port of an http or https URL; None for any other, and for nonsense."""
    match = _URL.fullmatch(url)
    if match is None:
        return None
    port = int(match["port"] or _PORTS[match["scheme"].lower()])
    host = match["host"].lower().strip("[]").rstrip(".")
    return HostPort(host=host, port=port) if host and port in range(1, 65536) else None


def is_host_entry(entry: str) -> bool:
    """Whether the text is `models.example.com`, `*.example.com` or an IP address (IPv6 in brackets), with or
    without `:port`."""
    match = _ENTRY.fullmatch(entry.lower())
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        return False
    if match["host"].startswith("["):
        return HostPort(host=match["host"][1:-1], port=0).address is not None
    return True


def is_allowed_host(target: HostPort, allowed: Iterable[str]) -> bool:
    """Whether an entry names the host, and the port where it has one. An empty list allows everything.

    `*.example.com` means every host below example.com, at any depth, and not example.com itself.
    """
    entries = [match for entry in allowed if (match := _ENTRY.fullmatch(entry.lower())) is not None]
    return not entries or any(_names(match, target) for match in entries)


def _names(entry: re.Match[str], target: HostPort) -> bool:
    host, port = entry["host"], entry["port"]
    if port is not None and int(port) != target.port:
        return False
    if host.startswith("*."):
        # An address has no domain; a name that ends in digits and dots must not pass for one either.
        return target.address is None and target.host.endswith(host[1:]) and len(target.host) > len(host) - 1
    if host.startswith("["):
        named = HostPort(host=host[1:-1], port=0).address
        return named is not None and named == target.address
    return host == target.host
