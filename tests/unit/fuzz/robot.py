# SPDX-License-Identifier: Apache-2.0
"""An operator without a cluster: it reads bodies as the API server sends them, plans, and does what the plan
says in memory. What it writes must be what the API server takes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jsonschema import Draft202012Validator

from slmops.adapters.trim import trim_node, trim_owned, trim_pod, trim_profile
from slmops.api import FINALIZER
from slmops.model.config import OperatorConfig
from slmops.model.observed import (
    Observed,
    OwnedKind,
    OwnedView,
    Resolved,
    ResolveFailure,
    RevisionView,
    SignatureCheck,
)
from slmops.model.plan import (
    AddFinalizer,
    ApplyObject,
    DeleteObject,
    PatchNodeLabels,
    Plan,
    RemoveFinalizer,
    ResolveRequest,
)
from slmops.planning.nodes import NodeMemory
from slmops.planning.plan import plan
from slmops.runtime.decisions import describe_decision
from slmops.runtime.resource import parse_deployment
from slmwire import labels
from slmwire.reasons import Reason
from tests.unit.fuzz.bodies import schema_of
from tests.unit.fuzz.grammar import Body
from tests.unit.planning.fleet_spec import manifest_of

EPOCH: Final = 1_750_000_000.0
CONFIG: Final = OperatorConfig(runtime_image="runtime:test", allowed_file_paths=("/models",))
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


@dataclass
class Robot:
    """`spec` and `status` are as the API server holds them."""

    spec: Any
    status: Any = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Body] = field(default_factory=dict)
    profiles: Sequence[Body] = ()
    fails: bool = False
    """Sources answer with an error."""
    now: float = EPOCH
    finalizers: list[str] = field(default_factory=list)
    deleting: bool = False
    objects: dict[tuple[OwnedKind, str], Body] = field(default_factory=dict)
    pods: list[Body] = field(default_factory=list)
    resolutions: dict[str, Resolved | ResolveFailure] = field(default_factory=dict)
    memory: NodeMemory = field(default_factory=NodeMemory)

    def body(self) -> Body:
        """The SLMDeployment."""
        metadata: Body = {
            "name": "orders", "namespace": "shop", "uid": "u-1", "generation": 3, "resourceVersion": "7",
            "annotations": self.annotations, "finalizers": self.finalizers,
        }  # fmt: skip
        if self.deleting:
            metadata["deletionTimestamp"] = "2025-06-15T12:00:00Z"
        return {"metadata": metadata, "spec": self.spec, "status": self.status}

    def look(self) -> Plan | None:
        """One look; None where the status cannot be read, which the worker tells of and does nothing."""
        stored = parse_deployment(self.body())
        if stored.status_error and not self.deleting:
            assert "status." in stored.status_error or "status:" in stored.status_error
            return None
        owned = [trim_owned(kind, body) for (kind, _), body in sorted(self.objects.items())]
        profiles = [trim_profile(body) for body in self.profiles]
        observed = Observed(
            deployment=stored.deployment,
            config=CONFIG,
            nodes=tuple(trim_node(body) for body in self.nodes.values()),
            pods=tuple(trim_pod(body).view for body in self.pods),
            owned=tuple(
                OwnedView(kind=meta.kind, name=meta.name, replicas=meta.replicas, content=meta.content)
                for meta in owned
            ),
            revisions=tuple(
                RevisionView(
                    revision=meta.labels.get(labels.REVISION, ""), number=meta.number, data=meta.data or {}
                )
                for meta in owned
                if meta.kind is OwnedKind.CONTROLLER_REVISION
            ),
            resolutions=dict(self.resolutions),
            profiles=tuple(profile for profile in profiles if profile is not None),
        )
        outcome = plan(observed, self.now, memory=self.memory)
        describe_decision(observed, outcome, self.now)
        assert outcome == plan(observed, self.now), "equal arguments, equal plan"
        self._check(outcome, spec_error=stored.deployment.spec_error)
        self._carry_out(outcome)
        return outcome

    def _check(self, outcome: Plan, *, spec_error: str) -> None:
        status = outcome.status.to_body()
        assert_stored(status, "SLMDeployment")
        if outcome.requeue_after_seconds is not None:
            assert 0 <= outcome.requeue_after_seconds < float("inf")
        if AddFinalizer() in outcome.actions or self.deleting:
            return
        [accepted] = [c for c in status["conditions"] if c["type"] == "Accepted"]
        assert accepted["status"] == "True" or accepted["message"]
        if spec_error:
            assert accepted["status"] == "False" and accepted["reason"] == "InvalidSpec"
            assert "spec" in accepted["message"]
            assert not outcome.actions, "nothing is touched"

    def _carry_out(self, outcome: Plan) -> None:
        self.status = json.loads(json.dumps(outcome.status.to_body()))
        for action in outcome.actions:
            match action:
                case AddFinalizer():
                    self.finalizers = [FINALIZER]
                case RemoveFinalizer():
                    self.finalizers = []
                case ApplyObject(kind=kind, name=name, body=body):
                    self.objects[kind, name] = accept_object(kind, name, body)
                case DeleteObject(kind=kind, name=name):
                    self.objects.pop((kind, name), None)
                case PatchNodeLabels(node=node, labels=changes):
                    assert all("slmops.dev/" in key for key in changes), "the admission policy"
                    tags = self.nodes[node]["metadata"].setdefault("labels", {})
                    check_labels({k: v for k, v in changes.items() if v is not None})
                    tags |= {k: v for k, v in changes.items() if v is not None}
                    for key in [k for k, v in changes.items() if v is None]:
                        tags.pop(key, None)
        for request in outcome.resolve:
            self.resolutions[request.source_hash] = self._answer(request)

    def _answer(self, request: ResolveRequest) -> Resolved | ResolveFailure:
        if self.fails:
            return ResolveFailure(
                reason=Reason.SOURCE_UNAVAILABLE, message="no \u202e", retry_at=self.now + 5
            )
        signature = SignatureCheck(text="signed", key="k") if request.signature is not None else None
        url = request.source.http.url if request.source.http else request.source_hash
        return Resolved(manifest=manifest_of(url), reference=url, signature=signature)


def accept_object(kind: OwnedKind, name: str, body: Mapping[str, Any]) -> Body:
    """As the API server stores it; AssertionError for what it would not take on sight."""
    new: Body = json.loads(json.dumps(body, allow_nan=False))
    metadata = new["metadata"]
    assert metadata["name"] == name and _NAME.fullmatch(name) and len(name) <= 253
    assert len(json.dumps(new)) < 1_000_000
    check_labels(metadata.get("labels") or {})
    metadata |= {"uid": f"u-{kind}-{name}", "namespace": "shop", "generation": 1}
    for number in numbers_in(new):
        assert -(2**63) <= number < 2**63
    return new


def check_labels(tags: Mapping[str, str | None]) -> None:
    """Label keys and values in the form that the API server wants."""
    for key, value in tags.items():
        prefix, slash, short = key.rpartition("/")
        assert not slash or (_NAME.fullmatch(prefix) and len(prefix) <= 253), key
        assert _LABEL_NAME.fullmatch(short) and len(short) <= 63, key
        assert value == "" or (value is not None and _LABEL_NAME.fullmatch(value) and len(value) <= 63), value


def assert_stored(status: Body, kind: str) -> None:
    """The API server would take this status."""
    text = json.dumps(status, allow_nan=False)
    text.encode()
    assert len(text) < 500_000
    assert all(-(2**63) <= number < 2**63 for number in numbers_in(status))
    problems = [
        f"{error.json_path}: {error.message}"[:300]
        for error in _validator(kind).iter_errors(json.loads(text))
    ]
    assert problems == []


def _validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(schema_of(kind)["properties"]["status"])


def numbers_in(value: Any) -> Iterator[int | float]:
    """All numbers inside."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from numbers_in(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from numbers_in(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
