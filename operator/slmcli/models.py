# SPDX-License-Identifier: Apache-2.0
"""SLMModels as they are read from the cluster, and the rows of their tables: one for each measurement."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from slmcli.output import DOCUMENT_VERSION
from slmcli.safe import clean_tree
from slmcli.view import Body
from slmops.api.slmmodel_status import ModelEvaluationStatus, ModelVariantStatus, SLMModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """An SLMModel; `status` is None before the operator has written one, or when it is not understood."""

    namespace: str
    name: str
    created_at: str | None
    status: SLMModelStatus | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One variant of one version on one device class, or the variant alone while nothing is measured."""

    model: str
    version: str
    accepted: bool
    variant: ModelVariantStatus
    evaluation: ModelEvaluationStatus | None

    @property
    def profile(self) -> str:
        """The device class; empty for any node."""
        return self.evaluation.profile if self.evaluation is not None else ""

    @property
    def verdict(self) -> str:
        """Pass, Fail or Error, else how far it has come."""
        entry = self.evaluation
        if entry is not None and entry.verdict:
            return entry.verdict
        return self.variant.verdict or " ".join(filter(None, (self.variant.step, self.variant.progress)))

    @property
    def reason(self) -> str:
        """Why it did not pass, or what it waits for."""
        entry = self.evaluation
        if entry is not None and entry.reason:
            return f"{entry.reason}: {entry.message}".rstrip(": ")
        if entry is not None and entry.verdict:
            return ""
        return f"{self.variant.reason}: {self.variant.message}".rstrip(": ")


def read_model(body: Body) -> ModelView:
    """Parse an SLMModel; a status that a newer operator wrote and is not understood is left out and noted."""
    body = clean_tree(body)
    metadata = body.get("metadata") or {}
    notes: tuple[str, ...] = ()
    status: SLMModelStatus | None = None
    try:
        status = SLMModelStatus.model_validate(body["status"]) if body.get("status") else None
    except ValidationError:
        notes = ("status is not understood; a newer kubectl-slm may know it",)
    return ModelView(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        created_at=metadata.get("creationTimestamp"),
        status=status,
        notes=notes,
    )


def rows_of(views: Iterable[ModelView]) -> list[ModelRow]:
    """Rows of all versions, the newest first."""
    return [row for view in views for row in _rows(view)]


def _rows(view: ModelView) -> Iterator[ModelRow]:
    for version in view.status.versions if view.status is not None else ():
        for variant in version.variants:
            for evaluation in variant.evaluations or (None,):
                yield ModelRow(
                    model=view.name,
                    version=version.version,
                    accepted=version.accepted,
                    variant=variant,
                    evaluation=evaluation,
                )


def models_document(views: Iterable[ModelView]) -> dict[str, Any]:
    """`models`, for -o json and -o yaml."""
    items = [
        {
            "namespace": view.namespace,
            "name": view.name,
            "createdAt": view.created_at,
            "latestVersion": (view.status.latest_version or None) if view.status else None,
            "acceptedVersion": (view.status.accepted_version or None) if view.status else None,
            "versions": _bodies(view.status.versions) if view.status else [],
            "conditions": _bodies(view.status.conditions) if view.status else [],
            "notes": list(view.notes),
        }
        for view in views
    ]
    return {"apiVersion": DOCUMENT_VERSION, "kind": "ModelList", "items": items}


def _bodies(models: Iterable[Any]) -> list[Any]:
    return [model.model_dump(mode="json", by_alias=True) for model in models]
