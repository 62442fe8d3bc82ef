# SPDX-License-Identifier: Apache-2.0
"""Takes blobs from the other nodes of the site, so that one copy comes over the site's uplink.

There is no coordinator. For each blob every node ranks the site's nodes by rendezvous hashing (Thaler
and Ravishankar 1998): the highest hash of (blob, node) comes first. The first in rank that answers
goes to the source; the others wait a bounded time for anybody to have bytes or to go there, and take
the bytes from that node while it gets them. Whatever a peer does, the worst is lost time: it is
bounded, the fetch goes on at the same offset elsewhere, and the source is always left. Bytes count
only after the hash of the whole file.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from slmfetch.exchange import MARKER_SUFFIX, State
from slmfetch.log import log
from slmfetch.partial import Partial
from slmfetch.peer_link import Bounds, End, Link, View, is_address, look
from slmfetch.store import Store
from slmwire.distribution import Distribution
from slmwire.manifest import STORE_URL, ManifestFile

MAX_ASKED: Final = 12
"""Peers asked at once, by rank."""
SMALL_BYTES: Final = 64 << 10
"""For less than this nobody waits: it costs the uplink next to nothing."""
GRACE_SECONDS: Final = 4.0
"""How long each living node of higher rank is given to begin."""
GRACE_BUDGET_SECONDS: Final = 12.0
"""All such waiting of one run together."""
PATIENCE_SECONDS: Final = 35.0
"""How long the node that is at the source may get nothing before the next in rank goes there itself; longer
than it takes that node to give up a silent connection."""
CREEP_BYTES_PER_SECOND: Final = 16 << 10
"""Less than this from the source, in the mean over a minute, is as good as nothing."""
MAX_YIELDS: Final = 2
POLL_SECONDS: Final = 0.25
REFUSED_SECONDS: Final = 10.0
BUSY_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 60.0
TRIAL_SECONDS: Final = 60.0
"""A node is judged, over all that was asked of it, after so much time."""
TRIAL_LEFT_SECONDS: Final = 300.0
FOREVER: Final = float("inf")


def rank(sha256: str, nodes: Sequence[str]) -> list[str]:
    """Nodes by their claim to fetch the blob from the source; the same on every node."""
    return sorted(nodes, key=lambda node: hashlib.sha256(f"{sha256}/{node}".encode()).digest(), reverse=True)


@dataclass(slots=True, kw_only=True)
class _Site:
    """One look at the distribution: who is there, in rank for one blob."""

    port: int
    addresses: Mapping[str, str]
    """Of the neighbours."""
    ranked: Sequence[str]
    """Neighbours by rank."""
    elders: frozenset[str]
    """Those of them that rank before us."""
    creep_bytes_per_second: float


@dataclass(slots=True, kw_only=True)
class Peers:
    """Fills partials of one run from peers. Not to be shared between threads."""

    store: Store
    node: str
    distribution: Callable[[], Distribution]
    deadline: float
    """`time.monotonic()` at which the run gives up."""
    received: Callable[[int], None] = field(default=lambda count: None)
    """Told the number of bytes after each piece."""
    sleep: Callable[[float], None] = field(default=time.sleep)
    _distrusted: set[str] = field(default_factory=set)
    _left_until: dict[str, float] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _silences: Counter[str] = field(default_factory=Counter)
    _given: dict[str, Counter[str]] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    """What taking from a node, or waiting for it, has cost since it was last judged."""
    _brought: Counter[str] = field(default_factory=Counter)
    _grace_left: float = GRACE_BUDGET_SECONDS
    _best: float = 0.0

    def fill(self, file: ManifestFile, partial: Partial) -> None:
        """Append to `partial` what peers have; returns when the source has to give the rest, or at the end.

        To be called before the source is asked, and again after each attempt there that failed.
        Raises only what `partial` does.
        """
        if file.sha256 in self._distrusted or partial.offset >= file.size:
            return
        marker = self.store.partial / f"{file.sha256}{MARKER_SUFFIX}"
        # Left behind by a run that was killed, it would make others pass us over.
        marker.unlink(missing_ok=True)
        self._silent.clear()
        try:
            self._fill(file, partial, marker)
        finally:
            marker.unlink(missing_ok=True)

    def search(self, file: ManifestFile, partial: Partial) -> None:
        """Append to `partial` what peers have of a file without a source; nobody is waited for.

        Asks all of them, a few at a time by rank: maybe one alone has it. Raises only what `partial` does.
        """
        while partial.offset < file.size and time.monotonic() < self.deadline:
            site = self._site(file)
            views = [] if site is None else self._look_for(file, site, offset=partial.offset)
            target = None if site is None else self._choose(file, site, views, offset=partial.offset)
            if site is None or target is None or target.have <= partial.offset:
                return
            began, start = time.monotonic(), partial.offset
            self._take(target, file, partial, site, views)
            seconds = time.monotonic() - began
            self._judge(target.name, site, seconds=seconds, count=partial.offset - start)

    def blame(self, file: ManifestFile) -> bool:
        """The file did not match: nothing more from those who gave bytes of it, who are named, and where it
        has a source all of it comes from there from now on. False when nobody gave any."""
        sourced = file.url != STORE_URL
        if sourced:
            self._distrusted.add(file.sha256)
        given = self._given.pop(file.sha256, Counter())
        if not given:
            return False
        log(
            "bytes of other nodes were among those that do not match; the file is fetched from "
            + ("the source" if sourced else "others"),
            level="warning",
            file=file.path,
            sha256=file.sha256,
            peers=dict(given),
        )
        for name in given:
            self._left_until[name] = FOREVER
        return True

    def _fill(self, file: ManifestFile, partial: Partial, marker: Path) -> None:
        waited_until: float | None = None
        yields = 0
        while partial.offset < file.size and time.monotonic() < self.deadline:
            site = self._site(file)
            if site is None:
                return
            began, start = time.monotonic(), partial.offset
            views = self._look(file, site)
            target = self._choose(file, site, views, offset=start)
            if target is not None:
                touch_marker(marker)
                self._take(target, file, partial, site, views)
                count, seconds = partial.offset - start, time.monotonic() - began
                self._judge(target.name, site, seconds=seconds, count=count)
                continue
            living = sum(view.name in site.elders for view in views)
            now = time.monotonic()
            if waited_until is None and file.size - partial.offset > SMALL_BYTES:
                waited_until = now + min(GRACE_SECONDS * living, self._grace_left)
            if living and waited_until is not None and now < waited_until:
                touch_marker(marker)
                self.sleep(POLL_SECONDS)
                self._grace_left -= time.monotonic() - now
                continue
            if not views or waited_until is None or yields >= MAX_YIELDS:
                return
            # Two may come to this at the same instant: say first that we go, then look whether
            # somebody else does. Both may step back; the one that ranks higher does not wait again.
            yields += 1
            marker.unlink(missing_ok=True)
            if self._choose(file, site, self._look(file, site), offset=partial.offset) is None:
                return

    def _site(self, file: ManifestFile) -> _Site | None:
        distribution = self.distribution()
        neighbours = {
            name: address
            for name, address in distribution.neighbours(self.node).items()
            if is_address(address)
        }
        if not distribution.peer_port or not neighbours:
            return None
        order = rank(file.sha256, [self.node, *neighbours])
        place = order.index(self.node)
        return _Site(
            port=distribution.peer_port,
            addresses=neighbours,
            ranked=[name for name in order if name != self.node],
            elders=frozenset(order[:place]),
            # A node that is told to be slow is not left for being so.
            creep_bytes_per_second=min(
                CREEP_BYTES_PER_SECOND, (distribution.rate_limit_bytes_per_second or FOREVER) / 4
            ),
        )

    def _look(self, file: ManifestFile, site: _Site) -> list[View]:
        return self._ask(file, site, self._willing(site)[:MAX_ASKED])

    def _look_for(self, file: ManifestFile, site: _Site, *, offset: int) -> list[View]:
        """Views of as many as it takes until one of them has more."""
        willing = self._willing(site)
        for start in range(0, len(willing), MAX_ASKED):
            views = self._ask(file, site, willing[start : start + MAX_ASKED])
            if any(view.have > offset for view in views):
                return views
        return []

    def _willing(self, site: _Site) -> list[str]:
        now = time.monotonic()
        return [name for name in site.ranked if self._left_until.get(name, 0.0) <= now]

    def _ask(self, file: ManifestFile, site: _Site, asked: Sequence[str]) -> list[View]:
        views, refused, silent = look(file, {name: site.addresses[name] for name in asked}, port=site.port)
        now = time.monotonic()
        for name in refused:
            self._left_until[name] = now + REFUSED_SECONDS
        for name in silent:
            self._leave_silent(name)
        if silent:
            log("nodes of the site do not answer", level="warning", nodes=sorted(silent))
        return views

    def _choose(self, file: ManifestFile, site: _Site, views: Sequence[View], *, offset: int) -> View | None:
        """Whom to take from, or to wait for because it is at the source; None if there is nobody."""
        ahead = [view for view in views if view.have > offset]
        if ahead:
            best = max(
                ahead, key=lambda view: (view.state is State.WHOLE, view.state is State.SOURCE, view.have)
            )
            equal = [v for v in ahead if (v.state, v.have) == (best.state, best.have)]
            # Each node has an order of its own, which spreads the load.
            first = rank(f"{file.sha256}/{self.node}", [view.name for view in equal])[0]
            return next(view for view in equal if view.name == first)
        if file.size - offset <= SMALL_BYTES:
            return None
        at_source = [v for v in views if v.state is State.SOURCE and v.name not in self._silent]
        return max(at_source, key=lambda view: view.have, default=None)

    def _take(
        self, target: View, file: ManifestFile, partial: Partial, site: _Site, views: Sequence[View]
    ) -> None:
        # Those before us in rank lose patience first, or all would go to the source at once.
        before = sum(v.name in site.elders and v.name != target.name for v in views)
        bounds = Bounds(
            deadline=self.deadline,
            patience_seconds=PATIENCE_SECONDS * (1 + before),
            best_bytes_per_second=self._best,
            creep_bytes_per_second=site.creep_bytes_per_second,
        )
        given = self._given.setdefault(file.sha256, Counter())

        def sink(data: memoryview) -> None:
            if not given[target.name]:
                partial.describe(etag=partial.etag, origin=partial.origin)
            partial.write(data)
            given[target.name] += len(data)
            self.received(len(data))

        link = Link(name=target.name, address=site.addresses[target.name], port=site.port)
        start = partial.offset
        try:
            end = link.take(file, start=start, sink=sink, bounds=bounds)
        finally:
            link.close()
        self._best = max(self._best, link.best_bytes_per_second)
        self._note(target, end, file=file, taken=partial.offset - start)
        log(
            "took from another node of the site",
            file=file.path,
            node=target.name,
            bytes=partial.offset - start,
            total=file.size,
            at=partial.offset,
            end=end.value,
        )

    def _note(self, target: View, end: End, *, file: ManifestFile, taken: int) -> None:
        now = time.monotonic()
        if end is End.SLOW:
            # Slow is better than nothing, and without a source there may be nobody else.
            self._left_until[target.name] = FOREVER if file.url != STORE_URL else now + REFUSED_SECONDS
        elif end is End.TIMEOUT:
            self._leave_silent(target.name)
        elif end is End.GONE:
            self._left_until[target.name] = now + REFUSED_SECONDS
        elif end is End.BUSY:
            self._left_until[target.name] = now + BUSY_SECONDS
        elif end is End.SILENT:
            self._silent.add(target.name)
        elif end is End.NO_MORE and not taken:
            self.sleep(POLL_SECONDS)  # what it said has changed meanwhile; not to spin

    def _judge(self, name: str, site: _Site, *, seconds: float, count: int) -> None:
        """Leave, for a while, whoever brings next to nothing of what it has, or says to get.

        No single answer shows that: each may be quick, and short.
        """
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._brought[name] += count
        if self._seconds[name] < TRIAL_SECONDS:
            return
        if self._brought[name] < site.creep_bytes_per_second * self._seconds[name]:
            log("a node of the site gives too little", level="warning", node=name, bytes=self._brought[name])
            self._left_until[name] = time.monotonic() + TRIAL_LEFT_SECONDS
        del self._seconds[name], self._brought[name]

    def _leave_silent(self, name: str) -> None:
        # It cost time, and would again: twice as long each time.
        self._silences[name] += 1
        wait = SILENCE_SECONDS * 2.0 ** min(self._silences[name] - 1, 10)
        self._left_until[name] = time.monotonic() + wait


def touch_marker(marker: Path) -> None:
    """Say that a fetch waits for peers or takes from them."""
    with suppress(OSError):
        if not marker.exists():
            marker.touch(mode=0o600)
