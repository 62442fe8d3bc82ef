# SPDX-License-Identifier: Apache-2.0
"""A Lease that keeps two operators from writing at once.

While the API server is away the Lease cannot be renewed and nothing can be written either: the
guard forbids writes then and goes on when it comes back, if nobody took over meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from slmops.adapters.errors import Conflict, KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import LEASES

LEASE_NAME: Final = "slmops"
DURATION_SECONDS: Final = 15.0
_log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another process took the Lease: this one must end."""


class LeaseGuard:
    """Holds the Lease for `identity`; `held()` says whether writing is allowed right now."""

    def __init__(
        self,
        kube: KubeClient,
        *,
        namespace: str,
        identity: str,
        duration_seconds: float = DURATION_SECONDS,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube = kube
        self.namespace = namespace
        self._identity = identity
        self._duration_seconds = duration_seconds
        self._on_change = on_change
        self._renewed_at = float("-inf")
        self._seen: tuple[str, float] = ("", float("-inf"))
        self._lease: dict[str, Any] | None = None
        """As our last write left it."""

    @property
    def retry_seconds(self) -> float:
        """Time between two renewals or attempts."""
        return self._duration_seconds / 5

    def held(self) -> bool:
        """True until two thirds of the duration have passed since the last renewal.

        Others wait for the whole duration: the last third covers a write that is under way.
        """
        return asyncio.get_running_loop().time() - self._renewed_at < self._duration_seconds * 2 / 3

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        waiting = False
        while True:
            try:
                holder = await self._try()
                if not holder:
                    _log.info("holding the Lease %s/%s", self.namespace, LEASE_NAME)
                    self._on_change()
                    return
                if not waiting:
                    _log.info("waiting for the Lease %s/%s: held by %s", self.namespace, LEASE_NAME, holder)
                    waiting = True
            except KubeError as error:
                _log.warning("cannot take the Lease %s/%s: %s", self.namespace, LEASE_NAME, error)
            await asyncio.sleep(self.retry_seconds)

    async def keep(self) -> None:
        """Renew until cancelled; raises LeaseLost when another process has it."""
        allowed = self.held()
        while True:
            await asyncio.sleep(self.retry_seconds)
            try:
                holder = await self._try()
                if holder:
                    self._renewed_at = float("-inf")
                    raise LeaseLost(f"the Lease {self.namespace}/{LEASE_NAME} was taken by {holder}")
            except KubeError as error:
                _log.warning("cannot renew the Lease %s/%s: %s", self.namespace, LEASE_NAME, error)
            if self.held() != allowed:
                allowed = self.held()
                self._on_change()

    async def release(self) -> None:
        """Give the Lease back, so that a successor need not wait."""
        if not self.held():
            return
        self._renewed_at = float("-inf")
        self._lease = None
        try:
            lease = await self._kube.get(LEASES, namespace=self.namespace, name=LEASE_NAME)
            if lease["spec"].get("holderIdentity") != self._identity:
                return
            lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._kube.replace(LEASES, namespace=self.namespace, body=lease)
        except KubeError as error:
            _log.info("the Lease was not given back: %s", error)

    async def _try(self) -> str:
        """Take or renew; the holder's identity when it is another one that is alive."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        if self._lease is not None and await self._renew(self._lease):
            self._renewed_at = asked_at
            return ""
        try:
            lease = await self._kube.get(LEASES, namespace=self.namespace, name=LEASE_NAME)
        except NotFound:
            body = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": LEASE_NAME, "namespace": self.namespace},
                "spec": self._spec(transitions=0),
            }
            try:
                self._lease = await self._kube.create(LEASES, namespace=self.namespace, body=body)
            except Conflict:
                return "another process that was quicker"
            self._renewed_at = asked_at
            return ""
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        version = str(lease["metadata"]["resourceVersion"])
        if holder not in ("", self._identity):
            # Clocks of two machines differ, so the holder counts as gone when it has not renewed for
            # the whole duration as seen from here.
            if self._seen[0] != version:
                self._seen = (version, loop.time())
            duration = float(spec.get("leaseDurationSeconds") or self._duration_seconds)
            if loop.time() - self._seen[1] < duration:
                return holder
        renewed = self._spec(transitions=int(spec.get("leaseTransitions") or 0) + 1)
        if holder == self._identity:
            renewed = {**spec, "renewTime": renewed["renewTime"]}
        lease["spec"] = renewed
        try:
            self._lease = await self._kube.replace(LEASES, namespace=self.namespace, body=lease)
        except Conflict:
            # Somebody edited our own Lease: renewed at the next turn.
            return "" if holder == self._identity else "another process that was quicker"
        self._renewed_at = asked_at
        return ""

    async def _renew(self, lease: dict[str, Any]) -> bool:
        """Renew the Lease as we wrote it last, unread; False when somebody has changed it since."""
        self._lease = None
        spec = {**lease["spec"], "renewTime": self._spec(transitions=0)["renewTime"]}
        body = {**lease, "spec": spec}
        try:
            self._lease = await self._kube.replace(LEASES, namespace=self.namespace, body=body)
        except (Conflict, NotFound):
            return False
        return True

    def _spec(self, *, transitions: int) -> dict[str, Any]:
        now = datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration_seconds)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
