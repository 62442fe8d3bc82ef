# SPDX-License-Identifier: Apache-2.0
"""What `-o json` and `-o yaml` print: structures that docs/cli.md promises.

Every key is always there, null where nothing is known; times are RFC 3339; new keys may be added, none is
renamed or removed within `cli.slmops.dev/v1`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from slmcli.observe import NodeReport
from slmcli.output import DOCUMENT_VERSION
from slmcli.revisions import StoredRevision
from slmcli.standing import Standing
from slmcli.stores import Stored, StoreReport
from slmcli.view import DeploymentView, EventView
from slmops.api.base import ApiModel
from slmops.planning.fit import FitTable
from slmops.planning.needs import Need

Document = dict[str, Any]


def _head(kind: str) -> Document:
    return {"apiVersion": DOCUMENT_VERSION, "kind": kind}


def _identity(view: DeploymentView) -> Document:
    return {"namespace": view.namespace, "name": view.name}


def _whole(model: ApiModel | None) -> Document | None:
    return None if model is None else model.model_dump(mode="json", by_alias=True)


def _all(models: Iterable[ApiModel]) -> list[Any]:
    return [_whole(model) for model in models]


def _summary(view: DeploymentView) -> Document:
    status = view.status
    return _identity(view) | {
        "createdAt": view.created_at,
        "generation": view.generation,
        "observedGeneration": status.observed_generation if status is not None else None,
        "deleting": view.deleting,
        "pausedBy": view.paused or None,
        "model": view.spec.model.name if view.spec is not None else None,
        "specVersion": view.spec.model.version if view.spec is not None else None,
        "stableVersion": (status.model_version or None) if status is not None else None,
        "stableRevision": (status.stable_revision or None) if status is not None else None,
        "updateRevision": (status.update_revision or None) if status is not None else None,
        "nodes": _whole(status.nodes) if status is not None else None,
        "conditions": _all(status.conditions) if status is not None else [],
    }


def status_document(view: DeploymentView, events: Sequence[EventView]) -> Document:
    """`status`."""
    status = view.status
    return (
        _head("DeploymentStatus")
        | _summary(view)
        | {
            "pinned": _whole(status.pinned) if status is not None else None,
            "rollout": _whole(status.rollout) if status is not None else None,
            "variants": _all(status.variants) if status is not None else [],
            "worstNodes": _all(status.worst_nodes) if status is not None else [],
            "reasons": _all(status.reasons) if status is not None else [],
            "failedRevisions": _all(status.failed_revisions) if status is not None else [],
            "operations": _all(status.operations) if status is not None else [],
            "adaptation": _whole(status.adaptation) if status is not None else None,
            "events": [
                {"at": e.at, "type": e.kind, "reason": e.reason, "message": e.message, "count": e.count}
                for e in events
            ],
            "notes": list(view.notes),
        }
    )


def list_document(views: Iterable[DeploymentView]) -> Document:
    """`list`."""
    items = [
        _summary(view) | {"step": view.rollout.step if view.rollout is not None else None} for view in views
    ]
    return _head("DeploymentList") | {"items": items}


def history_document(view: DeploymentView, revisions: Iterable[StoredRevision]) -> Document:
    """`history`."""
    items = [
        {
            "number": r.number,
            "revision": r.revision,
            "modelVersion": r.model_version,
            "states": list(r.states),
            "createdAt": r.created_at,
            "variants": [
                {
                    "name": v.name,
                    "digest": v.digest or None,
                    "sizeBytes": v.size_bytes,
                    "reference": v.reference,
                }
                for v in r.variants
            ],
        }
        for r in revisions
    ]
    return _head("RevisionList") | _identity(view) | {"items": items}


def nodes_document(view: DeploymentView, reports: Iterable[NodeReport]) -> Document:
    """`nodes`."""
    items = [
        {
            "node": r.node,
            "site": r.site or None,
            "state": r.state,
            "online": r.online,
            "given": [{"revision": revision, "variant": variant} for revision, variant in r.given],
            "fetching": [{"revision": revision, "variant": variant} for revision, variant in r.fetching],
            "serving": list(r.serving),
            "restarts": r.restarts,
            "problem": None
            if r.problem is None
            else {"reason": r.problem.reason, "message": r.problem.message},
        }
        for r in reports
    ]
    return _head("NodeList") | _identity(view) | {"items": items}


def fit_document(name: str, table: FitTable) -> Document:
    """`fit`."""
    items = [
        {
            "node": row.node,
            "profile": row.profile or None,
            "override": row.override or None,
            "variant": row.chosen.name if row.chosen is not None else None,
            "allocatableBytes": row.allocatable_bytes or None,
            "capacityBytes": row.capacity_bytes or None,
            "diskBudgetBytes": row.disk_bytes,
            "candidates": [
                {
                    "variant": judged.candidate.name,
                    "verdict": judged.verdict,
                    "sizeBytes": judged.candidate.size_bytes or None,
                    "need": _need(judged.candidate.need),
                }
                for judged in row.candidates
            ],
            "problem": row.problem or None,
        }
        for row in table.rows
    ]
    return _head("FitTable") | {
        "name": name or None,
        "fitsAnywhere": table.fits_anywhere,
        "idleOverrides": list(table.idle_overrides),
        "items": items,
    }


def _need(need: Need | None) -> Document | None:
    if need is None:
        return None
    return {
        "totalBytes": need.total_bytes,
        "weightsBytes": need.weights_bytes or None,
        "cacheBytes": need.cache_bytes,
        "overheadBytes": need.overhead_bytes or None,
        "requestBytes": need.given_bytes,
    }


def cache_document(reports: Iterable[StoreReport], owner: tuple[str, str] | None) -> Document:
    """`cache`; `owner` is the SLMDeployment that it is about, if any."""
    namespace, name = owner or (None, None)
    items = [
        {
            "node": r.node,
            "site": r.site or None,
            "agent": r.agent or None,
            "store": None if r.stored is None else _store(r.stored),
            "problem": None
            if r.problem is None
            else {"reason": r.problem.reason, "message": r.problem.message},
        }
        for r in reports
    ]
    return _head("CacheList") | {"namespace": namespace, "name": name, "items": items}


def _store(stored: Stored) -> Document:
    return {
        "bytes": stored.held_bytes,
        "freeBytes": stored.free_bytes,
        "fileSystemBytes": stored.file_system_bytes,
        "reclaimableBytes": stored.reclaimable_bytes,
        "partialBytes": stored.partial_bytes,
        "quarantined": stored.quarantined,
        "problems": list(stored.problems),
        "pins": [
            {
                "namespace": pin.namespace,
                "deployment": pin.deployment,
                "revision": pin.revision,
                "bytes": pin.size_bytes,
                "complete": pin.complete,
                "inUse": pin.in_use,
            }
            for pin in stored.pins
        ],
        "fetches": [
            {
                "namespace": fetch.namespace,
                "deployment": fetch.deployment,
                "revision": fetch.revision,
                "bytes": fetch.done_bytes,
                "total": fetch.total_bytes,
                "bytesPerSecond": fetch.bytes_per_second,
                "secondsLeft": fetch.seconds_left,
                "from": fetch.origin or None,
            }
            for fetch in stored.fetches
        ],
    }


def explain_document(view: DeploymentView, standing: Standing) -> Document:
    """`explain`."""
    return (
        _head("Explanation")
        | _identity(view)
        | {
            "summary": standing.summary,
            "because": list(standing.because),
            "waitsFor": list(standing.waits_for),
            "next": list(standing.next),
            "measurements": _all(m.latest for m in standing.measurements if m.latest is not None),
            "decisions": [{"at": d.at, "text": d.text} for d in standing.decisions],
            "actions": [{"command": a.command, "effect": a.effect} for a in standing.actions],
        }
    )
