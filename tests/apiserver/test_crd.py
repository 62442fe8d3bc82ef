# SPDX-License-Identifier: Apache-2.0
"""The CRD on a real API server: taken as structural, defaults filled in, wrong specs refused by field."""

import json
from typing import Any

import pytest
import yaml

from e2e.rig import ControlPlane, RigError
from slmops.api import API_VERSION, GROUP, SLMDeploymentSpec
from slmops.api.kinds import KINDS
from slmops.api.profile import PROFILE_KIND, DeviceProfileSpec
from tests.apiserver.namespaces import create_namespaces
from tests.apiserver.specs import changed, deployment

pytestmark = pytest.mark.usefixtures("control_plane")


def dry_run(control_plane: ControlPlane, body: dict[str, Any]) -> dict[str, Any]:
    """The object as the API server would store it; RigError with its words when it refuses."""
    text = control_plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump(body)
    )
    stored: dict[str, Any] = yaml.safe_load(text)
    return stored


def test_the_crd_is_established_and_structural(control_plane: ControlPlane) -> None:
    for kind in KINDS:
        crd = control_plane.kubectl.get("crd", f"{kind.plural}.{GROUP}")
        conditions = {entry["type"]: entry["status"] for entry in crd["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_defaults_are_stored_and_equal_those_of_the_models(control_plane: ControlPlane) -> None:
    stored = dry_run(control_plane, deployment())["spec"]
    assert stored["rollout"]["soak"] == "60s"
    assert [(w["name"], w["percent"]) for w in stored["rollout"]["waves"]] == [("canary", 10), ("rest", 100)]
    assert [m["failureLimit"] for m in stored["rollout"]["analysis"]["metrics"]] == [2, 2]
    assert stored["cache"]["hostPath"] == "/var/lib/slmops"
    assert stored["variants"][0]["resources"]["requests"] == {"cpu": "100m"}, "the memory is computed"
    assert SLMDeploymentSpec.model_validate(stored) == SLMDeploymentSpec.model_validate(deployment()["spec"])


@pytest.mark.parametrize(
    "section", ["rollout", "rollout.analysis", "runtime", "service", "cache", "distribution", "evaluation"]
)
def test_an_empty_section_is_filled_with_its_defaults(control_plane: ControlPlane, section: str) -> None:
    stored = dry_run(control_plane, changed(deployment(), f"spec.{section}", {}))
    assert stored["spec"] == dry_run(control_plane, deployment())["spec"]


def test_replicas_are_refused_what_only_nodes_that_fetch_ahead_can_keep(control_plane: ControlPlane) -> None:
    replicas = changed(deployment(), "spec.placement.mode", "Replicas")
    dry_run(control_plane, changed(replicas, "spec.distribution", {"rateLimit": "2M", "windows": []}))
    with pytest.raises(RigError, match="nothing is fetched ahead"):
        dry_run(control_plane, changed(replicas, "spec.distribution.maxConcurrentPerSite", 2))


_PEM = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
_SIZED = {"path": "model.onnx", "sha256": "0" * 64, "size": 5}


@pytest.mark.parametrize(
    "source",
    [
        {"oci": {"image": "localhost/models/chat"}},
        {"oci": {"image": "registry.example:5000/models/chat:1.2@sha256:" + "0" * 64, "files": ["*.onnx"]}},
        {"oci": {"image": "registry.example/chat:1", "delivery": "ImageVolume", "path": "models/chat"}},
        {"s3": {"bucket": "models", "prefix": "chat/1.2/"}},
        {"s3": {"bucket": "models", "manifest": "slm-manifest.json", "sha256": "0" * 64}},
        {"s3": {"bucket": "models", "files": [_SIZED], "endpoint": "http://minio:9000"}},
        {"pvc": {"claimName": "models", "path": "chat/1.2", "files": [_SIZED]}},
        {"http": {"url": "https://x/m.json", "basicAuthRef": {"name": "login"}}},
    ],
    ids=lambda source: next(iter(source)),
)
def test_sources_of_all_kinds_are_taken(control_plane: ControlPlane, source: dict[str, Any]) -> None:
    body = changed(deployment(), "spec.variants.0.source", source)
    body = changed(body, "spec.model.signature", {"publicKeys": [_PEM]})
    stored = dry_run(control_plane, body)["spec"]
    assert stored["model"]["signature"]["policy"] == "Require"
    assert SLMDeploymentSpec.model_validate(stored) == SLMDeploymentSpec.model_validate(body["spec"])


def test_number_or_percentage_are_both_taken(control_plane: ControlPlane) -> None:
    for value in (3, "25%"):
        stored = dry_run(control_plane, changed(deployment(), "spec.rollout.maxUnavailable", value))
        assert stored["spec"]["rollout"]["maxUnavailable"] == value


_ALL = {"name": "all", "percent": 100}
_FILE = {"path": "model.onnx", "sha256": "0" * 64}
_BAD: list[tuple[str, Any, str, str]] = [
    # field set, value, path in the answer, words in the answer
    ("metadata.name", "a" * 41, "", "at most 40"),
    ("metadata.name", "or.ders", "", "no dot"),
    ("metadata.name", "1orders", "", "beginning with a letter"),
    ("spec.model.version", "v 1", "spec.model.version", "should match"),
    ("spec.model.nmae", "x", "spec.model.nmae", "unknown field"),
    ("spec.variants", [], "spec", "give at least 1 of variants, or model.from"),
    ("spec.model.from", {"name": "m"}, "spec.model", "set version, or from"),
    ("spec.model", {"name": "m", "from": {"name": "m"}}, "spec", "not both"),
    ("spec.model", {"name": "m"}, "spec.model", "set version, or from"),
    (
        "spec.model.from",
        {"name": "m", "version": "1", "channel": "Latest"},
        "spec.model.from",
        "at most one of version, channel and versionPattern",
    ),
    ("spec.model.from", {"name": "m", "channel": "Beta"}, "spec.model.from.channel", "Unsupported value"),
    ("spec.model.from", {"name": "m", "versionPattern": "[a]"}, "versionPattern", "should match"),
    ("spec.variants.0.profiles", ["Pi"], "spec.variants[0].profiles[0]", "should match"),
    ("spec.variants.0.engine", "vllm", "spec.variants[0].engine", "Unsupported value"),
    ("spec.variants.0.runtime", {"slots": 0}, "spec.variants[0].runtime.slots", "greater than or equal to 1"),
    ("spec.variants.0.memory", {"weights": "big"}, "spec.variants[0].memory.weights", "should match"),
    ("spec.runtime.engine", "gguf", "spec.runtime.engine", "Unsupported value"),
    ("spec.variants.0.source", {}, "spec.variants[0].source", "exactly one of http, hf, oci, s3, pvc, file"),
    (
        "spec.variants.0.source.hf",
        {"repo": "owner/name"},
        "spec.variants[0].source",
        "exactly one of http, hf, oci, s3, pvc, file",
    ),
    (
        "spec.variants.0.source",
        {"oci": {"image": "models/chat:1"}},
        "spec.variants[0].source.oci.image",
        "must begin with its registry",
    ),
    (
        "spec.variants.0.source",
        {"oci": {"image": "registry.example/chat:1", "delivery": "ImageVolume", "files": ["*.onnx"]}},
        "spec.variants[0].source.oci",
        "mounts the whole folder",
    ),
    (
        "spec.variants.0.source",
        {"oci": {"image": "registry.example/chat:1", "path": "/models"}},
        "spec.variants[0].source.oci.path",
        "should match",
    ),
    ("spec.variants.0.source", {"s3": {"bucket": "models"}}, "spec.variants[0].source.s3", "a whole bucket"),
    (
        "spec.variants.0.source",
        {"s3": {"bucket": "models", "prefix": "chat"}},
        "spec.variants[0].source.s3.prefix",
        "should match",
    ),
    (
        "spec.variants.0.source",
        {"s3": {"bucket": "models", "prefix": "chat/../"}},
        "spec.variants[0].source.s3.prefix",
        "must not contain . or ..",
    ),
    (
        "spec.variants.0.source",
        {"s3": {"bucket": "models", "manifest": "m.json", "files": [_FILE]}},
        "spec.variants[0].source.s3",
        "manifest or files, not both",
    ),
    (
        "spec.variants.0.source",
        {"s3": {"bucket": "models", "prefix": "chat/", "sha256": "0" * 64}},
        "spec.variants[0].source.s3",
        "set manifest, too",
    ),
    (
        "spec.variants.0.source",
        {"pvc": {"claimName": "models", "files": [_FILE]}},
        "spec.variants[0].source.pvc.files",
        "needs its size",
    ),
    (
        "spec.variants.0.source.http",
        {"url": "https://x/m.json", "secretRef": {"name": "a"}, "basicAuthRef": {"name": "b"}},
        "spec.variants[0].source.http",
        "not both",
    ),
    ("spec.model.signature", {}, "spec.model.signature.publicKeys", "Required value"),
    ("spec.model.signature", {"publicKeys": []}, "spec.model.signature.publicKeys", "at least 1 items"),
    (
        "spec.model.signature",
        {"publicKeys": ["MFkwEwYHKoZIzj0C"]},
        "spec.model.signature.publicKeys[0]",
        "should match",
    ),
    ("spec.variants.0.source.http.url", "ftp://x/y", "spec.variants[0].source.http.url", "should match"),
    (
        "spec.variants.0.source.http.url",
        "https://user:pass@host/y",
        "spec.variants[0].source.http.url",
        "should match",
    ),
    ("spec.variants.0.source.http.files", [_FILE], "spec.variants[0].source.http", "must end in /"),
    (
        "spec.variants.0.source.http",
        {"url": "https://x/y/", "files": [_FILE | {"path": "../../etc/passwd"}]},
        "spec.variants[0].source.http.files[0].path",
        "should match",
    ),
    (
        "spec.variants.0.source",
        {"file": {"path": "/models", "files": [_FILE]}},
        "spec.variants[0].source.file.files",
        "needs its size",
    ),
    (
        "spec.variants.0.source",
        {"file": {"path": "/models/../etc", "files": [_FILE | {"size": 1}]}},
        "spec.variants[0].source.file.path",
        "must not contain",
    ),
    (
        "spec.variants.0.resources",
        {"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}},
        "spec.variants[0].resources",
        "memory request is above",
    ),
    (
        "spec.placement.nodeSelector.matchExpressions",
        [{"key": "a", "operator": "In"}],
        "spec.placement.nodeSelector.matchExpressions[0]",
        "values must be given",
    ),
    ("spec.runtime.slots", 0, "spec.runtime.slots", "greater than or equal to 1"),
    ("spec.service.trafficPolicy", "Near", "spec.service.trafficPolicy", "supported values"),
    ("spec.cache.hostPath", "relative", "spec.cache.hostPath", "should match"),
    ("spec.cache.hostPath", "/var/../etc", "spec.cache.hostPath", "must not contain"),
    ("spec.rollout.soak", "1 minute", "spec.rollout.soak", "should match"),
    ("spec.rollout.soak", "40m", "spec.rollout", "progressDeadline must be longer"),
    ("spec.rollout.maxUnavailable", "many", "spec.rollout.maxUnavailable", "should match"),
    ("spec.rollout.waves", [{"name": "a", "percent": 50}], "spec.rollout.waves", "must be percent: 100"),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 50}, {"name": "b", "percent": 50}, {"name": "c", "percent": 100}],
        "spec.rollout.waves",
        "each above the one before",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 50}, {"name": "b", "nodeSelector": {}}, {"name": "c", "percent": 100}],
        "spec.rollout.waves",
        "a count come first",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 50}, {"name": "a", "percent": 100}],
        "spec.rollout.waves[1]",
        "Duplicate value",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 50, "nodeSelector": {}}, {"name": "b", "percent": 100}],
        "spec.rollout.waves[0]",
        "exactly one of nodeSelector, count, percent",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "exponential": {}}, {"name": "b", "percent": 100}],
        "spec.rollout.waves",
        "at most one exponential",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 100, "maxPerSite": 2}],
        "spec.rollout.waves",
        "maxPerSite",
    ),
    (
        "spec.rollout.waves",
        [{"name": "a", "percent": 100, "soak": "2h"}],
        "spec.rollout",
        "soak of every wave",
    ),
    (
        "spec.rollout.windows",
        [{"startTime": "05:00", "endTime": "05:00"}],
        "spec.rollout.windows[0]",
        "never opens",
    ),
    ("spec.rollout.windows", [{"startTime": "5am", "endTime": "06:00"}], "startTime", "should match"),
    ("spec.rollout.windows", [{"startTime": "24:00", "endTime": "06:00"}], "windows[0]", "before 24:00"),
    (
        "spec.distribution",
        {"siteRateLimit": "1M"},
        "spec.distribution",
        "set maxConcurrentPerSite",
    ),
    ("spec.distribution", {"rateLimit": "2m"}, "spec.distribution", "rateLimit is in bytes per second"),
    ("spec.distribution", {"rateLimit": "2 MB"}, "spec.distribution.rateLimit", "should match"),
    ("spec.distribution", {"peers": "All"}, "spec.distribution.peers", "supported values"),
    (
        "spec.distribution.windows",
        [{"startTime": "05:00", "endTime": "05:00"}],
        "spec.distribution.windows[0]",
        "never opens",
    ),
    ("spec.cache.highWatermarkPercent", 100, "spec.cache.highWatermarkPercent", "less than or equal to 99"),
    ("spec.rollout.maxFailures", "some", "spec.rollout.maxFailures", "should match"),
    ("spec.rollout.strategy", "Canary", "spec.rollout.strategy", "supported values"),
    (
        "spec.rollout.analysis.prometheus",
        {"url": "http://prometheus:9090", "secretRef": {"name": "token"}},
        "spec.rollout.analysis.prometheus",
        "credentials go over https only",
    ),
    ("spec.rollout.analysis.falseRollbackRate", "1.5", "falseRollbackRate", "should match"),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "a", "query": "up", "preset": "ErrorRate", "max": "1"}],
        "spec.rollout.analysis.metrics[0]",
        "exactly one of preset, query",
    ),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "a", "query": "up", "max": "1", "test": "Sequential"}],
        "spec.rollout.analysis.metrics[0]",
        "use Threshold",
    ),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "a", "preset": "LatencyP95", "max": "1", "direction": "HigherIsBetter"}],
        "spec.rollout.analysis.metrics[0]",
        "direction belongs to a query",
    ),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "a", "preset": "ErrorRate", "max": "1", "dryRun": True}],
        "spec.rollout.analysis.metrics",
        "every metric is dryRun",
    ),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "a", "preset": "OOMKills", "maxDegradation": "1"}],
        "spec.rollout.analysis.metrics[0]",
        "give them max",
    ),
    ("spec.rollout.analysis.interval", "100ms", "spec.rollout.analysis.interval", "at least 1s"),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "q", "preset": "EvaluationScore"}],
        "spec.rollout.analysis.metrics[0]",
        "at least one of max, min, maxDegradation",
    ),
    (
        "spec.rollout.analysis.metrics",
        [{"name": "q", "preset": "ErrorRate", "min": "0.5", "max": "0.05"}],
        "spec.rollout.analysis.metrics[0]",
        "min is above max",
    ),
]


@pytest.mark.parametrize(("field", "value", "path", "words"), _BAD, ids=[f"{b[2]}-{b[3]}" for b in _BAD])
def test_a_wrong_spec_is_refused_with_its_field(
    control_plane: ControlPlane, field: str, value: Any, path: str, words: str
) -> None:
    with pytest.raises(RigError) as caught:
        dry_run(control_plane, changed(deployment(), field, value))
    assert path in str(caught.value)
    assert words in str(caught.value)


def profile(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": PROFILE_KIND,
        "metadata": {"name": "raspberry-pi-5"},
        "spec": spec,
    }


def test_a_profile_may_say_nothing_and_its_defaults_are_those_of_the_models(
    control_plane: ControlPlane,
) -> None:
    stored = dry_run(control_plane, profile())["spec"]
    assert (stored["priority"], stored["variants"]) == (0, {"strategy": "Preferred"})
    assert DeviceProfileSpec.model_validate(stored) == DeviceProfileSpec()
    full = {
        "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        "architectures": ["arm64"],
        "accelerator": {"value": "orin"},
        "priority": -5,
        "budgets": {"memory": "60%", "disk": "4Gi"},
        "powerMode": "15W",
        "powerWatts": {"idle": "3", "busy": "8.5"},
        "variants": {"prefer": ["int4*", "int8"]},
        "engine": "llama.cpp",
        "engineImage": "registry.example/llama:1",
        "runtime": {"threads": 4, "resources": {"limits": {"memory": "2Gi"}}},
    }
    stored = dry_run(control_plane, profile(**full))["spec"]
    assert DeviceProfileSpec.model_validate(stored) == DeviceProfileSpec.model_validate(full)


@pytest.mark.parametrize(
    ("field", "value", "path", "words"),
    [
        ("metadata.name", "a" * 41, "", "at most 40"),
        ("metadata.name", "pi.5", "", "no dot"),
        ("spec.budgets", {"memory": "0%"}, "spec.budgets.memory", "should match"),
        ("spec.budgets", {"memory": "120%"}, "spec.budgets.memory", "should match"),
        ("spec.budgets", {"disk": "10%"}, "spec.budgets.disk", "should match"),
        ("spec.variants", {"strategy": "Best"}, "spec.variants.strategy", "Unsupported value"),
        (
            "spec.variants",
            {"strategy": "Fastest", "prefer": ["int4"]},
            "spec.variants",
            "prefer needs strategy Preferred",
        ),
        ("spec.variants", {"prefer": ["[a]"]}, "spec.variants.prefer[0]", "should match"),
        ("spec.engine", "tensorrt", "spec.engine", "Unsupported value"),
        ("spec.accelerator", {"label": "x"}, "spec.accelerator.value", "Required value"),
        ("spec.powerWatts", {"idle": "3"}, "spec.powerWatts.busy", "Required value"),
        ("spec.priority", 5000, "spec.priority", "less than or equal to 1000"),
        ("spec.runtime", {"slots": 0}, "spec.runtime.slots", "greater than or equal to 1"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_field(
    control_plane: ControlPlane, field: str, value: Any, path: str, words: str
) -> None:
    with pytest.raises(RigError) as caught:
        dry_run(control_plane, changed(profile(), field, value))
    assert path in str(caught.value)
    assert words in str(caught.value)


def test_a_deployment_may_follow_a_model_and_fit_itself_to_devices(control_plane: ControlPlane) -> None:
    body = changed(deployment(), "spec.variants.0.profiles", ["raspberry-pi-5"])
    body = changed(body, "spec.variants.0.engine", "auto")
    body = changed(body, "spec.variants.0.runtime", {"slots": 1})
    body = changed(body, "spec.variants.0.memory", {"weights": "1Gi", "cachePerToken": "24Ki"})
    stored = dry_run(control_plane, body)["spec"]
    assert SLMDeploymentSpec.model_validate(stored) == SLMDeploymentSpec.model_validate(body["spec"])
    with pytest.raises(RigError, match=r"needs placement\.mode PerNode"):
        dry_run(control_plane, changed(body, "spec.placement.mode", "Replicas"))
    for source in ({}, {"version": "2.0"}, {"channel": "Latest"}, {"versionPattern": "2.*"}):
        body = deployment(model={"name": "orders", "from": {"name": "orders"} | source})
        del body["spec"]["variants"]
        stored = dry_run(control_plane, body)["spec"]
        assert "variants" not in stored
        assert SLMDeploymentSpec.model_validate(stored) == SLMDeploymentSpec.model_validate(body["spec"])


def test_status_is_a_subresource(control_plane: ControlPlane) -> None:
    create_namespaces(control_plane, "crd-status")
    body = deployment(namespace="crd-status") | {"status": {"stableRevision": "forged"}}
    control_plane.kubectl.apply(body)
    assert "status" not in control_plane.kubectl.get("slmd", "orders", "-n", "crd-status")
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AllNodesReady",
        "message": "2 of 3 serve",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"stableRevision": "0123456789", "readyNodes": "2/3", "conditions": [ready]}
    control_plane.kubectl(
        "patch", "slmd", "orders", "-n", "crd-status", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip
    table = control_plane.kubectl("get", "slmd", "-n", "crd-status", "-o", "wide").splitlines()
    assert " ".join(table[0].split()) == "NAME READY REASON REVISION NODES CANARY VERSION MESSAGE AGE"
    assert table[1].split()[:5] == ["orders", "True", "AllNodesReady", "0123456789", "2/3"]
    control_plane.kubectl("delete", "namespace", "crd-status", "--wait=false")


def test_a_baseline_without_variant_is_filled_in_and_refuses_no_change(control_plane: ControlPlane) -> None:
    """An older operator kept one value for each metric; the list got a second key since."""
    create_namespaces(control_plane, "crd-older")
    body = deployment(namespace="crd-older")
    control_plane.kubectl.apply(body)
    at = "2026-01-01T00:00:00Z"
    rollout = {
        "revision": "0123456789",
        "step": "Analysing",
        "stepStartedAt": at,
        "waveStartedAt": at,
        "startedAt": at,
        "baseline": [{"metric": "errors", "value": "0.01", "samples": 300, "at": at}],
    }
    control_plane.kubectl(
        "patch", "slmd", "orders", "-n", "crd-older", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"rollout": rollout}}),
    )  # fmt: skip
    control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", "-",
        stdin=yaml.safe_dump(changed(body, "spec.rollout.paused", True)),
    )  # fmt: skip
    stored = control_plane.kubectl.get("slmd", "orders", "-n", "crd-older")
    assert stored["spec"]["rollout"]["paused"] is True
    assert stored["status"]["rollout"]["baseline"][0]["variant"] == ""
    control_plane.kubectl("delete", "namespace", "crd-older", "--wait=false")
