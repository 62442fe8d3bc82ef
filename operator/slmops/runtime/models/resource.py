# SPDX-License-Identifier: Apache-2.0
"""An SLMModel as it comes from the API server, parsed; a spec that does not parse is a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from slmops.adapters.reflector import version_of
from slmops.api import SLMModelSpec, SLMModelStatus
from slmops.model.slmmodel import ModelObject
from slmops.runtime.resource import first_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """The latest known state of one SLMModel."""

    model: ModelObject
    resource_version: str
    status_error: str = ""
    """Why the stored status cannot be read; nothing is planned then, so that nothing is forgotten."""

    @property
    def version(self) -> int:
        """resourceVersion as a number that grows."""
        return int(self.resource_version) if self.resource_version.isdigit() else 0


def parse_model(body: Mapping[str, Any]) -> StoredModel:
    """Parse a body."""
    metadata = body["metadata"]
    spec: SLMModelSpec | None = None
    spec_error = status_error = ""
    try:
        spec = SLMModelSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        spec_error = first_problem(error, "spec")
    try:
        status = SLMModelStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        status, status_error = SLMModelStatus(), f"status does not parse: {first_problem(error, 'status')}"
    return StoredModel(
        model=ModelObject(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            uid=str(metadata["uid"]),
            generation=int(metadata.get("generation") or 0),
            spec=spec,
            status=status,
            spec_error=spec_error,
            annotations=dict(metadata.get("annotations") or {}),
            deleting="deletionTimestamp" in metadata,
        ),
        resource_version=str(metadata.get("resourceVersion", "")),
        status_error=status_error,
    )


def is_newer(body: Mapping[str, Any], known: StoredModel | None) -> bool:
    """Whether `body` is news: unknown, another object of that name, or a later version."""
    return known is None or known.model.uid != body["metadata"].get("uid") or version_of(body) > known.version
