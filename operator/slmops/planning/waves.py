# SPDX-License-Identifier: Apache-2.0
"""Which node belongs to which wave."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from slmops.api.spec import Wave
from slmops.model.observed import NodeView
from slmops.planning.selectors import matches


@lru_cache(maxsize=1 << 18)
def stable_order(key: str, name: str) -> bytes:
    """Sort key that is the same on every look and differs between deployments, so that the same
    nodes are not every deployment's canaries."""
    return hashlib.sha256(f"{key}/{name}".encode()).digest()


def assign_waves(waves: Sequence[Wave], nodes: Sequence[NodeView], *, key: str) -> Mapping[str, int]:
    """Map each node's name to the index of its wave.

    A node belongs to the first selector wave that matches it. The others are ordered by a stable
    hash and fill the percentage waves: after a wave of p percent, p percent (rounded up) of all
    nodes have had their turn, selector waves included. The last wave takes what is left.
    """
    result: dict[str, int] = {}
    rest: list[str] = []
    for node in nodes:
        index = next(
            (
                i
                for i, wave in enumerate(waves)
                if wave.node_selector is not None and matches(wave.node_selector, node.labels)
            ),
            None,
        )
        if index is None:
            rest.append(node.name)
        else:
            result[node.name] = index
    rest.sort(key=lambda name: stable_order(key, name))
    taken = 0
    for index, wave in enumerate(waves):
        if wave.percent is None:
            continue
        had = sum(1 for i in result.values() if i <= index)
        target = -(-len(nodes) * wave.percent // 100)
        size = max(0, min(len(rest) - taken, target - had))
        for name in rest[taken : taken + size]:
            result[name] = index
        taken += size
    for name in rest[taken:]:
        result[name] = len(waves) - 1
    return result
