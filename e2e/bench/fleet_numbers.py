# SPDX-License-Identifier: Apache-2.0
"""Numbers from what processes tell about themselves: metrics pages and /proc. Pure functions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

WRITE_VERBS: Final = frozenset({"create", "update", "patch", "apply", "delete", "deletecollection"})
"""Verbs of requests that change something, in lower case."""

Labels = Mapping[str, str]
Keep = Callable[[Labels], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One sample of a metrics page."""

    name: str
    labels: Labels
    value: float


Page = tuple[Series, ...]


def read_page(text: str) -> Page:
    """All samples of a page in Prometheus' text format; ValueError when it is not one."""
    return tuple(
        Series(name=sample.name, labels=sample.labels, value=float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def total(page: Page, name: str, keep: Keep = lambda labels: True) -> float:
    """Sum of the series called `name` whose labels are wanted; 0 when there is none."""
    return sum(series.value for series in page if series.name == name and keep(series.labels))


def _having(label: str, value: str, keep: Keep = lambda labels: True) -> Keep:
    return lambda labels: keep(labels) and labels.get(label, "") == value


def growth(before: Page, after: Page, name: str, keep: Keep = lambda labels: True) -> float:
    """By how much a counter grew, over the series that are wanted."""
    return total(after, name, keep) - total(before, name, keep)


def growth_by(before: Page, after: Page, name: str, label: str, keep: Keep) -> dict[str, float]:
    """The same by the value of one label, largest first; what did not grow is left out."""
    values = {series.labels.get(label, "") for series in after if series.name == name and keep(series.labels)}
    grown = {value: growth(before, after, name, _having(label, value, keep)) for value in values}
    return dict(sorted(((k, v) for k, v in grown.items() if v > 0), key=lambda item: (-item[1], item[0])))


def quantile(before: Page, after: Page, histogram: str, share: float) -> float | None:
    """A quantile of what a histogram took in between two pages, as `histogram_quantile` has it.

    Linear within a bucket; the last finite bound for what lies above it. None when nothing came in.
    """
    name = f"{histogram}_bucket"
    texts = {series.labels["le"] for series in after if series.name == name}
    found = sorted((float(text), growth(before, after, name, _having("le", text))) for text in texts)
    if not found or found[-1][1] <= 0:
        return None
    rank = share * found[-1][1]
    lower_bound = lower_count = 0.0
    for bound, count in found:
        if count >= rank:
            if math.isinf(bound):
                return lower_bound
            inside = (rank - lower_count) / (count - lower_count) if count > lower_count else 0.0
            return lower_bound + (bound - lower_bound) * inside
        lower_bound, lower_count = bound, count
    return lower_bound


def cpu_seconds(stat: str, *, ticks_per_second: int) -> float:
    """User and system time from /proc/<pid>/stat; the command name may hold blanks and brackets."""
    fields = stat[stat.rindex(")") + 1 :].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_second


def memory_bytes(status: str, field: str) -> int:
    """A field of /proc/<pid>/status that is given in kB, VmHWM for example; ValueError without it."""
    for line in status.splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise ValueError(f"/proc status has no {field}")
