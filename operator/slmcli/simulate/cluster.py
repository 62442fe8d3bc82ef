# SPDX-License-Identifier: Apache-2.0
"""The virtual cluster: pods follow node labels, fetch over links, start, crash, and go.

Everything happens as an event at its time; nothing is done for a node on which nothing happens. What the
API server shows of a node and its pods is kept until it changes, so that a look costs no more than the
planner itself.
"""

import heapq
from collections.abc import Callable, Mapping
from itertools import chain
from random import Random
from typing import Any, Final

from slmcli.simulate.fleet import Node, Pod
from slmcli.simulate.links import Link
from slmcli.simulate.settings import Settings
from slmcli.simulate.stable import FETCH_MEMORY_BYTES, Versions
from slmcli.simulate.tally import Tally
from slmops.model.observed import NodeView, PodView
from slmops.planning.names import PREFETCH_SUFFIX
from slmops.planning.nodes import choose_variant
from slmops.planning.selectors import matches
from slmwire.labels import Role

CONTROLLER_SECONDS: Final = 0.2
"""From a node's label to the first pod, when nothing waits before it."""
HOLD_SECONDS: Final = 0.5
"""From a cached model to a ready prefetching pod: the hashes are in the store's record."""
GRACE_SECONDS: Final = {Role.SERVE: 3.0, Role.PREFETCH: 1.0, Role.RELEASE: 1.0}
CRASH_SECONDS: Final = 10.0
MAX_BACKOFF_SECONDS: Final = 300.0


class Cluster:
    """Nodes and pods in virtual time. `now` moves only in `run_until`."""

    def __init__(self, nodes: list[Node], versions: Versions, settings: Settings, random: Random) -> None:
        self.now = settings.start_seconds
        self.nodes = nodes
        self.wave = 0
        """Wave under way, as the operator's status says."""
        self.changes = 0
        """Grows with each change that may matter to a plan: a node or pod that becomes ready or stops being
        so, a pod that fails or does not fit."""
        self.on_the_way = 0
        """Pods that are wanted or made and neither ready nor broken yet."""
        self.tally = Tally(versions.target.revision, self.now)
        self._by_name = {node.name: node for node in nodes}
        self._prefix = versions.names.label_prefix
        self._versions = {r.revision: r for r in (versions.stable, versions.target)}
        self._spec, self._stable = versions.spec, versions.stable
        self._target = versions.target.revision
        self._settings = settings
        self._random = random
        self._events: list[tuple[float, int, Callable[..., None], Any, int]] = []
        self._number = 0
        self._controller_free_at = self.now
        self._link_stamps: dict[int, int] = {}
        self._views = [node.view for node in nodes]
        for node in nodes:
            self._begin(node)

    # What the operator sees and does

    def node_views(self) -> tuple[NodeView, ...]:
        """All nodes; an unchanged node is the same object in every look."""
        return tuple(self._views)

    def pod_views(self) -> tuple[PodView, ...]:
        """All pods; an unchanged pod is the same object in every look."""
        return tuple(chain.from_iterable([node.pod_views for node in self.nodes]))

    def patch(self, name: str, labels: Mapping[str, str | None], *, delay_seconds: float) -> None:
        """Change a node's labels; the controllers hear of it after the delay."""
        node = self._by_name[name]
        for key, value in labels.items():
            if value is None:
                node.labels.pop(key, None)
            else:
                node.labels[key] = value
        self._show_node(node)
        wanted = self._wanted(node)
        writes = len(_missing(node, wanted)) + len(_surplus(node, wanted))
        self.on_the_way += len(_missing(node, wanted))
        if writes:
            begin = max(self.now + delay_seconds + CONTROLLER_SECONDS, self._controller_free_at)
            self._controller_free_at = begin + writes / self._settings.pods_per_second
            self._at(begin - self.now, self._reconcile, node)

    # Time

    def at(self, delay_seconds: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self._at(delay_seconds, lambda _what, _stamp: do(), None)

    def next_time(self) -> float | None:
        """When something happens next."""
        return self._events[0][0] if self._events else None

    def run_until(self, end: float) -> None:
        """Let everything happen that is due by `end`, and move to it."""
        events = self._events
        while events and events[0][0] <= end:
            at, _, do, what, stamp = heapq.heappop(events)
            self.now = max(self.now, at)
            do(what, stamp)
        self.now = max(self.now, end)

    def _at(self, delay_seconds: float, do: Callable[..., None], what: Any, stamp: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + max(0.0, delay_seconds), self._number, do, what, stamp))

    # Nodes

    def _begin(self, node: Node) -> None:
        """The stable version serves, also on the nodes that are offline now."""
        node.show_node()
        self.tally.idle.change(1, self.now)  # until it is counted as serving, a line below
        placement = self._spec.placement.node_selector
        variant = choose_variant(self._stable, node.view) if matches(placement, node.labels) else None
        if variant is not None:
            node.labels[self._prefix + self._stable.revision] = variant.name
            pod = self._new_pod(node, self._stable.revision, variant.name, Role.SERVE)
            pod.created_at = self.now - 86400.0
            pod.scheduled, pod.phase = True, "Ready"
            node.cache.add((self._stable.revision, variant.name))
            node.used_bytes = pod.memory_bytes
            self._show_node(node)
            self._show_pods(node)
        self._views[node.index] = node.view
        if 0 < node.group.offline_percent < 100:
            self._at(self._outage(node, up=node.online), self._toggle, node)

    def _outage(self, node: Node, *, up: bool) -> float:
        """Seconds until an online node goes offline, or an offline one comes back."""
        mean = node.group.mean_outage_minutes * 60
        share = node.group.offline_percent / 100
        return self._random.expovariate(1 / (mean * (1 - share) / share if up else mean))

    def _toggle(self, node: Node, _stamp: int) -> None:
        node.online = not node.online
        node.ready_since = self.now
        self.changes += 1
        self._at(self._outage(node, up=node.online), self._toggle, node)
        self._show_node(node)
        for pod in node.pods:
            if not node.online and pod.download is not None:
                self._cut_off(node, pod)
        self._show_pods(node, was_online=not node.online)
        if node.online:
            for pod in list(node.pods):
                if pod.deleting:
                    self._at(GRACE_SECONDS[pod.role], self._gone, (node, pod))
                elif pod.phase == "Fetching" and pod.download is None:
                    self._fetch(node, pod)
            self._reconcile(node, 0)

    # The DaemonSet controller

    def _wanted(self, node: Node) -> dict[tuple[str, Role], str]:
        wanted = {}
        for key, value in node.labels.items():
            if key.startswith(self._prefix):
                tail = key.removeprefix(self._prefix)
                role = Role.PREFETCH if tail.endswith(PREFETCH_SUFFIX) else Role.SERVE
                revision = tail.removesuffix(PREFETCH_SUFFIX)
                if revision in self._versions:
                    wanted[revision, role] = value
        return wanted

    def _reconcile(self, node: Node, _stamp: int) -> None:
        changed = False
        wanted = self._wanted(node)
        for pod in _surplus(node, wanted):
            changed = True
            pod.deleting = True
            if node.online:
                self._at(GRACE_SECONDS[pod.role], self._gone, (node, pod))
        if node.online:  # it makes no pod on a node that is tainted as not ready
            for revision, role, variant in _missing(node, wanted):
                changed = True
                self._schedule(node, self._new_pod(node, revision, variant, role))
        if changed:
            self._show_pods(node)

    def _new_pod(self, node: Node, revision: str, variant: str, role: Role) -> Pod:
        known = self._versions[revision].variant(variant)
        memory = FETCH_MEMORY_BYTES if role is Role.PREFETCH or known is None else known.memory_bytes
        node.pods_made += 1
        pod = Pod(
            name=f"{node.name}-{node.pods_made}",
            revision=revision,
            variant=variant,
            role=role,
            memory_bytes=memory,
            now=self.now,
        )
        node.pods.append(pod)
        return pod

    # The scheduler and the kubelet

    def _schedule(self, node: Node, pod: Pod) -> None:
        memory = node.group.memory_bytes
        if memory and node.used_bytes + pod.memory_bytes > memory:
            self.changes += 1
            return
        node.used_bytes += pod.memory_bytes
        pod.scheduled = True
        if (pod.revision, pod.variant) in node.cache:
            self._start(node, pod)
        else:
            pod.phase = "Fetching"
            self._fetch(node, pod)

    def _fetch(self, node: Node, pod: Pod) -> None:
        key = (pod.revision, pod.variant)
        known = self._versions[pod.revision].variant(pod.variant)
        left = node.partial.pop(key, float(known.manifest.size_bytes if known else 0))
        pod.download = node.link.begin(left, (node, pod), self.now)
        self._await_link(node.link)

    def _cut_off(self, node: Node, pod: Pod) -> None:
        if pod.download is not None:
            node.partial[pod.revision, pod.variant] = node.link.stop(pod.download, self.now)
            pod.download = None
            self._await_link(node.link)

    def _await_link(self, link: Link) -> None:
        end = link.next_end()
        stamp = self._link_stamps[id(link)] = self._link_stamps.get(id(link), 0) + 1
        if end is not None:
            self._at(end - self.now, self._downloaded, link, stamp)

    def _downloaded(self, link: Link, stamp: int) -> None:
        if stamp != self._link_stamps[id(link)]:
            return
        for node, pod in link.take_ended(self.now):
            pod.download = None
            node.cache.add((pod.revision, pod.variant))
            self._start(node, pod)
            self._show_pods(node)
        self._await_link(link)

    def _start(self, node: Node, pod: Pod) -> None:
        pod.phase = "Starting"
        pod.stamp += 1
        seconds = HOLD_SECONDS
        if pod.role is Role.SERVE:
            seconds = node.group.start_seconds * self._random.uniform(0.75, 1.25)
        self._at(seconds, self._started, (node, pod), pod.stamp)

    def _started(self, what: tuple[Node, Pod], stamp: int) -> None:
        node, pod = what
        if pod.gone or stamp != pod.stamp:
            return
        if pod.role is Role.SERVE and node.crashes and pod.revision == self._target:
            pod.phase = "Broken"
            pod.restarts += 1
            backoff = min(MAX_BACKOFF_SECONDS, CRASH_SECONDS * 2.0 ** (pod.restarts - 1))
            self._at(node.group.start_seconds + backoff, self._started, what, stamp)
        else:
            pod.phase = "Ready"
        if pod.restarts <= 1:
            self.on_the_way = max(0, self.on_the_way - 1)
        self.changes += 1
        self._show_pods(node)

    def _gone(self, what: tuple[Node, Pod], _stamp: int) -> None:
        node, pod = what
        if pod.gone or not node.online:
            return
        self._cut_off(node, pod)
        pod.gone = True
        node.pods.remove(pod)
        node.used_bytes -= pod.memory_bytes if pod.scheduled else 0
        for waiting in node.pods:
            if not waiting.scheduled and not waiting.deleting:
                self._schedule(node, waiting)
        self._show_pods(node)

    # What is seen

    def _show_node(self, node: Node) -> None:
        node.show_node()
        self._views[node.index] = node.view

    def _show_pods(self, node: Node, *, was_online: bool | None = None) -> None:
        node.show_pods()
        before = node.online if was_online is None else was_online
        self.tally.recount(node, now=self.now, wave=self.wave, was_online=before)


_Wanted = Mapping[tuple[str, Role], str]
"""(revision, role) -> variant, from a node's labels."""


def _missing(node: Node, wanted: _Wanted) -> list[tuple[str, Role, str]]:
    present = {(pod.revision, pod.role): pod.variant for pod in node.pods if not pod.deleting}
    return [(*key, value) for key, value in wanted.items() if present.get(key) != value]


def _surplus(node: Node, wanted: _Wanted) -> list[Pod]:
    return [p for p in node.pods if not p.deleting and wanted.get((p.revision, p.role)) != p.variant]
