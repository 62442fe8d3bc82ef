# SPDX-License-Identifier: Apache-2.0
"""Revisions: their identity must not change from release to release, or every fleet would roll over."""

import json
from typing import Any

import pytest

from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved, ResolveFailure
from slmops.planning import build
from slmops.planning.names import Names
from slmops.planning.resolution import resolve
from slmops.planning.revision import (
    Revision,
    build_revision_data,
    canonical,
    parse_revision,
    revision_of,
    source_hash,
)
from slmwire.reasons import Reason
from tests.unit.planning.fleet_spec import manifest_of, merged, spec_body

NAMES = Names("shop", "orders")
CONFIG = OperatorConfig(runtime_image="slmops/runtime:1")
SECRET = {"http": {"secretRef": {"name": "hub", "key": "pass"}}}


def spec_of(changes: dict[str, Any] | None = None, **variant: Any) -> SLMDeploymentSpec:
    body = merged(spec_body(), changes or {})
    body["variants"] = [merged(body["variants"][0], variant), *body["variants"][1:]]
    return SLMDeploymentSpec.model_validate(body)


def identity(spec: SLMDeploymentSpec, *, digest: str = "sha256:" + "0" * 64) -> str:
    return revision_of(spec, {variant.name: digest for variant in spec.variants})


def test_identity_is_the_same_in_every_release() -> None:
    """Golden value: should it change, an upgrade of the operator would start a rollout everywhere."""
    assert identity(spec_of()) == "fe5161f79a"
    assert source_hash(spec_of().variants[0].source) == "74ecb551d1c4a306"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"version": "v2"}},
        {"model": {"name": "other"}},
        {"placement": {"tolerations": [{"key": "gpu"}]}},
        {"placement": {"priorityClassName": "low"}},
        {"runtime": {"image": "mine:1"}},
        {"runtime": {"slots": 2}},
        {"cache": {"hostPath": "/var/lib/slmops/other"}},
        {"evaluation": {"enabled": False}},
        {"placement": {"mode": "Replicas"}},
    ],
)
def test_what_changes_the_pods_changes_the_revision(changes: dict[str, Any]) -> None:
    assert identity(spec_of(changes)) != identity(spec_of())


def test_replicas_carry_their_node_selector_and_nothing_else_of_placement() -> None:
    replicas = {"placement": {"mode": "Replicas"}}
    assert identity(spec_of(replicas)) == "44df7c1069"
    assert identity(spec_of(merged(replicas, {"placement": {"replicas": 7}}))) == identity(spec_of(replicas))
    narrower = {"placement": {"nodeSelector": {"matchLabels": {"a": "b"}}}}
    assert identity(spec_of(merged(replicas, narrower))) != identity(spec_of(replicas))


def test_bytes_and_resources_change_the_revision() -> None:
    assert identity(spec_of(), digest="sha256:" + "1" * 64) != identity(spec_of())
    assert identity(spec_of(resources={"requests": {"memory": "2Gi"}})) != identity(spec_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"distribution": {"peers": "None", "rateLimit": "2M", "maxConcurrentPerSite": 1}},
        {"distribution": {"windows": [{"startTime": "22:00", "endTime": "05:00"}]}},
        {"cache": {"highWatermarkPercent": 80}},
        {"placement": {"nodeSelector": {"matchLabels": {"a": "b"}}}},
        {"rollout": {"paused": True, "soak": "5m"}},
        {"service": {"port": 8080}},
        {"placement": {"siteLabel": "room"}},
        {"cache": {"sizeLimit": "5Gi", "keepPrevious": 2, "deletionPolicy": "Retain"}},
        {"revisionHistoryLimit": 9},
    ],
)
def test_what_does_not_change_the_pods_keeps_the_revision(changes: dict[str, Any]) -> None:
    assert identity(spec_of(changes)) == identity(spec_of())


def resolved(spec: SLMDeploymentSpec) -> dict[str, Resolved]:
    return {
        variant.name: Resolved(manifest=manifest_of(f"http://{variant.name}"), reference="abc")
        for variant in spec.variants
    }


def templates(spec: SLMDeploymentSpec) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    digests = {name: found.manifest.digest for name, found in resolved(spec).items()}
    references = {name: found.reference for name, found in resolved(spec).items()}
    return build.build_templates(
        NAMES, spec, config=CONFIG, revision="0123456789", digests=digests, references=references
    )


def stored(spec: SLMDeploymentSpec) -> Revision:
    data = build_revision_data(spec, resolved=resolved(spec), templates=templates(spec))
    return parse_revision("0123456789", 7, json.loads(json.dumps(data)))


def test_a_stored_revision_comes_back_whole() -> None:
    spec = spec_of(nodeSelector={"matchLabels": {"gpu": "yes"}})
    found = stored(spec)
    (variant,) = found.variants
    assert (found.number, found.model_version, variant.name) == (7, "v1", "int4")
    assert variant.memory_bytes == 1 << 30 and variant.reference == "abc"
    assert variant.node_selector == spec.variants[0].node_selector
    assert variant.manifest == resolved(spec)["int4"].manifest
    assert (variant.serve_template, variant.prefetch_template) == templates(spec)["int4"]
    assert found.variant("fp32") is None


def test_a_record_of_a_later_operator_is_not_half_understood() -> None:
    spec = spec_of()
    data = build_revision_data(spec, resolved=resolved(spec), templates=templates(spec))
    with pytest.raises(ValueError, match="schema 3"):
        parse_revision("x", 1, data | {"schema": 3})


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"schema": 1},
        {"schema": 1, "modelVersion": "v1"},
        {"schema": 1, "modelVersion": "v1", "variants": [{}]},
    ],
)
def test_a_record_that_somebody_altered_is_told_from_a_good_one(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        parse_revision("x", 1, broken)


def pods(spec: SLMDeploymentSpec) -> list[dict[str, Any]]:
    revision = stored(spec)
    (variant,) = revision.variants
    release = build.build_release_daemon_set(NAMES, spec, config=CONFIG)
    bodies = [
        build.build_serve_daemon_set(NAMES, revision, variant),
        build.build_prefetch_daemon_set(NAMES, revision, variant),
        release,
    ]
    return [body["spec"]["template"]["spec"] for body in bodies]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_no_pod_holds_an_api_credential() -> None:
    for pod in pods(spec_of(source=SECRET)):
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod
        assert all("projected" not in volume for volume in pod["volumes"])


def test_every_container_is_confined() -> None:
    for pod in pods(spec_of()):
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context
            assert container["terminationMessagePath"] == "/dev/termination-log"


def test_server_is_not_root_and_cannot_write_its_model() -> None:
    (server,) = pods(spec_of())[0]["containers"]
    assert server["securityContext"]["runAsUser"] == 65532 and server["securityContext"]["runAsNonRoot"]
    (model,) = [mount for mount in server["volumeMounts"] if mount["name"] == "store"]
    digest = resolved(spec_of())["int4"].manifest.digest.removeprefix("sha256:")
    assert model == {"name": "store", "mountPath": "/model", "subPath": f"trees/{digest}", "readOnly": True}


def test_an_offline_node_keeps_its_pods() -> None:
    for pod in pods(spec_of({"placement": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}})):
        kept = {(t["key"], t["effect"]) for t in pod["tolerations"] if "effect" in t}
        assert kept == {
            ("node.kubernetes.io/not-ready", "NoExecute"),
            ("node.kubernetes.io/unreachable", "NoExecute"),
        }
        assert all("tolerationSeconds" not in toleration for toleration in pod["tolerations"])
        assert {"key": "gpu", "operator": "Exists"} in pod["tolerations"]


def test_probes_tell_loading_from_serving_from_hanging() -> None:
    serve, prefetch, release = pods(spec_of())
    (server,) = serve["containers"]
    assert server["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] == 600
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"
    for pod in (prefetch, release):
        assert pod["containers"][0]["readinessProbe"]["exec"]["command"] == ["test", "-f", "/tmp/ready"]


def test_a_secret_reaches_the_fetcher_only_and_may_be_gone() -> None:
    serve, prefetch, release = pods(spec_of(source=SECRET))
    for pod in (serve, prefetch):
        (volume,) = [v for v in pod["volumes"] if v["name"] == "source-token"]
        assert volume["secret"]["optional"] is True
        assert volume["secret"]["items"] == [{"key": "pass", "path": "token"}]
    assert "source-token" not in [mount["name"] for mount in serve["containers"][0]["volumeMounts"]]
    assert "source-token" in [mount["name"] for mount in serve["initContainers"][0]["volumeMounts"]]
    assert [volume["name"] for volume in release["volumes"]] == ["store", "tmp"]


def test_a_workload_selects_only_the_nodes_given_its_variant() -> None:
    revision = stored(spec_of())
    body = build.build_serve_daemon_set(NAMES, revision, revision.variants[0])
    assert body["metadata"]["name"] == "orders-0123456789-int4"
    assert body["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert body["spec"]["selector"]["matchLabels"] == body["spec"]["template"]["metadata"]["labels"]
    affinity = body["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert affinity == {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": "orders.shop.slmops.dev/0123456789", "operator": "In", "values": ["int4"]}
                    ]
                }
            ]
        }
    }


def test_an_upgraded_operator_applies_what_was_stored() -> None:
    found = stored(spec_of())
    body = build.build_serve_daemon_set(NAMES, found, found.variants[0])
    images = {c["image"] for c in containers(body["spec"]["template"]["spec"])}
    assert images == {"slmops/runtime:1"}, "from the record, whatever the operator's default is now"


def test_the_service_selects_serving_pods_of_all_revisions() -> None:
    service = build.build_service(NAMES, spec_of({"service": {"port": 81, "trafficPolicy": "Cluster"}}))
    assert service["spec"]["selector"]["slmops.dev/role"] == "serve"
    assert "slmops.dev/revision" not in service["spec"]["selector"]
    assert service["spec"]["ports"][0]["port"] == 81
    assert service["spec"]["internalTrafficPolicy"] == "Cluster"


def test_names_fit_kubernetes() -> None:
    names = Names("n" * 63, "d" * 40)
    assert len(names.prefetch_workload("0" * 10, "v" * 20)) <= 253
    prefix, _, tail = names.prefetch_label("0" * 10).partition("/")
    assert len(prefix) <= 253 and len(tail) <= 63
    assert names.serve_label("x") != names.prefetch_label("x") != names.release_label != names.moving_label


def test_a_known_source_is_not_asked_again() -> None:
    spec = spec_of()
    known = stored(spec)
    newer = Resolved(manifest=manifest_of("http://changed"), reference="def")
    outcome = resolve(spec, outcomes={source_hash(spec.variants[0].source): newer}, stored=[known])
    assert not outcome.requests and outcome.resolved["int4"].reference == "abc"
    assert outcome.revision == identity(spec, digest=known.variants[0].manifest.digest)


def test_a_source_that_fails_leaves_no_revision() -> None:
    spec = spec_of()
    failure = ResolveFailure(reason=Reason.ACCESS_DENIED, message="401", retry_at=5.0)
    outcome = resolve(spec, outcomes={source_hash(spec.variants[0].source): failure}, stored=[])
    assert outcome.revision == "" and outcome.failures == (("int4", failure),)
    assert [request.variant for request in outcome.requests] == ["int4"]


def test_canonical_text_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": [1, 2]}) == canonical({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'
