# SPDX-License-Identifier: Apache-2.0
"""From a source to the nodes without a hand: an SLMModel makes and measures versions, and an SLMDeployment
follows it.

The nodes are tainted against the Jobs, so that nobody but the test says anything about their pods.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from slmops.adapters.errors import NotFound, Unavailable
from slmops.adapters.resources import DEPLOYMENTS, DEVICE_PROFILES, MODELS, NODES, PODS, Resource
from slmops.api import API_VERSION, KIND, MODEL_KIND
from slmops.api.profile import PROFILE_KIND
from slmops.api.source import Source
from slmops.model.observed import Resolved
from slmwire.jobs import EvaluateReport, PublishReport, to_message
from slmwire.manifest import Manifest, ManifestFile
from tests.apiserver import harness
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.doubles import ScriptedResolver
from tests.apiserver.harness import Cluster, condition, until
from tests.apiserver.model_kit import end_pod, operator

EVENTS: Final = Resource(group="events.k8s.io", version="v1", plural="events", kind="Event")
REPOSITORY: Final = "registry.example/models/chat"
URL: Final = "https://models.example/chat/m.json"
TAINT: Final = "edge"
DEVICES: Final = {"a": "tiny", "b": "tiny", "c": "large"}
GIB: Final = 1 << 30
MISSING: Final = ("NoAcceptedVersion", "ModelsUnknown", "VersionUnfit", "ProfilesUnknown")
Body = dict[str, Any]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_of(text: str, *, size: int) -> Manifest:
    return Manifest(
        files=(ManifestFile(path="model.onnx", size=size, sha256=sha(text), url=f"{URL}/{text}"),)
    )


def version_of(text: str) -> str:
    """The name of the version that these bytes are."""
    return manifest_of(text, size=3 * GIB).digest.removeprefix("sha256:")[:10]


class MovingResolver(ScriptedResolver):
    """A URL behind which the bytes change, and images by their digest."""

    def __init__(self) -> None:
        super().__init__()
        self.history = ["one"]

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        """Implements SourceResolver."""
        if source.oci is not None:
            manifest = manifest_of(source.oci.image, size=GIB // 8)
            return Resolved(manifest=manifest, reference=source.oci.image)
        assert source.http is not None and source.http.url == URL
        pinned = source.http.sha256
        text = next((t for t in self.history if sha(t) == pinned), "") if pinned else self.history[-1]
        assert text, "a node could not find these bytes any more"
        return Resolved(manifest=manifest_of(text, size=3 * GIB), reference=f"sha256:{sha(text)}")


@dataclass
class Kubelet:
    """Ends every Job's pod well; int4 of the versions in `poor` answers badly."""

    cluster: Cluster
    poor: set[str] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            with suppress(NotFound, Unavailable):
                for pod in await self.cluster.items(
                    PODS, namespace=self.cluster.namespace, label_selector="slmops.dev/work"
                ):
                    if pod["status"].get("phase") == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                        await self._end(pod)
            await asyncio.sleep(0.2)

    async def _end(self, pod: Body) -> None:
        tags = {key.partition("/")[2]: value for key, value in pod["metadata"]["labels"].items()}
        version, variant = tags["version"], tags["variant"]
        message: dict[str, PublishReport | EvaluateReport]
        if tags["work"] == "optimise":
            digest = f"sha256:{sha(version + variant)}"
            reference = f"oci://{REPOSITORY}@{digest}"
            message = {"publish": PublishReport(digest=digest, reference=reference, size_bytes=1, files=1)}
        else:
            quality = 0.5 if variant == "int4" and version in self.poor else 0.9
            message = {
                "evaluate": EvaluateReport(
                    engine="onnxruntime", samples=10, exact_match=quality, memory_bytes=GIB // 4,
                    cache_bytes_per_token=1024,
                )
            }  # fmt: skip
        await end_pod(self.cluster, pod, {name: to_message(said) for name, said in message.items()})
        self.ended.append(f"{tags['work']}/{version}/{variant}")


@dataclass
class Pipeline:
    """A model, the deployment that follows it, and what happens to both."""

    cluster: Cluster
    kubelet: Kubelet
    resolver: MovingResolver

    def profile(self, device: str) -> str:
        return f"{sha(self.cluster.namespace)[:6]}-{device}"

    async def describe(self, device: str, **spec: Any) -> None:
        selector = {"matchLabels": {"test": self.cluster.namespace, "device": device}}
        body = {
            "apiVersion": API_VERSION,
            "kind": PROFILE_KIND,
            "metadata": {"name": self.profile(device)},
            "spec": {"nodeSelector": selector} | spec,
        }
        await self.cluster.kube.apply(DEVICE_PROFILES, body=body)

    async def model(self, **spec: Any) -> None:
        """Apply the SLMModel: fp16 for large devices, int4 for both classes."""
        tiny, large = self.profile("tiny"), self.profile("large")
        body = {
            "apiVersion": API_VERSION,
            "kind": MODEL_KIND,
            "metadata": {"name": "chat", "namespace": self.cluster.namespace},
            "spec": {
                "source": {"http": {"url": URL}},
                "pollInterval": "10s",
                "recipes": [
                    {"name": "fp16", "profiles": [large]},
                    {"name": "int4", "profiles": [tiny, large], "steps": [{"quantizeInt4": {}}]},
                ],
                "publish": {"oci": {"image": REPOSITORY}},
                "evaluation": {},
                "gates": {"maxQualityLoss": "2%"},
                "jobs": {
                    "optimizerImage": "optimizer:1",
                    "nodeSelector": {"matchLabels": {"nobody": "here"}},
                },
            }
            | spec,
        }
        await self.cluster.kube.apply(MODELS, namespace=self.cluster.namespace, body=body)

    async def deployment(self, **source: Any) -> None:
        body = harness.deployment(self.cluster.namespace, "")
        spec = body["spec"]
        del spec["variants"]
        spec["model"] = {"name": "orders", "from": {"name": "chat"} | source}
        spec["placement"]["tolerations"] = [{"key": TAINT, "operator": "Exists"}]
        spec["runtime"] = {"contextLength": 1024}
        assert body["kind"] == KIND
        await self.cluster.kube.apply(DEPLOYMENTS, namespace=self.cluster.namespace, body=body)

    async def model_status(self) -> Body:
        body = await self.cluster.kube.get(MODELS, namespace=self.cluster.namespace, name="chat")
        return body.get("status") or {}

    async def until_model(self, version: str, reason: str) -> Body:
        """Wait until the newest version is `version` with that reason; it."""
        newest: Body = {}

        async def holds() -> bool:
            nonlocal newest
            versions = (await self.model_status()).get("versions") or [{}]
            newest = versions[0]
            return (newest.get("version"), newest.get("reason")) == (version, reason)

        await until(f"{version}: {reason}", holds, seen=lambda: json.dumps(newest)[:3000])
        return newest

    async def given(self) -> dict[str, str]:
        """Variant and class that each node serves."""
        tail = f"-{sha(self.cluster.namespace)[:6]}-"
        return {
            node: "+".join(value.replace(tail, "/") for key, value in labels.items() if "." not in key)
            for node, labels in (await self.cluster.node_labels()).items()
        }

    async def warnings(self) -> list[str]:
        """Reasons of the Warnings that the deployment's model or profiles are not there."""
        found = await self.cluster.items(EVENTS, namespace=self.cluster.namespace)
        return sorted(
            e["reason"]
            for e in found
            if e["reason"] in MISSING and (e.get("regarding") or {}).get("kind") == KIND
        )


@pytest.fixture
async def pipeline(make_cluster: MakeCluster) -> AsyncIterator[Pipeline]:
    """Two tiny devices, one of them the pilot, and a large one."""
    async with make_cluster("", nodes="abc") as cluster:
        for name, device in DEVICES.items():
            patch = {
                "metadata": {"labels": {"device": device}},
                "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]},
            }
            await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-{name}", body=patch)
        resolver = MovingResolver()
        cluster.resolver = resolver
        kubelet = Kubelet(cluster)
        found = Pipeline(cluster=cluster, kubelet=kubelet, resolver=resolver)
        await found.describe("tiny", budgets={"memory": "1Gi"})
        await found.describe("large", variants={"strategy": "Preferred", "prefer": ["fp16"]})
        driver = asyncio.create_task(kubelet.run())
        try:
            yield found
        finally:
            driver.cancel()
            with suppress(asyncio.CancelledError):
                await driver
            for device in set(DEVICES.values()):
                await cluster.kube.delete(DEVICE_PROFILES, name=found.profile(device))


BY_CLASS: Final = {"a": "int4/tiny", "b": "int4/tiny", "c": "fp16/large"}


async def test_from_a_source_to_the_nodes_without_a_hand(pipeline: Pipeline) -> None:
    cluster = pipeline.cluster
    await pipeline.deployment()
    async with operator(cluster):
        status = await cluster.until_status(
            "the missing model being said", lambda s: condition(s, "ModelResolved").get("status") == "False"
        )
        assert "there is no SLMModel chat" in condition(status, "ModelResolved")["message"]
        await pipeline.model()
        first = await cluster.until_promoted(version_of("one"))
        await cluster.until_settled(first, 3)
        assert await pipeline.given() == BY_CLASS

        # The bytes behind the URL change: the rest is the pipeline's.
        cluster.provider.silent = True
        pipeline.resolver.history.append("two")
        await cluster.until_judged()
        labels = await cluster.node_labels()
        assert first not in labels["a"] and first in labels["b"] and first in labels["c"]
        warnings = await pipeline.warnings()
    # The operator dies in the middle of the rollout, and the next one sees nothing that is wrong.
    cluster.provider.silent = False
    async with operator(cluster):
        second = await cluster.until_promoted(version_of("two"))
        await cluster.until_settled(second, 3)
        assert await pipeline.given() == BY_CLASS
        assert await pipeline.warnings() == warnings
        pods = await cluster.serving_pods()

        # A version that fails its gate on the tiny class stops here.
        pipeline.kubelet.poor.add(version_of("three"))
        pipeline.resolver.history.append("three")
        newest = await pipeline.until_model(version_of("three"), "GateFailed")
        why = f"int4 on {pipeline.profile('tiny')}: quality loss"
        assert newest["message"].startswith(why)
        status = await cluster.until_status(
            "the deployment saying it", lambda s: why in condition(s, "ModelResolved").get("message", "")
        )
        resolved = condition(status, "ModelResolved")
        assert (resolved["status"], resolved["reason"]) == ("True", "Resolved")
        assert status["stableRevision"] == status["updateRevision"] == second
        assert await cluster.serving_pods() == pods, "what runs was not touched"

        # Without its model the deployment goes on serving and says so.
        await cluster.kube.delete(MODELS, namespace=cluster.namespace, name="chat")
        status = await cluster.until_status(
            "the model's absence being said",
            lambda s: condition(s, "ModelResolved").get("reason") == "NoAcceptedVersion",
        )
        assert "what runs is kept" in condition(status, "ModelResolved")["message"]
        assert condition(status, "Ready")["status"] == "True"
        assert await cluster.serving_pods() == pods
    # Made anew, it comes to the same version, which is the revision that runs.
    pipeline.resolver.history[:] = ["one", "two"]
    await pipeline.model()
    async with operator(cluster):
        await pipeline.until_model(version_of("two"), "VersionAccepted")
        status = await cluster.until_status(
            "the model being followed again", lambda s: condition(s, "ModelResolved").get("status") == "True"
        )
        assert status["stableRevision"] == status["updateRevision"] == second
        assert await cluster.serving_pods() == pods
    made = [work for work in pipeline.kubelet.ended if work.startswith("optimise")]
    assert len(made) == 4, "each version once, and again for the new model"


async def test_a_named_version_stays_and_is_left_by_name(pipeline: Pipeline) -> None:
    cluster = pipeline.cluster
    await pipeline.model(version="1.0", versionHistoryLimit=1)
    await pipeline.deployment(version="1.0")
    async with operator(cluster):
        first = await cluster.until_promoted("1.0")
        pipeline.resolver.history.append("two")
        await pipeline.model(version="2.0", versionHistoryLimit=1)
        await pipeline.until_model("2.0", "VersionAccepted")
        versions = [version["version"] for version in (await pipeline.model_status())["versions"]]
        assert versions == ["2.0", "1.0"], "what a deployment names is kept"
        status = await cluster.status()
        assert status["updateRevision"] == first and condition(status, "ModelResolved")["status"] == "True"
        await pipeline.deployment(channel="Latest")
        await cluster.until_promoted("2.0")
        await pipeline.deployment(version="7.0")
        status = await cluster.until_status(
            "the version that is not there being said",
            lambda s: condition(s, "ModelResolved").get("reason") == "NoAcceptedVersion",
        )
        assert "has no version 7.0" in condition(status, "ModelResolved")["message"]
        await pipeline.deployment(versionPattern="2.*")
        await cluster.until_promoted("2.0")
        assert await pipeline.given() == BY_CLASS
