# SPDX-License-Identifier: Apache-2.0
"""An SLMDeployment as it comes from the API server, parsed; a spec that does not parse is a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from slmops.adapters.reflector import version_of
from slmops.adapters.trim import seconds_of
from slmops.api import API_VERSION, FINALIZER, SLMDeploymentSpec, SLMDeploymentStatus
from slmops.model.observed import Deployment


class DeploymentKey(NamedTuple):
    """Identity of an SLMDeployment by name."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDeployment:
    """The latest known state of one SLMDeployment."""

    deployment: Deployment
    resource_version: str
    finalizers: tuple[str, ...]
    status_error: str = ""
    """Why the stored status cannot be read; nothing is planned then, so that nothing is forgotten."""

    @property
    def version(self) -> int:
        """resourceVersion as a number that grows."""
        return int(self.resource_version) if self.resource_version.isdigit() else 0


def parse_deployment(body: Mapping[str, Any], previous: StoredDeployment | None = None) -> StoredDeployment:
    """Parse a body; what `previous` holds for the same uid and generation is not parsed again."""
    metadata = body["metadata"]
    uid, generation = str(metadata["uid"]), int(metadata.get("generation") or 0)
    known = previous.deployment if previous else None
    if known is not None and (known.uid, known.generation) == (uid, generation):
        spec, spec_error = known.spec, known.spec_error
    else:
        spec, spec_error = _parse_spec(body.get("spec"))
    try:
        status, status_error = SLMDeploymentStatus.model_validate(body.get("status") or {}), ""
    except ValidationError as error:
        status, status_error = (
            SLMDeploymentStatus(),
            f"status does not parse: {first_problem(error, 'status')}",
        )
    deleted = metadata.get("deletionTimestamp")
    finalizers = tuple(metadata.get("finalizers") or ())
    return StoredDeployment(
        deployment=Deployment(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=uid,
            generation=generation,
            spec=spec,
            status=status,
            spec_error=spec_error,
            annotations=dict(metadata.get("annotations") or {}),
            deleting_since=seconds_of(deleted) if deleted else None,
            has_finalizer=FINALIZER in finalizers,
        ),
        resource_version=str(metadata.get("resourceVersion", "")),
        finalizers=finalizers,
        status_error=status_error,
    )


def key_of_body(body: Mapping[str, Any]) -> DeploymentKey:
    """Key of an SLMDeployment's body."""
    return DeploymentKey(body["metadata"].get("namespace", ""), body["metadata"]["name"])


def owner_reference(kind: str, name: str, uid: str) -> dict[str, Any]:
    """On an object that goes with its owner, which is of a kind of ours."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        # Blocking would need a right on finalizers and help nobody: our own finalizer waits.
        "blockOwnerDeletion": False,
    }


def is_newer(body: Mapping[str, Any], known: StoredDeployment | None) -> bool:
    """Whether `body` is news: unknown, another object of that name, or a later version."""
    return (
        known is None
        or known.deployment.uid != body["metadata"].get("uid")
        or version_of(body) > known.version
    )


def _parse_spec(body: Any) -> tuple[SLMDeploymentSpec | None, str]:
    try:
        return SLMDeploymentSpec.model_validate(body if body is not None else {}), ""
    except ValidationError as error:
        return None, first_problem(error, "spec")


def first_problem(error: ValidationError, root: str) -> str:
    """`spec.variants[0].source: message`, of the first of the errors."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    path = root
    for part in problems[0]["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}: {problems[0]['msg']}{more}"
