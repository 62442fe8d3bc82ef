# SPDX-License-Identifier: Apache-2.0
"""Findings name the field and the cure."""

from typing import Any

import pytest

from slmops.api import SLMDeploymentSpec, SLMDeploymentStatus
from slmops.model.config import OperatorConfig
from slmops.model.observed import Deployment
from slmops.planning.finding import Finding
from slmops.planning.validate import validate
from slmops.planning.validate_rollout import find_rollout_problem
from tests.unit.planning.fleet_spec import merged, spec_body

CONFIG = OperatorConfig(
    runtime_image="r", allowed_host_paths=("/var/lib/slmops",), allowed_file_paths=("/models",)
)
FILE = {"path": "model.onnx", "sha256": "a" * 64, "size": 5}


def findings(changes: dict[str, Any], *, name: str = "orders") -> Finding | None:
    deployment = Deployment(
        name=name,
        namespace="shop",
        uid="u",
        generation=1,
        spec=SLMDeploymentSpec.model_validate(merged(spec_body(), changes)),
        status=SLMDeploymentStatus(),
    )
    assert deployment.spec is not None
    return validate(deployment, CONFIG) or find_rollout_problem(deployment.spec)


def variant(**changes: Any) -> dict[str, Any]:
    return {"variants": [merged(spec_body()["variants"][0], changes)]}


def waves(*waves: dict[str, Any]) -> dict[str, Any]:
    return {"rollout": {"waves": list(waves)}}


def windows(**fields: str) -> dict[str, Any]:
    return {"rollout": {"windows": [{"startTime": "22:00", "endTime": "05:00", **fields}]}}


def limits(**fields: Any) -> dict[str, Any]:
    return {"distribution": fields}


def service(*, keys: str = "", tls: str = "") -> dict[str, Any]:
    auth = {"auth": {"apiKeysSecretRef": {"name": keys}}} if keys else {}
    return {"service": auth | ({"tls": {"secretRef": {"name": tls}}} if tls else {})}


REST = {"name": "all", "percent": 100}
LAB = {"name": "lab", "nodeSelector": {"matchLabels": {"site": "lab"}}}


def test_a_sensible_spec_has_no_finding() -> None:
    assert findings({}) is None
    assert findings(waves(LAB, {"name": "half", "percent": 50}, {"name": "rest", "percent": 100})) is None
    grow = {"name": "grow", "exponential": {"startPercent": 5}}
    assert findings(waves({"name": "one", "count": 1}, LAB, grow)) is None
    own = {"http": {"secretRef": {"name": "hub"}}}
    assert findings(service(keys="orders-keys", tls="orders-tls") | variant(source=own)) is None
    assert findings(windows(timeZone="Europe/Berlin")) is None
    assert findings({"placement": {"tolerations": [{"key": "gpu", "value": "yes"}]}}) is None
    assert findings(variant(source={"http": None, "file": {"path": "/models/a", "files": [FILE]}})) is None
    assert findings({"cache": {"hostPath": "/var/lib/slmops/a", "highWatermarkPercent": 80}}) is None
    assert findings(limits(rateLimit="1Ki", siteRateLimit="1M", maxConcurrentPerSite=3)) is None
    assert findings(limits(rateLimit="1M") | {"placement": {"mode": "Replicas"}}) is None


@pytest.mark.parametrize(
    ("changes", "reason", "field", "cure"),
    [
        (
            service(keys="orders", tls="orders"),
            "InvalidSpec",
            "spec.service.auth.apiKeysSecretRef",
            "a Secret of their own",
        ),
        (
            service(keys="hub") | variant(source={"http": {"secretRef": {"name": "hub"}}}),
            "InvalidSpec",
            "spec.service.auth.apiKeysSecretRef",
            "spec.variants[0].source",
        ),
        (
            service(tls="hub") | variant(source={"http": {"secretRef": {"name": "hub"}}}),
            "InvalidSpec",
            "spec.service.tls.secretRef",
            "use a Secret of its own",
        ),
        (waves({"name": "half", "percent": 50}), "InvalidWaves", "spec.rollout.waves", "percent: 100"),
        (waves(LAB), "InvalidWaves", "spec.rollout.waves", "percent: 100"),
        (
            waves({"name": "a", "percent": 50}, LAB, {"name": "b", "percent": 100}),
            "InvalidWaves",
            "spec.rollout.waves[1]",
            "come before",
        ),
        (
            waves({"name": "a", "percent": 50}, {"name": "b", "percent": 50}),
            "InvalidWaves",
            "spec.rollout.waves[1].percent",
            "must grow",
        ),
        (
            {"cache": {"hostPath": "/etc"}},
            "HostPathNotAllowed",
            "spec.cache.hostPath",
            "/var/lib/slmops",
        ),
        (
            {"cache": {"hostPath": "/var/lib/slmops/../../../etc"}},
            "HostPathNotAllowed",
            "spec.cache.hostPath",
            "allowedHostPaths",
        ),
        (
            {"cache": {"hostPath": "/var/lib/slmops-else"}},
            "HostPathNotAllowed",
            "spec.cache.hostPath",
            "allowedHostPaths",
        ),
        (
            variant(source={"http": None, "file": {"path": "/etc", "files": [FILE]}}),
            "FilePathNotAllowed",
            "spec.variants[0].source.file.path",
            "allowedFilePaths",
        ),
        (
            variant(source={"http": None, "file": {"path": "/models", "files": [{**FILE, "size": None}]}}),
            "InvalidSpec",
            "spec.variants[0].source.file.files",
            "size",
        ),
        (variant(source={"http": None}), "InvalidSpec", "spec.variants[0].source", "exactly one of"),
        (
            variant(source={"hf": {"repo": "a/b"}}),
            "InvalidSpec",
            "spec.variants[0].source",
            "exactly one of",
        ),
        (
            variant(resources={"limits": {"memory": "512Mi"}}),
            "InvalidSpec",
            "spec.variants[0].resources",
            "memory request 1Gi is above its limit 512Mi",
        ),
        (
            variant(resources={"limits": {"cpu": "500m"}}),
            "InvalidSpec",
            "spec.variants[0].resources",
            "cpu request 1 is above its limit 500m",
        ),
        (
            {"placement": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            "InvalidSpec",
            "spec.placement.tolerations[0].value",
            "leave it out",
        ),
        (
            {"placement": {"tolerations": [{"key": "ok"}, {"value": "b"}]}},
            "InvalidSpec",
            "spec.placement.tolerations[1].key",
            "operator: Exists",
        ),
        (
            {"rollout": {"analysis": {"interval": "10ms"}}},
            "InvalidSpec",
            "spec.rollout.analysis.interval",
            "at least 1s",
        ),
        (
            {"rollout": {"soak": "1h", "progressDeadline": "30m"}},
            "InvalidSpec",
            "spec.rollout.progressDeadline",
            "make it longer",
        ),
        (
            waves({"name": "a", "percent": 5, "soak": "2h"}, REST),
            "InvalidSpec",
            "spec.rollout.progressDeadline",
            "waves[0]",
        ),
        (waves({**LAB, "percent": 2}, REST), "InvalidWaves", "spec.rollout.waves[0]", "exactly"),
        (
            waves({"name": "a", "exponential": {}}, REST),
            "InvalidWaves",
            "spec.rollout.waves[0].exponential",
            "last wave",
        ),
        (waves({"name": "all", "count": 1}, REST), "InvalidWaves", "spec.rollout.waves", "name of its own"),
        (waves({**REST, "maxPerSite": 1}), "InvalidWaves", "spec.rollout.waves", "leave its maxPerSite out"),
        (windows(timeZone="Europe/Atlantis"), "InvalidWindow", "spec.rollout.windows[0].timeZone", "Berlin"),
        (windows(endTime="22:00"), "InvalidWindow", "spec.rollout.windows[0]", "never opens"),
        (
            limits(windows=[{"startTime": "22:00", "endTime": "05:00", "timeZone": "No/Where"}]),
            "InvalidWindow",
            "spec.distribution.windows[0].timeZone",
            "Berlin",
        ),
        (limits(rateLimit="1m"), "InvalidSpec", "spec.distribution.rateLimit", "for example 2M"),
        (
            limits(siteRateLimit="1M"),
            "InvalidSpec",
            "spec.distribution.siteRateLimit",
            "set maxConcurrentPerSite",
        ),
        (
            limits(siteRateLimit="10Ki", maxConcurrentPerSite=11),
            "InvalidSpec",
            "spec.distribution.siteRateLimit",
            "let fewer nodes",
        ),
        (
            limits(maxConcurrentPerSite=1) | {"placement": {"mode": "Replicas"}},
            "InvalidSpec",
            "spec.distribution",
            "rollout.windows",
        ),
    ],
)
def test_findings_name_field_and_cure(changes: dict[str, Any], reason: str, field: str, cure: str) -> None:
    found = findings(changes)
    assert found is not None and found.reason == reason
    assert found.message.startswith(f"{field}:") and cure in found.message


@pytest.mark.parametrize(
    ("name", "cure"), [("x" * 41, "at most 40"), ("a.b", "no dot"), ("7b-chat", "begin it with a letter")]
)
def test_names(name: str, cure: str) -> None:
    found = findings({}, name=name)
    assert found is not None and found.reason == "InvalidName" and cure in found.message
    assert findings({}, name="x" * 40) is None


def test_spec_that_does_not_parse() -> None:
    deployment = Deployment(
        name="orders",
        namespace="shop",
        uid="u",
        generation=1,
        spec=None,
        spec_error="spec.variants: missing",
        status=SLMDeploymentStatus(),
    )
    assert validate(deployment, CONFIG) == Finding(reason="InvalidSpec", message="spec.variants: missing")
