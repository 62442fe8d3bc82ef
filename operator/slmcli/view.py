# SPDX-License-Identifier: Apache-2.0
"""What is read from the cluster, parsed and cleaned once, before anything is decided or shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from slmcli.safe import clean, clean_tree
from slmcli.times import seconds_of
from slmops.api import PAUSED_ANNOTATION, SLMDeploymentSpec, SLMDeploymentStatus
from slmops.api.status import Condition, ConditionType, RolloutStatus, WaveStatus

Body = Mapping[str, Any]

WAVE_STEPS: Final = ("Prefetching", "Flipping", "Soaking", "Analysing")
"""Steps of a wave, in order."""
_FINISHED: Final = frozenset({"Completed", "Failed", "Cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentView:
    """An SLMDeployment. `spec` is None when this version does not understand it, `status` before the
    operator has written one; `notes` says what was left out."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created_at: str | None
    deleting: bool
    annotations: Mapping[str, str]
    spec: SLMDeploymentSpec | None
    status: SLMDeploymentStatus | None
    notes: tuple[str, ...] = ()

    @property
    def paused(self) -> str:
        """What pauses it: `annotation`, `spec` or nothing."""
        if self.annotations.get(PAUSED_ANNOTATION) == "true":
            return "annotation"
        return "spec" if self.spec is not None and self.spec.rollout.paused else ""

    @property
    def rollout(self) -> RolloutStatus | None:
        """The rollout in progress or the last one."""
        return self.status.rollout if self.status is not None else None

    @property
    def running(self) -> RolloutStatus | None:
        """The rollout, while it is not finished."""
        rollout = self.rollout
        return None if rollout is None or rollout.step in _FINISHED else rollout

    @property
    def wave(self) -> WaveStatus | None:
        """The wave that the rollout is at."""
        rollout = self.rollout
        if rollout is None or rollout.wave >= len(rollout.waves):
            return None
        return rollout.waves[rollout.wave]

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if there is one."""
        conditions = self.status.conditions if self.status is not None else ()
        return next((c for c in conditions if c.type == kind), None)

    @property
    def up_to_date(self) -> bool:
        """The operator has seen the latest spec."""
        return self.status is not None and self.status.observed_generation >= self.generation


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """An Event about an SLMDeployment."""

    at: str
    kind: str
    """Normal or Warning."""
    reason: str
    message: str
    count: int


def read_deployment(body: Body) -> DeploymentView:
    """Parse an SLMDeployment; what a newer operator wrote and is not understood is left out and noted."""
    body = clean_tree(body)
    metadata = body.get("metadata") or {}
    notes: list[str] = []
    spec: SLMDeploymentSpec | None = None
    try:
        spec = SLMDeploymentSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        notes.append(f"spec is not understood ({_first(error)}); a newer kubectl-slm may know it")
    status = _read_status(dict(body.get("status") or {}), notes)
    return DeploymentView(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        generation=int(metadata.get("generation") or 0),
        resource_version=str(metadata.get("resourceVersion", "")),
        created_at=metadata.get("creationTimestamp"),
        deleting="deletionTimestamp" in metadata,
        annotations={str(k): str(v) for k, v in (metadata.get("annotations") or {}).items()},
        spec=spec,
        status=status,
        notes=tuple(notes),
    )


def _read_status(status: dict[str, Any], notes: list[str]) -> SLMDeploymentStatus | None:
    while status:
        try:
            return SLMDeploymentStatus.model_validate(status)
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            notes.append(f"status.{field} is not understood; a newer kubectl-slm may know it")
            if status.pop(field, None) is None:
                return None
    return None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return clean(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}")


def read_events(bodies: Iterable[Body]) -> tuple[EventView, ...]:
    """Core Events, the oldest first."""
    return tuple(sorted((_read_event(clean_tree(body)) for body in bodies), key=lambda event: event.at))


def _read_event(body: Body) -> EventView:
    series = body.get("series") or {}
    at = (
        series.get("lastObservedTime")
        or body.get("lastTimestamp")
        or body.get("eventTime")
        or (body.get("metadata") or {}).get("creationTimestamp")
    )
    seconds = seconds_of(at)
    return EventView(
        at=str(at or "") if seconds is not None else "",
        kind=str(body.get("type") or ""),
        reason=str(body.get("reason") or ""),
        message=str(body.get("message") or ""),
        count=int(series.get("count") or body.get("count") or 1),
    )
