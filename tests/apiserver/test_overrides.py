# SPDX-License-Identifier: Apache-2.0
"""Overrides on a real API server: what it refuses, and a site with settings of its own."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from e2e.rig import ControlPlane, RigError
from slmops.adapters.resources import DAEMON_SETS, DEPLOYMENTS, NODES
from slmops.api import SLMDeploymentSpec
from tests.apiserver import harness
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.harness import Cluster, until
from tests.apiserver.specs import changed, deployment

Body = dict[str, Any]
ENTRY: Body = {"name": "plant", "sites": ["north"], "runtime": {"slots": 1, "maxQueue": 4}}
ADAPTER: Body = {
    "name": "wording",
    "url": "https://models.example/adapters/wording.gguf",
    "sha256": "a" * 64,
    "size": 1000,
}
SITES = {"a": "north", "b": "north", "c": "south", "d": "south"}


def dry_run(control_plane: ControlPlane, body: Body) -> Body:
    """The object as the API server would store it; RigError with its words when it refuses."""
    text = control_plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", "-o", "yaml", stdin=yaml.safe_dump(body)
    )
    stored: Body = yaml.safe_load(text)
    return stored


def test_overrides_are_stored_as_written_and_absent_where_there_are_none(control_plane: ControlPlane) -> None:
    assert "overrides" not in dry_run(control_plane, deployment())["spec"]
    full = ENTRY | {
        "profiles": ["raspberry-pi-5"],
        "nodeSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
        "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "engine": "auto",
        "adapters": [ADAPTER, ADAPTER | {"name": "b", "url": "http://[::1]:80/x/b.onnx_adapter"}],
    }
    body = deployment(overrides=[full, {"name": "b", "profiles": ["x"], "engine": "llama.cpp"}])
    stored = dry_run(control_plane, body)["spec"]
    assert SLMDeploymentSpec.model_validate(stored) == SLMDeploymentSpec.model_validate(body["spec"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([{"name": "a", "engine": "auto"}], "set at least one of sites, profiles and nodeSelector"),
        ([{"name": "a", "sites": ["north"]}], "set at least one of runtime, resources, engine and adapters"),
        ([ENTRY, ENTRY], "Duplicate value"),
        ([ENTRY | {"sites": []}], "should have at least 1 items"),
        ([ENTRY | {"sites": ["two words"]}], r"spec\.overrides\[0\]\.sites\[0\]"),
        ([ENTRY | {"sites": ["north", "north"]}], "Duplicate value"),
        ([ENTRY | {"name": "Plant"}], r"spec\.overrides\[0\]\.name"),
        ([ENTRY | {"engine": "vllm"}], "Unsupported value"),
        ([ENTRY | {"runtime": {"slots": 0}}], r"spec\.overrides\[0\]\.runtime\.slots"),
        ([ENTRY | {"adapters": [ADAPTER, ADAPTER]}], "Duplicate value"),
        ([ENTRY | {"adapters": [ADAPTER | {"url": "https://x/a.bin"}]}], r"adapters\[0\]\.url"),
        ([ENTRY | {"adapters": [{"name": "a"}]}], r"adapters\[0\]\.sha256: Required value"),
        (
            [ENTRY | {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}],
            "the memory request is above its limit",
        ),
        ([ENTRY | {"name": f"o{index}"} for index in range(33)], "must have at most 32 items"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_field(
    control_plane: ControlPlane, overrides: list[Body], words: str
) -> None:
    with pytest.raises(RigError, match=words):
        dry_run(control_plane, deployment(overrides=overrides))


def test_replicas_are_refused_overrides(control_plane: ControlPlane) -> None:
    replicas = changed(deployment(), "spec.placement.mode", "Replicas")
    dry_run(control_plane, replicas)
    with pytest.raises(RigError, match=r"spec\.overrides: .*overrides need placement\.mode PerNode"):
        dry_run(control_plane, changed(replicas, "spec.overrides", [ENTRY]))


@pytest.fixture
async def cluster(make_cluster: MakeCluster) -> AsyncIterator[Cluster]:
    """Two nodes at each of two sites; `a`, of the north, is the pilot."""
    async with make_cluster("", nodes="abcd") as cluster:
        for name, site in SITES.items():
            await move(cluster, name, site)
        yield cluster


async def move(cluster: Cluster, node: str, site: str) -> None:
    body = {"metadata": {"labels": {"topology.kubernetes.io/zone": site}}}
    await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-{node}", body=body)


async def apply(cluster: Cluster, *overrides: Body) -> None:
    body = changed(harness.deployment(cluster.namespace, "v1"), "spec.overrides", list(overrides))
    await cluster.kube.apply(DEPLOYMENTS, namespace=cluster.namespace, body=body)


async def until_given(cluster: Cluster, expected: dict[str, str]) -> None:
    """Until each node serves one revision with this variant."""
    seen: dict[str, str] = {}

    async def holds() -> bool:
        nonlocal seen
        seen = {
            node: "+".join(value for key, value in labels.items() if "." not in key)
            for node, labels in (await cluster.node_labels()).items()
        }
        return seen == expected

    await until(f"{expected}", holds, seen=lambda: seen)


async def servers(cluster: Cluster, revision: str) -> dict[str, Body]:
    """Server container of each variant's DaemonSet of the revision."""
    found = await cluster.items(
        DAEMON_SETS,
        namespace=cluster.namespace,
        label_selector=f"slmops.dev/role=serve,slmops.dev/revision={revision}",
    )
    return {
        body["metadata"]["labels"]["slmops.dev/variant"]: body["spec"]["template"]["spec"]["containers"][0]
        for body in found
    }


def env_of(container: Body) -> Body:
    return {entry["name"]: entry.get("value") for entry in container["env"]}


async def test_a_site_has_its_settings_and_a_change_of_them_goes_out_in_waves(cluster: Cluster) -> None:
    north, south = {"a": "int4-plant", "b": "int4-plant"}, {"c": "int4", "d": "int4"}
    async with cluster.operator():
        await apply(cluster, ENTRY)
        first = await cluster.until_promoted("v1")
        await until_given(cluster, north | south)
        found = await servers(cluster, first)
        assert set(found) == {"int4-plant", "int4"}
        plant, other = env_of(found["int4-plant"]), env_of(found["int4"])
        assert (plant["SLM_SLOTS"], plant["SLM_MAX_QUEUE"]) == ("1", "4")
        assert (other["SLM_SLOTS"], other["SLM_MAX_QUEUE"]) == ("4", "32")
        assert {k for k in other if other[k] != plant[k]} == {"SLM_SLOTS", "SLM_MAX_QUEUE", "SLM_VARIANT"}

        cluster.provider.silent = True
        await apply(cluster, ENTRY | {"resources": {"requests": {"memory": "96Mi"}}})
        status = await cluster.until_judged()
        second, labels = status["updateRevision"], await cluster.node_labels()
        assert second != first and second in labels["a"]
        assert first in labels["b"] and second not in labels["b"], "its wave comes later"
        cluster.provider.silent = False
        await cluster.until_promoted_again(second)
        await until_given(cluster, north | south)
        found = await servers(cluster, second)
        memory = {name: server["resources"]["requests"]["memory"] for name, server in found.items()}
        assert memory == {"int4-plant": "96Mi", "int4": "64Mi"}

        await move(cluster, "c", "north")
        await until_given(cluster, north | {"c": "int4-plant", "d": "int4"})
        assert (await cluster.status())["stableRevision"] == second, "a node that moves rolls nothing out"
