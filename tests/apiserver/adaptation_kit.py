# SPDX-License-Identifier: Apache-2.0
"""Nodes at sites that adapt the model, and the end of the pods that train, which is a kubelet's to say.

The nodes are cordoned, which pods of DaemonSets do not mind: a Job's pod stays pending, and nobody but the
test says how it ends.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from slmops.adapters.errors import NotFound, Unavailable
from slmops.adapters.resources import (
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    NODES,
    PODS,
)
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample, Samples
from slmwire import paths
from slmwire.jobs import AdapterReport, TrainOutcome, parse_order, to_message
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Termination
from tests.apiserver import harness
from tests.apiserver.conftest import MakeCluster
from tests.apiserver.doubles import ScriptedProvider
from tests.apiserver.harness import NAME, Cluster, until
from tests.apiserver.model_kit import end_pod

Body = dict[str, Any]
SITES: Final = {"a": "north", "b": "north", "c": "south", "d": "south"}
NORTH: Final = {"a": "int4-north", "b": "int4-north"}
SOUTH: Final = {"c": "int4", "d": "int4"}
ADAPTATION: Final[Body] = {"sites": ["north"], "training": {"minExamples": 5, "cooldown": "1h"}}
HEALTHY: Final = {Preset.EVALUATION_SCORE: 0.99, Preset.FEEDBACK_SCORE: 0.9}
CONTAINERS: Final = ["prepare", "train", "judge", "keep"]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def base_digest(version: str) -> str:
    """Digest of the files that the resolver finds for a version of the model."""
    url = f"https://models.example/{version}/m.json"
    file = ManifestFile(path="model.onnx", size=4096, sha256=sha(url), url=f"{url}.onnx")
    return Manifest(files=(file,)).digest


def accepted(text: str, *, version: str = "v1") -> AdapterReport:
    """An adapter, named by a text, that answers better than the model without it."""
    return AdapterReport(
        outcome=TrainOutcome.ACCEPTED,
        sha256=sha(text),
        size_bytes=20_000,
        base_digest=base_digest(version),
        examples=60,
        held_out=15,
        before=0.4,
        after=0.8,
        golden_samples=8,
        golden_before=1.0,
        golden_after=1.0,
    )


REFUSED: Final = AdapterReport(
    outcome=TrainOutcome.NO_GAIN,
    message="no more of the held-back examples are answered as expected",
    examples=60,
    held_out=15,
    before=0.4,
    after=0.4,
    golden_samples=8,
    golden_before=1.0,
    golden_after=1.0,
)
TOO_FEW: Final = AdapterReport(
    outcome=TrainOutcome.TOO_FEW_EXAMPLES, message="3 examples, 5 are needed", examples=3
)


class ByVariant(ScriptedProvider):
    """A provider that has values for every class of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.judged: dict[str, float] = {}
        """FeedbackScore, by variant, where it is not good."""
        self.only_good = ""
        """The one revision that works at the north; empty: all do."""

    async def read(self, query: MetricQuery, settings: ProviderSettings) -> Samples:
        """Implements MetricsProvider."""
        assert query.preset is not None
        value = HEALTHY.get(query.preset, 0.0)
        found = dict.fromkeys(("int4", "int4-north", "int4-south"), value)
        if query.preset is Preset.FEEDBACK_SCORE:
            found |= self.judged
        if query.preset is Preset.ERROR_RATE and self.only_good not in ("", query.revision):
            found["int4-north"] = 0.9
        counts = query.preset is Preset.ERROR_RATE
        return {
            name: Sample(value=value, samples=500, events=value * 500 if counts else 0.0)
            for name, value in found.items()
        }


@dataclass
class Kubelet:
    """Ends the pods of trainings as they are told, in order; without a word left they stay as they are."""

    cluster: Cluster
    reports: list[AdapterReport] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Node of each pod that has ended."""

    async def run(self) -> None:
        while True:
            with suppress(NotFound, Unavailable):
                for pod in await pods(self.cluster) if self.reports else ():
                    if pod["status"].get("phase") == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                        await self._end(pod)
            await asyncio.sleep(0.2)

    async def _end(self, pod: Body) -> None:
        if not self.reports:
            return
        report, node = self.reports[0], node_of(self.cluster, pod)
        messages, failed = {"judge": to_message(report)}, "judge"
        if report.outcome == TrainOutcome.TOO_FEW_EXAMPLES:
            messages, failed = {"prepare": to_message(report)}, "prepare"
        elif report.outcome == TrainOutcome.ACCEPTED:
            messages["keep"], failed = Termination(digest=f"sha256:{report.sha256}").to_json(), ""
        await end_pod(self.cluster, pod, messages, failed=failed)
        self.reports.remove(report)
        self.ended.append(node)


async def pods(cluster: Cluster) -> list[Body]:
    return await cluster.items(
        PODS, namespace=cluster.namespace, label_selector=f"slmops.dev/adaptation={NAME}"
    )


async def jobs(cluster: Cluster) -> list[Body]:
    return await cluster.items(JOBS, namespace=cluster.namespace)


def node_of(cluster: Cluster, pod: Body) -> str:
    """The node that a pod is for, without the test's prefix."""
    text = json.dumps(pod["spec"]["affinity"])
    (node,) = [node for node in SITES if f'"{cluster.namespace}-{node}"' in text]
    return node


@dataclass
class Fleet:
    """The cluster, its kubelet, and the wishes of its user."""

    cluster: Cluster
    kubelet: Kubelet
    provider: ByVariant

    async def apply(self, version: str = "v1", *, adaptation: Body | None = ADAPTATION, **spec: Any) -> None:
        rollout = {"waves": [{"name": "all", "percent": 100}], "soak": "0s", "maxUnavailable": "100%"}
        body = harness.deployment(self.cluster.namespace, version, **rollout)
        # Nodes of a site give each other what was trained on one of them.
        body["spec"] |= {"distribution": {"peers": "Site"}} | spec
        if adaptation is not None:
            body["spec"]["adaptation"] = adaptation
        await self.cluster.kube.apply(DEPLOYMENTS, namespace=self.cluster.namespace, body=body)

    async def until_site(self, what: str, test: Callable[[Body], bool], *, site: str = "north") -> Body:
        """Wait until what status says of a site holds; it."""
        status = await self.cluster.until_status(what, lambda s: test(site_of(s, site)))
        return site_of(status, site)

    async def until_job(self, *, count: int = 1) -> list[Body]:
        """Wait until there are so many Jobs, each with a pod."""
        found: list[Body] = []

        async def holds() -> bool:
            nonlocal found
            found = await jobs(self.cluster)
            return len(found) == count and len(await pods(self.cluster)) == count

        await until(f"{count} Job(s) with a pod", holds, seen=lambda: [j["metadata"]["name"] for j in found])
        return found

    async def until_given(self, expected: Mapping[str, str]) -> None:
        """Wait until each node serves one revision with this variant."""
        seen: dict[str, str] = {}

        async def holds() -> bool:
            nonlocal seen
            seen = {
                node: "+".join(value for key, value in labels.items() if "." not in key)
                for node, labels in (await self.cluster.node_labels()).items()
            }
            return seen == expected

        await until(f"{expected}", holds, seen=lambda: seen)

    async def until_adapted(self, before: str, text: str) -> str:
        """Wait until a later revision than `before` with this adapter at the north is promoted; it."""
        status = await self.cluster.until_status("the adapter being promoted", lambda s: is_beyond(before, s))
        revision = str(status["stableRevision"])
        adapter = {"adapters/local.onnx_adapter": sha(text)}
        assert await self.files_of(revision, "int4-north") == {"model.onnx": ""} | adapter
        return revision

    async def files_of(self, revision: str, variant: str) -> dict[str, str]:
        """Path of each file of a variant; with its SHA-256 when it comes from nowhere but stores."""
        name = f"{NAME}-{revision}-{variant}"
        body = await self.cluster.kube.get(CONFIG_MAPS, namespace=self.cluster.namespace, name=name)
        (text,) = body["data"].values()
        return {
            file["path"]: file["sha256"] if file["url"] == "store:" else ""
            for file in json.loads(text)["files"]
        }

    async def server_env(self, revision: str, variant: str) -> Body:
        name = f"{NAME}-{revision}-{variant}"
        body = await self.cluster.kube.get(DAEMON_SETS, namespace=self.cluster.namespace, name=name)
        (server,) = (c for c in body["spec"]["template"]["spec"]["containers"] if c["name"] == "server")
        return {entry["name"]: entry.get("value") for entry in server["env"]}


def site_of(status: Body, site: str) -> Body:
    """What status says of a site; empty when it says nothing."""
    sites = (status.get("adaptation") or {}).get("sites") or ()
    found: Body = next((entry for entry in sites if entry["site"] == site), {})
    return found


def is_beyond(revision: str, status: Body) -> bool:
    """Whether another revision has been rolled out."""
    stable = status.get("stableRevision", revision)
    return stable == status["updateRevision"] != revision and harness.step_of(status) == "Completed"


@asynccontextmanager
async def fleet_of(make_cluster: MakeCluster, tail: str, *, nodes: str = "abcd") -> AsyncIterator[Fleet]:
    """Cordoned nodes, two at each of two sites, and a kubelet for Jobs."""
    async with make_cluster(tail, nodes=nodes) as cluster:
        for node in nodes:
            patch = {
                "metadata": {"labels": {"topology.kubernetes.io/zone": SITES[node]}},
                "spec": {"unschedulable": True},
            }
            await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-{node}", body=patch)
        cluster.provider = provider = ByVariant()
        kubelet = Kubelet(cluster)
        driver = asyncio.create_task(kubelet.run())
        try:
            yield Fleet(cluster=cluster, kubelet=kubelet, provider=provider)
        finally:
            driver.cancel()
            with suppress(asyncio.CancelledError):
                await driver


async def until_no_jobs(cluster: Cluster) -> None:
    async def none() -> bool:
        return not await jobs(cluster) and not await pods(cluster)

    await until("no Job and no pod of one", none)


def check_pod(pod: Body) -> None:
    """What a training may and may not do."""
    spec = pod["spec"]
    init, (keep,) = spec["initContainers"], spec["containers"]
    assert [c["name"] for c in (*init, keep)] == CONTAINERS
    assert spec["automountServiceAccountToken"] is False
    assert not spec.get("hostNetwork") and not spec.get("hostPID")
    for container in (*init, keep):
        context = container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"] and context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert not context.get("privileged")
    mounts = {c["name"]: {m["mountPath"]: m for m in c["volumeMounts"]} for c in (*init, keep)}
    assert mounts["prepare"][paths.EXAMPLES_DIR]["readOnly"] is True
    for name in ("train", "judge", "keep"):
        assert paths.EXAMPLES_DIR not in mounts[name], "only the first container sees what users wrote"
    order = parse_order(next(text for key, text in pod["metadata"]["annotations"].items() if "job" in key))
    assert (order.name, order.min_examples) == ("local", 5)
