# SPDX-License-Identifier: Apache-2.0
"""Which variant of the stable revision the same devices have, where its name has changed.

Measurements are by variant, which stands for a class of devices. A DeviceProfile or an override that comes,
goes or prefers another variant gives the same devices another name, and they would have nothing to be
compared with.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from slmops.model.observed import Reading
from slmops.planning.fleet import Fleet


def find_renamed(fleet: Fleet) -> dict[str, str]:
    """Variant of the target -> variant of the stable revision that most of its nodes have; only of those
    that no node has of the stable revision. Empty where neither profiles nor overrides are in play."""
    target, stable = fleet.target, fleet.stable
    if target is None or stable is None or target is stable or not (target.profiles or stable.profiles):
        return {}
    counts: Counter[tuple[str, str]] = Counter()
    for state in fleet.eligible:
        new, old = fleet.variant(target, state), fleet.variant(stable, state)
        if new is not None and old is not None:
            counts[new.name, old.name] += 1
    known = {old for _, old in counts}
    result: dict[str, str] = {}
    for (new_name, old_name), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if new_name not in known:
            result.setdefault(new_name, old_name)
    return result


def with_renamed(readings: Iterable[Reading], renamed: Mapping[str, str]) -> tuple[Reading, ...]:
    """The readings with what is known of the stable variants under the new names, too."""
    if not renamed:
        return tuple(readings)
    return tuple(
        replace(
            reading,
            stable={new: reading.stable[old] for new, old in renamed.items() if old in reading.stable}
            | dict(reading.stable),
        )
        for reading in readings
    )
