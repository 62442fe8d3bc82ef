# SPDX-License-Identifier: Apache-2.0
"""What the page is told, as JSON in camelCase. No field holds a spec, a source or anything of a Secret.

Times are RFC 3339 texts, but for plots: seconds since the epoch. Texts come from cluster users and from
devices, and are shown as texts, never as HTML.
"""

import dataclasses
import json
from enum import StrEnum
from typing import Any, Final

from pydantic.alias_generators import to_camel

MAX_TEXT: Final = 400
"""Characters of a message."""


class Health(StrEnum):
    """How a deployment fares, in one word."""

    OK = "ok"
    ROLLING = "rolling"
    HELD = "held"
    OFFLINE = "offline"
    """Nothing is wrong but for nodes that do not report."""
    FAILING = "failing"
    UNKNOWN = "unknown"
    """The operator has not looked at it yet."""


class CellState(StrEnum):
    """How a node fares with one deployment; the order is that of legends."""

    STABLE = "stable"
    CANARY = "canary"
    MOVING = "moving"
    WAITING = "waiting"
    """It has nothing of the deployment yet."""
    DEFERRED = "deferred"
    """Offline when its wave came: it follows when it is back."""
    OFFLINE = "offline"
    FAILING = "failing"
    UNFIT = "unfit"
    SPARE = "spare"
    """With mode Replicas: no replica is here, and none needs to be."""


CELL_STATES: Final = tuple(CellState)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A deployment in the overview."""

    namespace: str
    name: str
    model: str
    version: str
    health: Health
    reason: str
    message: str
    ready: int
    total: int
    offline: int
    failed: int
    step: str
    wave: str
    """Of a rollout under way: name of its wave."""
    wave_number: int
    """From 1; 0 without a rollout under way."""
    waves: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The fleet in numbers."""

    deployments: int
    nodes: int
    nodes_ready: int
    sites: int
    rolling: int
    """Rollouts under way, held ones included."""
    held: int
    failing: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Nodes of the cluster that name the same site."""

    name: str
    nodes: int
    ready: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelVariantRow:
    """One variant of the newest version of a model, as its gates judged it."""

    name: str
    step: str
    verdict: str
    reason: str
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """An SLMModel."""

    namespace: str
    name: str
    latest: str
    accepted: str
    progress: str
    versions: int
    reason: str
    message: str
    variants: tuple[ModelVariantRow, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """`/api/fleet`."""

    leads: bool
    """This operator holds the Lease: it knows nodes, and what is shown is its own doing."""
    nodes_known: bool
    counters: Counters
    deployments: tuple[Row, ...]
    sites: tuple[Site, ...]
    models: tuple[ModelRow, ...]
    models_left_out: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WaveCard:
    """A wave of the strip; `state` is done, current, next, failed, skipped or unreached."""

    name: str
    state: str
    verdict: str
    nodes: int
    updated: int
    ready: int
    deferred: int
    failed: int
    started_at: str
    finished_at: str
    awaits: bool
    """It waits for somebody's approval."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCard:
    """The rollout under way, or the last one."""

    revision: str
    step: str
    active: bool
    started_at: str
    finished_at: str
    reason: str
    message: str
    waves: tuple[WaveCard, ...]


Cell = tuple[str, int, int, int, int]
"""Node, index of its state in `states`, of its revision in `revisions`, of its wave, of its problem in
`problems`; -1 for none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteCells:
    """Nodes of one site by name."""

    name: str
    """Empty: the nodes that name no site."""
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Every node of a deployment."""

    states: tuple[str, ...]
    revisions: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    """Reason and message; nodes share them."""
    sites: tuple[SiteCells, ...]


Mark = tuple[float, float | None, float | None, float | None, str]
"""Seconds since the epoch, canary, stable, the bound that follows from stable, verdict."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One metric of one variant over time."""

    metric: str
    variant: str
    preset: str
    unit: str
    """share, s, tokens/s, per node, or nothing."""
    higher_is_better: bool
    maximum: float | None
    minimum: float | None
    degradation: str
    """How much worse than stable it may be, as written in the spec."""
    verdict: str
    message: str
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConditionRow:
    """A condition."""

    type: str
    status: str
    reason: str
    message: str
    since: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that the operator did or found."""

    at: str
    warning: bool
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """`/api/deployments/NAMESPACE/NAME`."""

    row: Row
    leads: bool
    nodes_known: bool
    mode: str
    stable: str
    update: str
    canary: str
    rollout: RolloutCard | None
    grid: Grid
    plots: tuple[Plot, ...]
    conditions: tuple[ConditionRow, ...]
    events: tuple[EventRow, ...]


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


_DOCUMENTS: Final[tuple[Any, ...]] = (
    Overview, Counters, Row, Site, ModelRow, ModelVariantRow, Detail, RolloutCard, WaveCard, Grid, SiteCells,
    Plot, ConditionRow, EventRow,
)  # fmt: skip
_KEYS: Final = {
    kind: tuple((field.name, to_camel(field.name)) for field in dataclasses.fields(kind))
    for kind in _DOCUMENTS
}


def _encode(value: Any) -> dict[str, Any]:
    return {key: getattr(value, name) for name, key in _KEYS[type(value)]}


def encode(document: Overview | Detail) -> bytes:
    """The document as ASCII JSON."""
    return json.dumps(document, default=_encode, separators=(",", ":"), allow_nan=False).encode()
