# SPDX-License-Identifier: Apache-2.0
"""Counts over time: nodes that serve each revision, nodes that run the new one, nodes without a pod."""

from slmcli.simulate.fleet import Node


class Gauge:
    """A number that changes, and its integral over time."""

    __slots__ = ("_area", "_since", "most", "value")

    def __init__(self, since: float) -> None:
        self.value = 0.0
        self.most = 0.0
        self._area = 0.0
        self._since = since

    def change(self, by: float, now: float) -> None:
        """Add to the number at `now`."""
        self._area += self.value * (now - self._since)
        self._since = now
        self.value += by
        self.most = max(self.most, self.value)

    def area(self, now: float) -> float:
        """Integral until `now`, in seconds."""
        return self._area + self.value * (now - self._since)


class Tally:
    """What the simulation counts. A node's requests are shared evenly by its ready pods."""

    def __init__(self, target: str, now: float) -> None:
        self._target = target
        self._start = now
        self.serving: dict[tuple[str, str], Gauge] = {}
        """Nodes by (revision, variant), offline ones included: they go on serving their site."""
        self.seen: dict[tuple[str, str], Gauge] = {}
        """The same of online nodes: what a metrics provider can scrape."""
        self.idle = Gauge(now)
        """Nodes without a ready pod."""
        self.exposed = Gauge(now)
        """Nodes that run the new version, or try to."""
        self.by_wave: dict[int, int] = {}
        """The same by the wave in which they took it."""
        self.history: list[tuple[float, dict[int, int]]] = []

    def recount(self, node: Node, *, now: float, wave: int, was_online: bool) -> None:
        """Take over what has changed on the node."""
        served = tuple(
            (pod.revision, pod.variant) for pod in node.pods if pod.phase == "Ready" and pod.role == "serve"
        )
        if served != node.counted or was_online != node.online:
            self._share(node.counted, -1.0, now, online=was_online)
            self._share(served, 1.0, now, online=node.online)
            self.idle.change((not served) - (not node.counted), now)
            node.counted = served
        exposed = any(
            pod.revision == self._target and pod.role == "serve" and pod.phase in ("Ready", "Broken")
            for pod in node.pods
        )
        if exposed and node.exposed is None:
            node.exposed = wave
            self._expose(wave, 1, now)
        elif not exposed and node.exposed is not None:
            self._expose(node.exposed, -1, now)
            node.exposed = None

    def take(self, now: float) -> None:
        """Put the present state into the history."""
        present = {wave: count for wave, count in sorted(self.by_wave.items()) if count}
        if not self.history or self.history[-1][1] != present:
            self.history.append((now, present))

    def _share(self, served: tuple[tuple[str, str], ...], sign: float, now: float, *, online: bool) -> None:
        for key in served:
            self._gauge(self.serving, key).change(sign / len(served), now)
            if online:
                self._gauge(self.seen, key).change(sign / len(served), now)

    def _gauge(self, gauges: dict[tuple[str, str], Gauge], key: tuple[str, str]) -> Gauge:
        found = gauges.get(key)
        if found is None:
            found = gauges[key] = Gauge(self._start)
        return found

    def _expose(self, wave: int, by: int, now: float) -> None:
        self.exposed.change(by, now)
        self.by_wave[wave] = self.by_wave.get(wave, 0) + by
