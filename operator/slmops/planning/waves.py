# SPDX-License-Identifier: Apache-2.0
"""Which waves a spec stands for, and which node belongs to which of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from slmops.api.spec import Analysis, Rollout, Wave
from slmops.model.observed import NodeView
from slmops.planning.selectors import matches


@lru_cache(maxsize=1 << 17)
def stable_order(key: str, name: str) -> bytes:
    """Sort key that is the same on every look and differs between deployments, so that the same
    nodes are not every deployment's canaries."""
    return hashlib.sha256(f"{key}/{name}".encode()).digest()


def site_of(node: NodeView, site_label: str) -> str:
    """The node's site; a node without the label is a site of its own (`/` is in no label value)."""
    return node.labels.get(site_label) or f"/{node.name}"


def effective_rollout(rollout: Rollout) -> Rollout:
    """The rollout in terms of plain waves: exponential growth spelled out, Recreate as one wave."""
    if rollout.strategy == "Recreate":
        return rollout.model_copy(
            update={
                "waves": [Wave(name="all", percent=100)],
                "max_unavailable": "100%",
                "max_unavailable_per_site": None,
                # Whatever becomes of it, the user wants it everywhere: nothing is judged or taken back.
                "max_failures": "100%",
                "on_deadline": "Hold",
                "quorum_percent": 1,
                "soak": "0s",
                "analysis": Analysis.model_construct(**{**dict(rollout.analysis), "metrics": []}),
            }
        )
    if all(wave.exponential is None for wave in rollout.waves):
        return rollout
    return rollout.model_copy(update={"waves": expand(rollout.waves)})


def expand(waves: Sequence[Wave]) -> list[Wave]:
    """Waves with each exponential one as a series of percentages that ends at 100."""
    result: list[Wave] = []
    reached = 0
    for wave in waves:
        reached = wave.percent or reached
        growth = wave.exponential
        if growth is None:
            result.append(wave)
            continue
        percent, number = growth.start_percent, 1
        while reached < 100:
            if percent > reached:
                reached = min(100, percent)
                update = {"name": f"{wave.name}-{number}", "percent": reached, "exponential": None}
                result.append(wave.model_copy(update=update))
                number += 1
            percent *= growth.factor
    return result


def assign_waves(
    waves: Sequence[Wave], nodes: Sequence[NodeView], *, key: str, site_label: str = "", reserve: int = 0
) -> Mapping[str, int]:
    """Map each node's name to the index of its wave.

    A node belongs to the first selector wave that matches it. The others are ordered by a stable
    hash and fill the waves by count and by percentage: after a wave of p percent, p percent (rounded
    up) of all nodes have had their turn, those of earlier waves included. A wave that takes only so
    many nodes of a site passes the others on. The last wave takes what is left, of which `reserve`
    nodes are kept for it.
    """
    chosen: dict[int, list[NodeView]] = {}
    pool: list[NodeView] = []
    for node in nodes:
        index = _selected_by(waves, node)
        if index is None:
            pool.append(node)
        else:
            chosen.setdefault(index, []).append(node)

    def order(node: NodeView) -> bytes:
        return stable_order(key, node.name)

    pool.sort(key=order)
    result: dict[str, int] = {}
    for index, wave in enumerate(waves):
        if wave.node_selector is not None:
            taken, left = _take(chosen.get(index, []), len(nodes), wave, site_label, order)
            pool = sorted([*pool, *left], key=order) if left else pool
        else:
            room = wave.count or -(-len(nodes) * (wave.percent or 100) // 100) - len(result)
            if index < len(waves) - 1:
                room = min(room, len(nodes) - reserve - len(result))
            taken, pool = _take(pool, room, wave, site_label, None)
        result.update((node.name, index) for node in taken)
    result.update((node.name, len(waves) - 1) for node in pool)
    return result


def _selected_by(waves: Sequence[Wave], node: NodeView) -> int | None:
    for index, wave in enumerate(waves):
        if wave.node_selector is not None and matches(wave.node_selector, node.labels):
            return index
    return None


def _take(
    nodes: list[NodeView],
    room: int,
    wave: Wave,
    site_label: str,
    order: Callable[[NodeView], bytes] | None,
) -> tuple[list[NodeView], list[NodeView]]:
    """The first nodes that there is room for in all and in their site, and the others."""
    room = max(0, room)
    cap = wave.max_per_site
    if cap is None:
        return nodes[:room], nodes[room:]
    taken: list[NodeView] = []
    left: list[NodeView] = []
    per_site: Counter[str] = Counter()
    for node in sorted(nodes, key=order) if order else nodes:
        site = site_of(node, site_label)
        if len(taken) < room and per_site[site] < cap:
            per_site[site] += 1
            taken.append(node)
        else:
            left.append(node)
    return taken, left


def find_overlap(waves: Sequence[Wave], nodes: Iterable[NodeView]) -> tuple[str, str, str] | None:
    """(node, first wave, second wave) of a node that two selectors name; None when there is none."""
    selectors = [(wave.name, wave.node_selector) for wave in waves if wave.node_selector is not None]
    if len(selectors) < 2:
        return None
    for node in nodes:
        found = [name for name, selector in selectors if matches(selector, node.labels)]
        if len(found) > 1:
            return node.name, found[0], found[1]
    return None


def find_empty(waves: Sequence[Wave], nodes: Sequence[NodeView]) -> str | None:
    """Name of a selector wave that must not be empty and is; None when there is none."""
    for wave in waves:
        selector = wave.node_selector
        if selector is None or wave.empty_policy == "Skip":
            continue
        if not any(matches(selector, node.labels) for node in nodes):
            return wave.name
    return None
