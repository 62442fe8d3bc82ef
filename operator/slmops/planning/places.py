# SPDX-License-Identifier: Apache-2.0
"""Which nodes may fetch a model ahead now: in a window, and so many of a site at a time.

A node that fetches keeps its place until it holds the model. One whose fetch does not run, because its pod
fails or none was made, may lose it to another: every `TURN_SECONDS` these and those that wait are put in
a new order, which follows from the time and nothing else. So a broken node does not block its site, and
a source that is away for all costs a few writes per site and turn.

A node that holds the model says so by its pod. After a node has come back, or its kubelet has restarted, the
pod says nothing for a moment; meanwhile nothing is taken from the node, or what it fetched in one window
would wait for the next.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from slmops.api import SLMDeploymentSpec
from slmops.api.rollout import Window
from slmops.planning import times
from slmops.planning.nodes import NodeState, pod_problem
from slmops.planning.operations import Standing
from slmops.planning.waves import site_of, stable_order
from slmops.planning.windows import is_open, next_opening
from slmwire.labels import Role

TURN_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """A node whose next step is to fetch a model ahead."""

    state: NodeState
    revision: str
    variant: str

    @property
    def begun(self) -> bool:
        """The node was told to."""
        return dict(self.state.prefetch) == {self.revision: self.variant}

    @property
    def runs(self) -> bool:
        """Its pod is there and has no problem."""
        return any(pod_problem(pod) is None for pod in self.state.pods_of(self.revision, Role.PREFETCH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The outcome for one look."""

    taken: frozenset[str] | None = None
    """Names of the nodes that may fetch; None: all."""
    waiting: int = 0
    """Nodes that are to fetch and may not."""
    turn_at: float | None = None
    """When the order changes, or a node is no longer waited for, where that may matter."""

    def may_fetch(self, name: str) -> bool:
        """Whether the node may fetch now."""
        return self.taken is None or name in self.taken


EVERYWHERE: Final = Places()


def is_limited(spec: SLMDeploymentSpec) -> bool:
    """Whether nodes have to wait for a place, so that all of them fetch ahead, new ones included."""
    wanted = spec.distribution
    return spec.placement.mode == "PerNode" and bool(wanted.windows or wanted.max_concurrent_per_site)


def serves_without_egress(spec: SLMDeploymentSpec) -> bool:
    """Whether serving pods cannot fetch, so that a node must hold a model before it is given one."""
    return spec.placement.mode == "PerNode" and spec.privacy.egress == "Denied"


def fetches_ahead(spec: SLMDeploymentSpec) -> bool:
    """Whether all nodes fetch ahead of their serving pod, new ones included."""
    return is_limited(spec) or serves_without_egress(spec)


def say_closed(windows: Sequence[Window], now: float) -> str:
    """Why no node may fetch at `now`; empty when they may."""
    if is_open(windows, now):
        return ""
    opening = next_opening(windows, now)
    when = f"the next one opens at {times.to_text(opening)}" if opening else "none opens within two weeks"
    return f"no window of spec.distribution.windows is open; {when}"


def say_fetch_closed(spec: SLMDeploymentSpec, standing: Standing, now: float) -> str:
    """Why no node may fetch ahead now. The way back by hand is open at any time: nodes keep earlier models,
    and find out by fetching that they have them."""
    is_undone = standing.pinned is not None and standing.pinned.revision == standing.target != standing.stable
    return "" if is_undone else say_closed(spec.distribution.windows, now)


def assign_places(
    spec: SLMDeploymentSpec,
    fetches: Sequence[Fetch],
    *,
    key: str,
    closed: str,
    now: float,
    settle_seconds: float,
) -> Places:
    """Places for this look. `fetches` come in a stable order, `key` seeds the other one, `closed` says why
    nobody may fetch; `settle_seconds` is how long a node that was told to fetch may say nothing of it."""
    limit = spec.distribution.max_concurrent_per_site
    silent = {
        fetch.state.name: until
        for fetch in fetches
        if (until := _silent_until(fetch, now=now, settle_seconds=settle_seconds)) > now
    }
    if closed:
        return Places(
            taken=frozenset(silent),
            waiting=len(fetches) - len(silent),
            turn_at=min(silent.values(), default=None),
        )
    if limit is None or not is_limited(spec):
        return EVERYWHERE
    sites: dict[str, list[Fetch]] = {}
    for fetch in fetches:
        sites.setdefault(site_of(fetch.state.node, spec.placement.site_label), []).append(fetch)
    taken: set[str] = set()
    turns = list(silent.values())
    for site, members in sites.items():
        # Sites take their turns at different times, or all of them would be written at once.
        phase = TURN_SECONDS * int.from_bytes(stable_order(key, site)[:2]) / 65536
        turn = int((now + phase) // TURN_SECONDS)
        chosen = _choose(members, limit, f"{key}/{turn}", silent=silent)
        taken.update(chosen)
        if len(chosen) < len(members) and any(f.state.name in chosen and not _holds(f) for f in members):
            turns.append((turn + 1) * TURN_SECONDS - phase)
    return Places(
        taken=frozenset(taken), waiting=len(fetches) - len(taken), turn_at=min(turns) if turns else None
    )


def _holds(fetch: Fetch) -> bool:
    return fetch.begun and fetch.runs


def _silent_until(fetch: Fetch, *, now: float, settle_seconds: float) -> float:
    """Until when the node need not have said whether it holds the model; 0 when that is past.

    The clocks are the node's. One that is far off says nothing, so such a node is not waited for.
    """
    if not fetch.begun:
        return 0.0
    changes = [fetch.state.node.ready_since]
    # A new pod is not ready for another reason: it has not fetched yet.
    changes += [
        pod.ready_changed_at
        for pod in fetch.state.pods_of(fetch.revision, Role.PREFETCH)
        if pod.ready_changed_at > pod.created_at + settle_seconds
    ]
    return max((at + settle_seconds for at in changes if abs(now - at) < settle_seconds), default=0.0)


def _choose(members: Iterable[Fetch], limit: int, key: str, *, silent: Collection[str]) -> set[str]:
    """Names of one site: those that say nothing for a moment; of the others at most `limit`, those that
    fetch and then the first that there is room for beside all of these."""
    members = tuple(members)
    waited_for = [fetch.state.name for fetch in members if fetch.state.name in silent]
    rest = [fetch for fetch in members if fetch.state.name not in silent]
    holding = [fetch.state.name for fetch in rest if _holds(fetch)][:limit]
    others = [fetch.state.name for fetch in rest if not _holds(fetch)]
    others.sort(key=lambda name: hashlib.sha256(f"{key}/{name}".encode()).digest())
    return {*waited_for, *holding, *others[: max(0, limit - len(holding) - len(waited_for))]}
