# SPDX-License-Identifier: Apache-2.0
"""Which addresses the operator may call on a user's behalf.

Whoever may write an SLMDeployment chooses the URLs that the operator calls from inside the cluster.
Cloud metadata services and the operator's own loopback must not be reachable that way.
"""

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from slmops.model.hosts import HostPort, is_allowed_host
from slmops.ports.sources import SourceError
from slmwire.reasons import Reason

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_METADATA: Final = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
)
"""Metadata services outside the link-local ranges (Alibaba, Oracle, AWS and Google over IPv6)."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """What may be called. Private networks may: an edge site's mirror lives in one."""

    allow_loopback: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """As in `model.hosts`; empty allows all."""

    def check_target(self, host: str, port: int) -> None:
        """SourceError if the administrator's list does not name the host of a request or redirect."""
        target = HostPort(host=host.lower().strip("[]").rstrip("."), port=port)
        if not is_allowed_host(target, self.allowed_hosts):
            raise SourceError(
                Reason.ACCESS_DENIED,
                f"{target} is asked for or redirected to and is not among the allowed hosts "
                f"{', '.join(self.allowed_hosts)}; use one of these, or let an administrator allow it (chart "
                "value allowedSourceHosts)",
                permanent=True,
            )

    def check_address(self, text: str, *, host: str) -> None:
        """SourceError if the IP address is off limits; `host` is the name that led to it."""
        address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
        if self.allow_loopback and address.is_loopback:
            return
        if (
            address.is_link_local
            or address.is_loopback
            or address.is_unspecified
            or address.is_multicast
            or address in _METADATA
        ):
            raise SourceError(
                Reason.ACCESS_DENIED,
                f"{host} leads to {address}, which sources may not use (loopback, link-local and metadata "
                "addresses are refused); name a host that nodes can reach",
                permanent=True,
            )

    def check_literal(self, host: str) -> None:
        """The same for a host that is an IP address already; names pass, they are checked resolved."""
        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return
        self.check_address(host, host=host)

    def check_host(self, host: str) -> None:
        """Resolve the name and check what it leads to. Blocks."""
        for address in _lookup(host):
            self.check_address(address, host=host)


class GuardedResolver(AbstractResolver):
    """Resolver of aiohttp's connector that hands out permitted addresses only.

    The check is made on the very addresses that are connected to, so a name that resolves
    differently the second time gains nothing.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of the host; SourceError if any of them is off limits."""
        results = await self._inner.resolve(host, port, family)
        for result in results:
            self._policy.check_address(result["host"], host=host)
        return results

    async def close(self) -> None:
        """Nothing to release."""
        await self._inner.close()


def _embedded(address: _Address) -> _Address:
    """The IPv4 address inside a mapped or translated IPv6 address, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _lookup(host: str) -> Iterable[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(
            Reason.SOURCE_UNAVAILABLE, f"{host} does not resolve ({error.strerror}); check the URL"
        ) from error
    return [str(entry[4][0]) for entry in found]
