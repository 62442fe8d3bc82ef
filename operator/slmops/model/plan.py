# SPDX-License-Identifier: Apache-2.0
"""What is to be done: made by the planner, carried out by the executor in this order:
status, then actions in sequence, then events. Every action is idempotent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slmops.api import SLMDeploymentStatus
from slmops.api.spec import Signature, Source
from slmops.model.jobs import CreateJob, DeleteJob
from slmops.model.observed import MetricQuery, OwnedKind, ProviderSettings, Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyObject:
    """Server-side apply of an owned object; `body` is complete but for the owner reference."""

    kind: OwnedKind
    name: str
    body: Mapping[str, Any]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteObject:
    """Delete an owned object with its dependants; one that is gone already is fine."""

    kind: OwnedKind
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchNodeLabels:
    """Merge patch of a node's labels; None removes a label. A node that is gone is fine."""

    node: str
    labels: Mapping[str, str | None]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddFinalizer:
    """Put our finalizer on the SLMDeployment, before anything else is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFinalizer:
    """Take our finalizer off; after a live read has confirmed the deletion."""


Action = ApplyObject | DeleteObject | PatchNodeLabels | AddFinalizer | RemoveFinalizer | CreateJob | DeleteJob


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequest:
    """A source whose files are not known yet, or a signature that is not checked yet."""

    source_hash: str
    """Identity of the question: of the source as written and of what its signature is checked by."""
    variant: str
    source: Source
    signature: Signature | None = None
    known: Resolved | None = None
    """Files that were found out before; only their signature is to be checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """A measurement that is due: one query for the canary, one for the stable revision.

    A rule of spec.feedback is about one revision: it is asked about as the canary, and nothing is stable.
    """

    metric: str
    canary: MetricQuery
    stable: MetricQuery | None
    provider: ProviderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Something worth an Event and a log line: emitted once, when it happens."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The outcome of one look at the world."""

    status: SLMDeploymentStatus
    actions: tuple[Action, ...] = ()
    resolve: tuple[ResolveRequest, ...] = ()
    sources: frozenset[str] | None = None
    """Identities of all sources that are of interest; None leaves the outcomes as they are."""
    measure: tuple[MeasureRequest, ...] = ()
    transitions: tuple[Transition, ...] = ()
    requeue_after_seconds: float | None = None
    """When to look again even if nothing happens; None waits for an event."""
