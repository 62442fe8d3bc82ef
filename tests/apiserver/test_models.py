# SPDX-License-Identifier: Apache-2.0
"""SLMModels on a real API server with the real Job controller; the test plays the kubelet of their pods."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from slmops.adapters.resources import JOBS, MODELS, PODS, Resource
from slmops.api import API_VERSION, MODEL_KIND
from slmops.api.slmmodel_status import (
    MESSAGE_LIMIT,
    ModelEvaluationStatus,
    ModelVariantStatus,
    ModelVersionStatus,
    SLMModelStatus,
)
from slmops.api.source import Source
from slmops.model.observed import Resolved
from slmops.planning.slmmodel.versions import trimmed
from slmwire.jobs import EvaluateReport, PublishReport, to_message
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason, Termination
from tests.apiserver.doubles import ScriptedResolver
from tests.apiserver.harness import Cluster, condition, until
from tests.apiserver.model_kit import end_pod, operator

NAME: Final = "chat"
REPOSITORY: Final = "registry.example/models/chat"
EVENTS: Final = Resource(group="events.k8s.io", version="v1", plural="events", kind="Event")
Body = dict[str, Any]


class ModelResolver(ScriptedResolver):
    """Sources by URL, and images by their digest."""

    async def resolve(self, source: Source, *, secret: Mapping[str, str] | None = None) -> Resolved:
        """Implements SourceResolver."""
        if source.oci is None:
            return await super().resolve(source, secret=secret)
        digest = hashlib.sha256(source.oci.image.encode()).hexdigest()
        file = ManifestFile(path="model.onnx", size=2048, sha256=digest, url=f"https://{source.oci.image}")
        return Resolved(manifest=Manifest(files=(file,)), reference=source.oci.image)


def model_body(namespace: str, **spec: Any) -> Body:
    """Two variants. No node fits the Jobs: nobody but the test says anything about their pods."""
    return {
        "apiVersion": API_VERSION,
        "kind": MODEL_KIND,
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "source": {"http": {"url": "https://models.example/v1/m.json"}},
            "version": "1.0",
            "recipes": [{"name": "fp16"}, {"name": "int4", "steps": [{"quantizeInt4": {}}]}],
            "publish": {"oci": {"image": REPOSITORY}},
            "evaluation": {},
            "gates": {"maxQualityLoss": "2%", "maxMemory": "1Gi"},
            "jobs": {"nodeSelector": {"matchLabels": {"nobody": "here"}}, "optimizerImage": "optimizer:1"},
        }
        | spec,
    }


@pytest.fixture
async def models(cluster: Cluster) -> Cluster:
    """A cluster whose sources are those of models."""
    cluster.resolver = ModelResolver()
    return cluster


async def status_of(cluster: Cluster) -> Body:
    body = await cluster.kube.get(MODELS, namespace=cluster.namespace, name=NAME)
    return body.get("status") or {}


async def until_model(cluster: Cluster, what: str, test: Callable[[Body], bool]) -> Body:
    seen: Body = {}

    async def holds() -> bool:
        nonlocal seen
        seen = await status_of(cluster)
        return test(seen)

    await until(what, holds, seen=lambda: json.dumps(seen)[:3000])
    return seen


def variants_of(status: Body) -> list[Body]:
    """Variants of the newest version; none before the first look."""
    return [variant for version in status.get("versions", ())[:1] for variant in version["variants"]]


async def until_events(cluster: Cluster, *reasons: str) -> None:
    """Wait for Events about the model; they are posted in the background."""

    async def posted() -> bool:
        found = await cluster.items(EVENTS, namespace=cluster.namespace)
        about = {e["reason"] for e in found if (e.get("regarding") or {}).get("kind") == MODEL_KIND}
        return set(reasons) <= about

    await until(f"Events {reasons}", posted)


async def jobs_of(cluster: Cluster) -> dict[str, Body]:
    """Jobs by `work/variant`; several attempts would be an error of the test."""
    found: dict[str, Body] = {}
    for body in await cluster.items(JOBS, namespace=cluster.namespace):
        tags = body["metadata"]["labels"]
        key = f"{tags['slmops.dev/work']}/{tags['slmops.dev/variant']}"
        assert key not in found, key
        found[key] = body
    return found


async def pod_of(cluster: Cluster, work: str) -> Body:
    """The pod of a Job once the Job controller has made it."""
    pod: Body = {}

    async def there() -> bool:
        nonlocal pod
        job = (await jobs_of(cluster)).get(work)
        if job is None:
            return False
        selector = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
        pods = await cluster.items(PODS, namespace=cluster.namespace, label_selector=selector)
        pod = pods[0] if pods else {}
        return bool(pods)

    await until(f"the pod of {work}", there)
    return pod


async def end(cluster: Cluster, work: str, messages: Mapping[str, str], *, failed: str = "") -> None:
    """The pod of a Job ends."""
    await end_pod(cluster, await pod_of(cluster, work), messages, failed=failed)


async def publish(cluster: Cluster) -> None:
    digest = "sha256:" + "5" * 64
    report = PublishReport(digest=digest, reference=f"oci://{REPOSITORY}@{digest}", size_bytes=2048, files=1)
    await end(cluster, "optimise/int4", {"publish": to_message(report)})


async def measure(cluster: Cluster, variant: str, quality: float) -> None:
    report = EvaluateReport(
        engine="onnxruntime",
        samples=10,
        exact_match=quality,
        decode_tokens_per_second=21.5,
        memory_bytes=400_000_000,
    )
    await end(cluster, f"evaluate/{variant}", {"evaluate": to_message(report)})


async def test_a_version_is_made_measured_and_offered_across_a_restart(models: Cluster) -> None:
    await models.kube.apply(MODELS, namespace=models.namespace, body=model_body(models.namespace))
    async with operator(models) as running:
        await publish(models)
        await until_model(
            models,
            "int4 being published",
            lambda s: any(v.get("digest") for v in variants_of(s) if v["name"] == "int4"),
        )

        async def offered() -> bool:
            return running.operator.world.offer_of(models.namespace, NAME) is not None

        await until("the offer", offered)
        await until_events(models, "VersionFound", "VariantPublished")
    # While nobody looks, one measurement ends.
    await measure(models, "fp16", 0.90)
    async with operator(models) as running:
        await measure(models, "int4", 0.89)
        status = await until_model(
            models, "the version being accepted", lambda s: bool(s.get("acceptedVersion"))
        )

        async def accepted() -> bool:
            offer = running.operator.world.offer_of(models.namespace, NAME)
            return offer is not None and offer.versions[0].accepted

        await until("the accepted version being offered", accepted)
        offer = running.operator.world.offer_of(models.namespace, NAME)
        await until_events(models, "VersionAccepted")
    assert offer is not None
    assert [variant.name for variant in offer.versions[0].variants] == ["fp16", "int4"]
    assert status["acceptedVersion"] == "1.0" and condition(status, "Ready")["reason"] == "VersionAccepted"
    fp16, int4 = status["versions"][0]["variants"]
    assert fp16["source"]["http"]["url"] == "https://models.example/v1/m.json"
    assert int4["source"]["oci"]["image"] == f"{REPOSITORY}@sha256:{'5' * 64}"
    assert int4["evaluations"][0]["tokensPerSecond"] == "21.5"
    assert len(await jobs_of(models)) == 3, "each was made once"
    owners = {job["metadata"]["ownerReferences"][0]["kind"] for job in (await jobs_of(models)).values()}
    assert owners == {MODEL_KIND}


async def test_a_gate_leaves_a_variant_out_and_its_limit_is_said(models: Cluster) -> None:
    await models.kube.apply(MODELS, namespace=models.namespace, body=model_body(models.namespace))
    async with operator(models):
        await publish(models)
        await measure(models, "fp16", 0.90)
        await measure(models, "int4", 0.80)
        status = await until_model(
            models, "the version being decided", lambda s: bool(s.get("acceptedVersion"))
        )
    assert status["versions"][0]["message"] == "left out: int4"
    evaluated = condition(status, "Evaluated")
    assert (evaluated["status"], evaluated["reason"]) == ("False", "GateFailed")
    assert "quality loss 11.1 % is above 2 %" in evaluated["message"]


async def test_a_step_that_fails_is_said_with_its_words_and_jobs_go_with_the_model(models: Cluster) -> None:
    await models.kube.apply(MODELS, namespace=models.namespace, body=model_body(models.namespace))
    async with operator(models):
        words = Termination(reason=Reason.UNFIT.value, message="no MatMul to quantise").to_json()
        await end(models, "optimise/int4", {"step-0": words}, failed="step-0")
        status = await until_model(
            models, "the failure being said", lambda s: condition(s, "Optimised").get("reason") == "Unfit"
        )
        assert "step-0: no MatMul to quantise" in condition(status, "Optimised")["message"]
        await models.kube.delete(MODELS, namespace=models.namespace, name=NAME)

        async def gone() -> bool:
            return not await models.items(JOBS, namespace=models.namespace)

        await until("the Jobs being gone", gone)


async def test_the_api_server_refuses_what_makes_no_sense(models: Cluster) -> None:
    refused: list[Body] = [
        {"recipes": [{"name": "x", "steps": [{"distil": {}}]}]},
        {"recipes": [{"name": "x", "steps": [{"prune": {"method": "NM"}}]}]},
        {"evaluation": {"metric": "Score"}},
        {"publish": {}},
    ]
    for changes in refused:
        body = model_body(models.namespace, **changes)
        with pytest.raises(Exception, match=r"exactly one of|needs"):
            await models.kube.create(MODELS, namespace=models.namespace, body=body)


async def test_the_largest_status_that_is_kept_can_be_stored(models: Cluster) -> None:
    """Sixteen variants on sixteen classes that all failed at length."""
    entry = ModelEvaluationStatus(
        engine="onnxruntime", samples=100, exact_match="0.123456", perplexity="12.345678", score="0.5",
        prompt_tokens_per_second="123.456789", tokens_per_second="12.345678", first_token="1.234567",
        memory_bytes=1 << 33, cache_bytes_per_token=1 << 16, measured_at="2026-01-01T00:00:00Z",
        verdict="Fail", reason="GateFailed", message="x" * MESSAGE_LIMIT, key="0" * 16,
    )  # fmt: skip
    full = [entry.model_copy(update={"profile": f"profile-{i}"}) for i in range(16)]
    variants = [
        ModelVariantStatus(name=f"r{i}", digest="sha256:" + "0" * 64, evaluations=full) for i in range(16)
    ]
    small = ModelVersionStatus(version="", variants=variants[:6])
    versions = [
        small.model_copy(update={"version": f"v{i}", "variants": variants if i in (0, 9) else small.variants})
        for i in range(10)
    ]
    versions[9] = versions[9].model_copy(update={"accepted": True})
    kept = trimmed(versions, limit=20, in_use=())
    assert (kept[0].version, kept[-1].version) == ("v0", "v9") and len(kept) < len(versions)
    await models.kube.apply(MODELS, namespace=models.namespace, body=model_body(models.namespace))
    body = await models.kube.get(MODELS, namespace=models.namespace, name=NAME)
    body["status"] = SLMModelStatus(versions=kept).to_body()
    await models.kube.replace(MODELS, namespace=models.namespace, body=body, subresource="status")
    stored = (await status_of(models))["versions"]
    assert [version["version"] for version in stored] == [version.version for version in kept]


@pytest.mark.parametrize("writes", range(8))
async def test_killed_before_any_write_the_end_is_the_same(models: Cluster, writes: int) -> None:
    body = model_body(models.namespace)
    body["spec"] |= {"recipes": [{"name": "int4", "steps": [{"quantizeInt4": {}}]}]}
    await models.kube.apply(MODELS, namespace=models.namespace, body=body)

    async def drive() -> None:
        await publish(models)
        await measure(models, "int4", 0.9)

    driver = asyncio.create_task(drive())
    try:
        async with operator(models, die_before=writes) as running:

            async def dead_or_accepted() -> bool:
                assert running.task is not None
                return running.task.done() or bool((await status_of(models)).get("acceptedVersion"))

            await until("death or acceptance", dead_or_accepted)
        async with operator(models):
            status = await until_model(models, "acceptance", lambda s: bool(s.get("acceptedVersion")))
    finally:
        await driver
    assert status["versions"][0]["variants"][0]["step"] == "Accepted"
    assert len(await jobs_of(models)) == 2, "no Job was made twice"
