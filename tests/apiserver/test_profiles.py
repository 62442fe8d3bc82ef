# SPDX-License-Identifier: Apache-2.0
"""DeviceProfiles on a real API server: each class its variant, a changed preference, and what fits nowhere.

Their kind has no namespace: each test names its profiles after its own namespace and takes them away.
"""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from slmops.adapters.resources import DEPLOYMENTS, DEVICE_PROFILES, NODES, PODS
from slmops.api import API_VERSION
from slmops.api.profile import PROFILE_KIND
from tests.apiserver import harness
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.harness import Cluster, condition, step_of, until
from tests.apiserver.specs import changed

Body = dict[str, Any]
DEVICES = {"a": "tiny", "b": "middle", "c": "large"}
FORMS = (("fp16", "3Gi"), ("int8", "900Mi"), ("int4", "200Mi"))


@pytest.fixture
async def cluster(make_cluster: MakeCluster) -> AsyncIterator[Cluster]:
    """Three nodes of three classes."""
    async with make_cluster("", nodes="abc") as cluster:
        for name, device in DEVICES.items():
            patch = {"metadata": {"labels": {"device": device}}}
            await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-{name}", body=patch)
        try:
            yield cluster
        finally:
            for device in DEVICES.values():
                await cluster.kube.delete(DEVICE_PROFILES, name=profile_name(cluster, device))


def profile_name(cluster: Cluster, device: str) -> str:
    return f"{hashlib.sha256(cluster.namespace.encode()).hexdigest()[:6]}-{device}"


async def describe(cluster: Cluster, device: str, **spec: Any) -> None:
    """Apply the profile of one class."""
    selector = {"matchLabels": {"test": cluster.namespace, "device": device}}
    body = {
        "apiVersion": API_VERSION,
        "kind": PROFILE_KIND,
        "metadata": {"name": profile_name(cluster, device)},
        "spec": {"nodeSelector": selector} | spec,
    }
    await cluster.kube.apply(DEVICE_PROFILES, body=body)


def deployment(cluster: Cluster, *forms: tuple[str, str]) -> Body:
    variants = [
        {
            "name": name,
            "source": {"http": {"url": f"https://models.example/v1/{name}.json"}},
            "memory": {"weights": weights, "cachePerToken": "0", "overhead": "1Mi"},
        }
        for name, weights in forms
    ]
    return changed(harness.deployment(cluster.namespace, "v1"), "spec.variants", variants)


async def apply(cluster: Cluster, body: Body) -> None:
    await cluster.kube.apply(DEPLOYMENTS, namespace=cluster.namespace, body=body)


async def given(cluster: Cluster) -> dict[str, str]:
    """Variant that each node serves, the profile's name left out."""
    tail = f"-{hashlib.sha256(cluster.namespace.encode()).hexdigest()[:6]}-"
    return {
        node: "+".join(value.replace(tail, "/") for key, value in labels.items() if "." not in key)
        for node, labels in (await cluster.node_labels()).items()
    }


async def until_given(cluster: Cluster, expected: dict[str, str]) -> None:
    seen: dict[str, str] = {}

    async def holds() -> bool:
        nonlocal seen
        seen = await given(cluster)
        return seen == expected

    await until(f"{expected}", holds, seen=lambda: seen)


async def test_three_classes_take_three_variants_and_a_new_preference_goes_out_in_waves(
    cluster: Cluster,
) -> None:
    await describe(cluster, "tiny", budgets={"memory": "256Mi"}, runtime={"slots": 1})
    await describe(cluster, "middle", budgets={"memory": "1Gi"})
    await describe(cluster, "large", engine="auto")
    async with cluster.operator():
        await apply(cluster, deployment(cluster, *FORMS))
        first = await cluster.until_promoted("v1")
        await until_given(cluster, {"a": "int4/tiny", "b": "int8/middle", "c": "fp16/large"})
        pods = await cluster.items(PODS, namespace=cluster.namespace, label_selector="slmops.dev/role=serve")
        servers = {p["metadata"]["labels"]["slmops.dev/variant"][:4]: p["spec"] for p in pods}
        requests = {k: s["containers"][0]["resources"]["requests"]["memory"] for k, s in servers.items()}
        assert requests == {"int4": "201Mi", "int8": "901Mi", "fp16": "3073Mi"}, (
            "what each was computed to need"
        )
        assert [c["name"] for c in servers["fp16"]["initContainers"]] == ["fetch", "choose"]
        env = {e["name"]: e.get("value") for e in servers["int4"]["containers"][0]["env"]}
        assert env["SLM_SLOTS"] == "1"

        cluster.provider.silent = True
        await describe(cluster, "middle", budgets={"memory": "1Gi"}, variants={"prefer": ["int4"]})
        status = await cluster.until_judged()
        labels = await cluster.node_labels()
        assert status["updateRevision"] != first and status["updateRevision"] in labels["a"]
        assert first in labels["b"], "its wave comes later"
        cluster.provider.silent = False
        await cluster.until_status(
            "the new revision being promoted",
            lambda s: s["stableRevision"] not in ("", first) and step_of(s) == "Completed",
        )
        await until_given(cluster, {"a": "int4/tiny", "b": "int4/middle", "c": "fp16/large"})


async def test_a_model_too_large_for_all_is_refused_before_anything_is_fetched(cluster: Cluster) -> None:
    for device in DEVICES.values():
        await describe(cluster, device, budgets={"memory": "128Mi"})
    async with cluster.operator():
        await apply(cluster, deployment(cluster, *FORMS))
        status = await cluster.until_status(
            "the refusal", lambda s: condition(s, "Accepted").get("reason") == "NoVariantFits"
        )
        message = condition(status, "Accepted")["message"]
        assert "needs 201 MiB (weights 200, cache 0, engine 1)" in message and "128 MiB" in message
        assert {entry["reason"] for entry in status["worstNodes"]} == {"Unfit"}
        assert not any((await cluster.node_labels()).values())
        assert await cluster.items(PODS, namespace=cluster.namespace) == []
        assert await cluster.daemon_sets() == []
        await describe(cluster, "large", budgets={"memory": "1Gi"})
        await cluster.until_promoted("v1")
        await until_given(cluster, {"a": "", "b": "", "c": "int8/large"})
