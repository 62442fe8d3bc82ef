# SPDX-License-Identifier: Apache-2.0
"""API keys and TLS on a real API server: taken or refused by field, and brought to the pods in waves."""

from typing import Any

import pytest

from e2e.rig import ControlPlane, RigError
from slmops.adapters.resources import DEPLOYMENTS, PODS, SERVICES
from slmwire.labels import REVISION, ROLE
from tests.apiserver.harness import NAME, Cluster, until
from tests.apiserver.specs import changed, deployment
from tests.apiserver.test_crd import dry_run

AUTH: dict[str, Any] = {"apiKeysSecretRef": {"name": "orders-keys"}}
TLS: dict[str, Any] = {"secretRef": {"name": "orders-tls"}}


def test_access_is_stored_with_its_default(control_plane: ControlPlane) -> None:
    stored = dry_run(control_plane, changed(deployment(), "spec.service", {"auth": AUTH, "tls": TLS}))
    assert stored["spec"]["service"]["auth"]["apiKeysSecretRef"] == {"name": "orders-keys", "key": "keys"}
    assert "auth" not in dry_run(control_plane, deployment())["spec"]["service"], "nothing asks for keys"


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"auth": {}}, "spec.service.auth.apiKeysSecretRef: Required"),
        ({"auth": {"apiKeysSecretRef": {"key": "keys"}}}, "apiKeysSecretRef.name: Required"),
        ({"auth": {"apiKeysSecretRef": {"name": "Orders Keys"}}}, "spec.service.auth.apiKeysSecretRef.name"),
        ({"auth": {"apiKeysSecretRef": {"name": "k", "key": "../token"}}}, "apiKeysSecretRef.key"),
        ({"auth": {"apiKeysSecretRef": {"name": "k", "key": ".."}}}, "apiKeysSecretRef.key"),
        ({"auth": {"apiKeysSecretRef": {"name": "k", "key": ""}}}, "apiKeysSecretRef.key"),
        ({"tls": {}}, "spec.service.tls.secretRef: Required"),
        ({"tls": {"secretRef": {"name": ""}}}, "spec.service.tls.secretRef.name"),
        ({"tls": {"certificate": "x", "secretRef": {"name": "t"}}}, "unknown field"),
        (
            {"auth": {"apiKeysSecretRef": {"name": "one"}}, "tls": {"secretRef": {"name": "one"}}},
            "a Secret of their own",
        ),
    ],
)
def test_what_cannot_be_mounted_is_refused(
    control_plane: ControlPlane, service: dict[str, Any], said: str
) -> None:
    with pytest.raises(RigError, match=said):
        dry_run(control_plane, changed(deployment(), "spec.service", service))


async def _pods(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Revision -> spec of one of its serving pods."""
    found = await cluster.items(PODS, namespace=cluster.namespace, label_selector=f"{ROLE}=serve")
    return {p["metadata"]["labels"][REVISION]: p["spec"] for p in found}


async def _set_access(cluster: Cluster, **service: Any) -> None:
    await cluster.kube.merge_patch(
        DEPLOYMENTS, namespace=cluster.namespace, name=NAME, body={"spec": {"service": service}}
    )


async def _ports(cluster: Cluster) -> list[tuple[str, str]]:
    service = await cluster.kube.get(SERVICES, namespace=cluster.namespace, name=NAME)
    return [(port["name"], port.get("appProtocol", "")) for port in service["spec"]["ports"]]


async def test_keys_and_tls_are_a_new_revision_that_goes_out_in_waves(cluster: Cluster) -> None:
    async with cluster.operator():
        await cluster.apply("v1")
        first = await cluster.until_promoted("v1")
        await cluster.until_settled(first, 4)
        assert await _ports(cluster) == [("http", "")]
        cluster.provider.silent = True
        await _set_access(cluster, auth=AUTH, tls=TLS)
        second = (await cluster.until_judged())["updateRevision"]
        labels = await cluster.node_labels()
        assert first != second in labels["a"] and all(first in labels[name] for name in "bcd")
        assert await _ports(cluster) == [("http", "")], "most pods speak HTTP yet"
        pods = await _pods(cluster)
        cluster.provider.silent = False
        await cluster.until_promoted_again(second)
        await cluster.until_settled(second, 4)

        async def secured() -> bool:
            return await _ports(cluster) == [("https", "https")]

        await until("the Service speaking of HTTPS", secured)
        await _set_access(cluster, auth=AUTH | {"apiKeysSecretRef": {"name": "other-keys"}})
        status = await cluster.until_status(
            "another Secret of keys being rolled out", lambda s: s["updateRevision"] not in (first, second)
        )
        await cluster.until_promoted_again(status["updateRevision"])

    (server,) = pods[second]["containers"]
    probes = [
        server[name]["httpGet"]["scheme"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    assert probes == ["HTTPS"] * 3
    assert [port["name"] for port in server["ports"]] == ["https"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in pods[second]["volumes"] if "secret" in v}
    assert secrets == {"api-keys": "orders-keys", "tls": "orders-tls"}
    mounts = {m["name"] for m in server["volumeMounts"]}
    assert set(secrets) < mounts
    assert not any(m["name"] in secrets for c in pods[second]["initContainers"] for m in c["volumeMounts"]), (
        "the fetcher gets neither"
    )
    (old,) = pods[first]["containers"]
    assert [port["name"] for port in old["ports"]] == ["http"]
    assert old["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
