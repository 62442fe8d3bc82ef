# SPDX-License-Identifier: Apache-2.0
"""API keys and TLS of the inference pods: who gets which Secret, and what a missing one does to a fleet."""

from copy import deepcopy
from typing import Any

import pytest

from slmops.api import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import OwnedKind
from slmops.planning import build
from slmops.planning.access import PATIENCE_SECONDS, is_unstarted
from slmops.planning.names import Names
from slmops.planning.revision import revision_of
from slmserve.config import parse_config
from tests.unit.planning.fleet_sim import FleetSim
from tests.unit.planning.fleet_situations import installed, reach
from tests.unit.planning.fleet_spec import GIB, merged, spec_body

Body = dict[str, Any]
AUTH: Body = {"auth": {"apiKeysSecretRef": {"name": "orders-keys"}}}
TLS: Body = {"tls": {"secretRef": {"name": "orders-tls"}}}
BOTH: Body = AUTH | TLS
HUB = {"http": {"url": "https://hub/m.json", "secretRef": {"name": "hub"}}}
SOURCES: list[Body] = [
    HUB,
    {"oci": {"image": "registry.example/chat:1", "delivery": "ImageVolume"}},
    {"pvc": {"claimName": "models", "files": [{"path": "a", "size": 1, "sha256": "0" * 64}]}},
]


def spec_of(service: Body | None = None, *, source: Body = HUB, **more: Any) -> SLMDeploymentSpec:
    body = merged(spec_body(), {"service": service or {}} | more)
    body["variants"] = [{**body["variants"][0], "source": source}]
    return SLMDeploymentSpec.model_validate(body)


def identity(service: Body | None = None) -> str:
    spec = SLMDeploymentSpec.model_validate(merged(spec_body(), {"service": service or {}}))
    return revision_of(spec, {"int4": "sha256:" + "0" * 64})


def pods_of(spec: SLMDeploymentSpec) -> tuple[Body, Body]:
    """Pod specs that serve and that fetch ahead."""
    serve, prefetch = build.build_templates(
        Names("shop", "orders"),
        spec,
        config=OperatorConfig(runtime_image="runtime:1"),
        revision="0123456789",
        digests={"int4": "sha256:" + "0" * 64},
        references={"int4": "registry.example/chat@sha256:" + "1" * 64},
    )["int4"]
    return serve["spec"], prefetch["spec"]


def mounted(pod: Body) -> dict[str, set[str]]:
    """Container -> the Secrets that it mounts."""
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    return {
        c["name"]: {secrets[m["name"]] for m in c["volumeMounts"] if m["name"] in secrets} for c in containers
    }


def test_which_secrets_are_part_of_a_revision_only_where_they_are_set() -> None:
    """Golden values: should they change, an upgrade of the operator would start a rollout everywhere."""
    assert identity() == identity({"port": 443}) == "fe5161f79a"
    assert identity(AUTH) == "22e71d7e6e"
    assert identity(TLS) == "adc60b1a05"
    assert identity(BOTH) == "757cf7df42"
    renamed = {"auth": {"apiKeysSecretRef": {"name": "orders-keys", "key": "staff"}}}
    assert len({identity(s) for s in ({}, AUTH, TLS, BOTH, renamed)}) == 5


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: next(iter(source)))
def test_no_access_leaves_every_pod_as_it_was(source: Body) -> None:
    plain = pods_of(spec_of(source=source))
    text = str(plain)
    assert "api-keys" not in text and "scheme" not in text and "SLM_TLS" not in text
    for mine, pod in zip(pods_of(spec_of(BOTH, source=source)), plain, strict=True):
        stripped = deepcopy(mine)
        stripped["volumes"] = [v for v in mine["volumes"] if v["name"] not in ("api-keys", "tls")]
        if "initContainers" in mine:
            stripped["initContainers"] = [c for c in mine["initContainers"] if c["name"] != "secrets"]
        if not stripped.get("initContainers", True):
            del stripped["initContainers"]
        for container in stripped["containers"]:
            container["volumeMounts"] = [
                m for m in container["volumeMounts"] if m["name"] not in ("api-keys", "tls")
            ]
            container["env"] = [e for e in container.get("env", ()) if e["name"] not in ACCESS_VARIABLES]
            for port in container.get("ports", ()):
                port["name"] = "http"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                container.get(probe, {}).get("httpGet", {}).pop("scheme", None)
        without = deepcopy(pod)
        for container in without["containers"]:
            container.setdefault("env", [])
        assert stripped == without


ACCESS_VARIABLES = {"SLM_API_KEYS_FILE", "SLM_TLS_CERT_FILE", "SLM_TLS_KEY_FILE"}


@pytest.mark.parametrize("engine", ["", "auto"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: next(iter(source)))
def test_the_secrets_reach_the_server_and_never_the_fetcher(source: Body, engine: str) -> None:
    runtime = {"runtime": {"engine": engine}} if engine else {}
    serve, prefetch = pods_of(spec_of(BOTH, source=source, **runtime))
    own = {"orders-keys", "orders-tls"}
    assert mounted(serve)["server"] == own
    assert all(not secrets & own for name, secrets in mounted(serve).items() if name != "server")
    assert {name for name, secrets in mounted(prefetch).items() if secrets & own} == {"secrets"}
    assert "env" not in next(c for c in prefetch["initContainers"] if c["name"] == "secrets")
    if engine:
        choose = next(c for c in serve["initContainers"] if c["name"] == "choose")
        assert not {e["name"] for e in choose["env"]} & ACCESS_VARIABLES, "it would fail without the files"


def test_the_server_finds_what_is_mounted() -> None:
    serve, _ = pods_of(
        spec_of(BOTH | {"auth": {"apiKeysSecretRef": {"name": "orders-keys", "key": "staff"}}})
    )
    (server,) = serve["containers"]
    config = parse_config([], {e["name"]: e["value"] for e in server["env"] if "value" in e})
    mounts = {m["name"]: m for m in server["volumeMounts"]}
    volumes = {v["name"]: v["secret"] for v in serve["volumes"] if "secret" in v}
    assert config.api_keys_file is not None and config.tls is not None
    for name, key, file in (
        ("api-keys", "staff", config.api_keys_file),
        ("tls", "tls.crt", config.tls.certificate),
        ("tls", "tls.key", config.tls.key),
    ):
        # A folder: with subPath the kubelet would never renew it.
        assert mounts[name]["readOnly"] is True and "subPath" not in mounts[name]
        assert mounts[name]["mountPath"] == str(file.parent)
        assert {"key": key, "path": file.name} in volumes[name]["items"]
        assert volumes[name]["optional"] is False, "without its keys it would be open to everybody"
        assert volumes[name]["defaultMode"] & 0o004, "root's files, and the server is user 65532"
    assert "fsGroup" not in serve["securityContext"]


def test_https_is_told_to_who_asks_the_pod() -> None:
    server = pods_of(spec_of(TLS))[0]["containers"][0]
    assert [p["name"] for p in server["ports"]] == ["https"]
    assert {server[p]["httpGet"]["scheme"] for p in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "HTTPS"
    }
    keys = pods_of(spec_of(AUTH))[0]["containers"][0]
    assert [p["name"] for p in keys["ports"]] == ["http"] and "scheme" not in str(keys), "probes need no key"


def revisions(sim: FleetSim) -> dict[str, set[str]]:
    return {name: sim.cluster.serving_revisions(name) for name in sim.cluster.nodes}


def _ports(sim: FleetSim) -> list[Body]:
    ports: list[Body] = sim.cluster.objects[OwnedKind.SERVICE, "orders"]["spec"]["ports"]
    return ports


def test_tls_goes_out_in_waves_and_the_service_follows_the_stable_revision() -> None:
    sim = installed()
    plain = {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}
    assert _ports(sim) == [plain]
    sim.edit(service=TLS)
    reach(sim, "Soaking")
    took = [name for name, found in revisions(sim).items() if sim.status.update_revision in found]
    assert len(took) == 1, "the canary"
    assert _ports(sim) == [plain], "most pods speak HTTP yet"
    sim.settle()
    assert sim.step == "Completed"
    assert _ports(sim) == [plain | {"name": "https", "appProtocol": "https"}]
    sim.edit(service={"tls": None})
    sim.settle()
    assert _ports(sim) == [plain]


def test_killed_at_any_write_the_service_says_what_the_pods_speak() -> None:
    before = installed(2, waves=[{"name": "all", "percent": 100}])

    def switched(kill_after: int | None) -> FleetSim:
        sim = deepcopy(before)
        sim.kill_at = None if kill_after is None else sim.writes + kill_after
        sim.edit(service=TLS)
        sim.settle()
        assert sim.step == "Completed" and sim.kills == (kill_after is not None)
        return sim

    undisturbed = switched(None)
    assert [port["name"] for port in _ports(undisturbed)] == ["https"]
    for number in range(undisturbed.writes - before.writes):
        assert _ports(switched(number)) == _ports(undisturbed), number


def test_a_rollback_to_plain_http_leaves_the_service_as_it_was() -> None:
    sim = installed()
    plain = _ports(sim)
    sim.edit(service=TLS)
    sim.cluster.behaviours["v1"].crashes_on = frozenset(sim.cluster.nodes)
    sim.settle()
    assert sim.step == "Failed" and _ports(sim) == plain, "spec asks for TLS, the pods speak HTTP"


def test_replicas_get_keys_and_tls_too() -> None:
    serve, _ = pods_of(spec_of(BOTH, placement={"mode": "Replicas"}))
    assert mounted(serve)["server"] == {"orders-keys", "orders-tls"}


def test_a_missing_secret_takes_no_serving_pod_away() -> None:
    sim = installed(memory_bytes=GIB + GIB // 2, onDeadline="Rollback", prefetchDeadline="10m")
    before = revisions(sim)
    sim.cluster.missing_secrets = {"orders-keys"}
    sim.edit(service=BOTH)
    sim.run(PATIENCE_SECONDS / 2)
    assert sim.step == "Prefetching" and not sim.status.worst_nodes, "Secrets may come a moment later"
    said = next(c.message for c in sim.status.conditions if c.type == "Progressing")
    assert "Secret orders-keys and Secret orders-tls" in said and "kubectl describe pod" in said
    sim.run(PATIENCE_SECONDS)
    (problem,) = sim.status.worst_nodes
    assert problem.reason == "VolumesNotReady" and "orders-keys" in problem.message
    assert all(sim.cluster.serving(name) for name in sim.cluster.nodes)
    sim.settle()
    assert sim.step == "Failed" and "orders-keys" in sim.status.failed_revisions[-1].message
    assert revisions(sim) == before
    assert not sim.status.worst_nodes


def test_a_secret_that_comes_late_is_waited_for() -> None:
    sim = installed()
    sim.cluster.missing_secrets = {"orders-tls"}
    sim.edit(service=TLS)
    sim.run(600)
    assert sim.step == "Prefetching"
    sim.cluster.missing_secrets = set()
    sim.settle()
    assert sim.step == "Completed" and sim.status.ready_nodes == "5/5"


def test_a_first_revision_that_waits_for_its_secret_says_so() -> None:
    sim = FleetSim(merged(spec_body(), {"service": AUTH}))
    sim.add_node("n0")
    sim.cluster.missing_secrets = {"orders-keys"}
    sim.run(10)
    ready = next(c for c in sim.status.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "NodesNotReady")
    assert "starting; pod" in ready.message and "Secret orders-keys" in ready.message
    sim.run(PATIENCE_SECONDS)
    assert sim.condition("Ready") == ("False", "VolumesNotReady")
    sim.cluster.missing_secrets = set()
    sim.settle()
    assert sim.condition("Ready") == ("True", "AllNodesReady")


WAITING: Body = {"state": {"waiting": {"reason": "PodInitializing"}}}
SCHEDULED: Body = {"type": "PodScheduled", "status": "True"}
PENDING: Body = {"phase": "Pending", "conditions": [SCHEDULED], "containerStatuses": [WAITING]}


@pytest.mark.parametrize(
    ("status", "unstarted"),
    [
        (PENDING, True),
        (PENDING | {"initContainerStatuses": [{"state": {"running": {}}}]}, False),
        (PENDING | {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, False),
        (PENDING | {"containerStatuses": []}, False),
        (PENDING | {"conditions": []}, False),
        (PENDING | {"phase": "Running"}, False),
        (
            PENDING | {"conditions": [SCHEDULED, {"type": "PodReadyToStartContainers", "status": "True"}]},
            False,
        ),
        (
            {
                "phase": "Pending",
                "conditions": [SCHEDULED, {"type": "PodReadyToStartContainers", "status": "False"}],
            },
            True,
        ),
        ({}, False),
    ],
)
def test_what_comes_before_the_first_container(status: Body, *, unstarted: bool) -> None:
    assert is_unstarted(status) is unstarted
