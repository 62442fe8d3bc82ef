# SPDX-License-Identifier: Apache-2.0
"""From a pushed model to the fleet with no hand in between: made, measured, judged, rolled out by class."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient, OperatorImages
from e2e.lib.artifacts import Repository
from e2e.lib.manifests import API_VERSION, MODEL, golden_cases, model_dir
from e2e.lib.observe import condition, is_true
from e2e.rig.images import build_images
from e2e.rig.topology import REGISTRY
from e2e.suite.conftest import Make, need_rig
from e2e.suite.faults import wait_answer

CLASS_LABEL = "example.com/device-class"
CLASSES = ("server", "board", "box")
"""Device classes of the three edge nodes; each gets another variant of the same model."""
VARIANTS = {"server": "fp32", "board": "int4", "box": "gguf"}
SOURCE = "e2e-models/pushed"
MADE = f"e2e-models/made-{time.time_ns():x}"
"""New for each run: what a tag holds is never replaced, and an earlier optimizer made other bytes."""
TAG = "main"
MODEL_KIND = "slmmodels.slmops.dev"
MAKE_SECONDS = 300.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """An SLMModel that follows a tag of the registry, and the SLMDeployment that follows it."""

    cluster: Cluster
    deployment: Deployment
    nodes: dict[str, str]
    """By device class."""
    source: Repository

    def push(self, version: str) -> None:
        """What a training pipeline does: the tag stands for another model now."""
        self.source.push_files(model_dir(version, variant="fp32"), TAG)

    def model(self) -> Json:
        """The SLMModel."""
        return self.cluster.need(MODEL_KIND, MODEL, namespace=self.deployment.namespace)

    def newest(self) -> Json:
        """Its newest version; empty before there is one."""
        versions = self.model().get("status", {}).get("versions") or [{}]
        return dict(versions[0])

    def variant(self, name: str) -> Json:
        """A variant of the newest version."""
        return next(entry for entry in self.newest()["variants"] if entry["name"] == name)

    def wait_judged(self, *, after: str = "") -> Json:
        """Wait until a version newer than `after` is accepted or is not going to be; return it."""

        def judged() -> Json | None:
            version = self.newest()
            if version.get("version", after) == after:
                return None
            open_ = [v for v in version["variants"] if not v.get("verdict")]
            return None if open_ else version

        return (
            self.cluster.wait_for(
                "the newest version being judged",
                judged,
                timeout_seconds=MAKE_SECONDS,
                describe=self.describe,
            )
            or {}
        )

    def describe(self) -> str:
        """What the model says, and its Jobs."""
        pods = self.cluster.find_all("pods", namespace=self.deployment.namespace)
        shown = [(pod["metadata"]["name"], pod["status"].get("phase")) for pod in pods]
        return f"{self.model().get('status')}\n{shown}"


def profile(name: str, **spec: Any) -> Json:
    """A DeviceProfile of the nodes that are labelled for it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "DeviceProfile",
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"matchLabels": {CLASS_LABEL: name}}, **spec},
    }


def slm_model(namespace: str, *, optimizer: str) -> Json:
    """Four variants for three classes; one of them loses most of its quality."""
    return {
        "apiVersion": API_VERSION,
        "kind": "SLMModel",
        "metadata": {"name": MODEL, "namespace": namespace},
        "spec": {
            "source": {"oci": {"image": f"{REGISTRY}/{SOURCE}:{TAG}", "plainHttp": True}},
            "pollInterval": "10s",
            "recipes": [
                {"name": "fp32", "profiles": ["server"]},
                {
                    "name": "int4",
                    "profiles": ["board"],
                    "steps": [{"quantizeInt4": {"blockSize": 32}}],
                },
                {
                    "name": "gguf",
                    "profiles": ["box"],
                    "engine": "llama.cpp",
                    "steps": [{"convert": {"to": "GGUF", "type": "Q8_0"}}],
                },
                {
                    "name": "halved",
                    "profiles": ["server"],
                    "steps": [{"slice": {"headsPercent": 50}}, {"quantizeInt8": {}}],
                },
            ],
            "publish": {"oci": {"image": f"{REGISTRY}/{MADE}", "plainHttp": True}},
            "evaluation": {"reference": "fp32"},
            "gates": {"maxQualityLoss": "5%", "minQuality": "0.9", "maxMemory": "1Gi"},
            "jobs": {
                "optimizerImage": optimizer,
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
            },
        },
    }


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, make_deployment: Make, operator: OperatorImages) -> Iterator[Pipeline]:
    """The pipeline with v1 pushed."""
    need_rig(cluster)
    optimizer, llama = build_images(("slmops-optimizer", "slmops-runtime-llama-cpp"))
    deployment = make_deployment()
    nodes = dict(zip(CLASSES, cluster.edge_nodes, strict=True))
    for name, node in nodes.items():
        cluster.kubectl("label", "node", node, f"{CLASS_LABEL}={name}", "--overwrite")
    cluster.apply(
        profile("server", runtime={"threads": 1}),
        profile("board", variants={"prefer": ["int4*"]}, runtime={"threads": 1, "slots": 2}),
        profile("box", engine="llama.cpp", engineImage=llama.reference),
    )
    found = Pipeline(cluster=cluster, deployment=deployment, nodes=nodes, source=Repository(REGISTRY, SOURCE))
    found.push("v1")
    cluster.apply(slm_model(deployment.namespace, optimizer=optimizer.reference))
    body = deployment.manifest("v1")
    del body["spec"]["variants"]
    body["spec"]["model"] = {"name": MODEL, "from": {"name": MODEL}}
    cluster.apply(body)
    yield found
    cluster.delete(MODEL_KIND, MODEL, namespace=deployment.namespace)
    cluster.delete("slmd", deployment.name, namespace=deployment.namespace)
    for name, node in nodes.items():
        cluster.delete("deviceprofiles.slmops.dev", name)
        cluster.kubectl("label", "node", node, f"{CLASS_LABEL}-")


def test_three_classes_of_devices_get_three_variants_and_answer(
    pipeline: Pipeline, clients: dict[str, NodeClient]
) -> None:
    version = pipeline.wait_judged()
    assert version["accepted"], json.dumps(version, indent=1)
    verdicts = {entry["name"]: entry["verdict"] for entry in version["variants"]}
    assert verdicts == {"fp32": "Pass", "int4": "Pass", "gguf": "Pass", "halved": "Fail"}
    halved = pipeline.variant("halved")
    assert halved["reason"] == "GateFailed" and "server" in halved["message"]
    for entry in version["variants"]:
        for measured in entry["evaluations"]:
            assert float(measured["tokensPerSecond"]) > 0 and measured["memoryBytes"] > 10 << 20
            assert float(measured["perplexity"]) > 1
            expected = "llama.cpp" if entry["name"] == "gguf" else "onnxruntime"
            assert measured["engine"].startswith(expected)
    deployment = pipeline.deployment
    deployment.wait_promoted(version["version"])
    served = {}
    for name, node in pipeline.nodes.items():
        labels = deployment.pod_on(node)["metadata"]["labels"]
        served[name] = labels["slmops.dev/variant"].split("-")[0]
        wait_answer(deployment, clients[node], case=golden_cases("v1", variant="fp32")[0])
    assert served == VARIANTS


def test_a_pushed_model_that_is_not_good_enough_stops_before_the_fleet(pipeline: Pipeline) -> None:
    deployment = pipeline.deployment
    before, uids = pipeline.newest()["version"], {p["metadata"]["uid"] for p in deployment.pods()}
    pipeline.push("v3")
    version = pipeline.wait_judged(after=before)
    assert not version["accepted"] and version["reason"] == "GateFailed", json.dumps(version, indent=1)
    ready = condition(pipeline.model(), "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "EarlierVersion")
    assert deployment.status()["modelVersion"] == before
    assert {p["metadata"]["uid"] for p in deployment.pods()} == uids
    assert is_true(deployment.read(), "Ready")


def test_a_better_one_reaches_the_fleet_with_no_hand_in_between(
    pipeline: Pipeline, clients: dict[str, NodeClient]
) -> None:
    before = pipeline.newest()["version"]
    pipeline.push("v2")
    version = pipeline.wait_judged(after=before)
    assert version["accepted"], json.dumps(version, indent=1)
    deployment = pipeline.deployment
    deployment.wait_promoted(version["version"])
    for node in pipeline.nodes.values():
        wait_answer(deployment, clients[node], case=golden_cases("v2", variant="fp32")[0])


def test_a_model_too_big_for_every_node_is_refused_before_any_download(
    pipeline: Pipeline, make_deployment: Make
) -> None:
    giant = make_deployment("giant")
    body = giant.manifest("v1")
    variant = body["spec"]["variants"][0]
    variant["resources"] = {"requests": {"cpu": "50m"}}
    variant["memory"] = {"weights": "900Gi"}
    giant.cluster.apply(body)
    found = giant.wait_status(
        "being refused",
        lambda seen: condition(seen, "Accepted").get("reason") == "NoVariantFits",
        timeout_seconds=180,
    )
    message = condition(found, "Accepted")["message"]
    assert "weights 921600" in message and "the largest node" in message, message
    assert not giant.pods("prefetch") and not giant.pods()
