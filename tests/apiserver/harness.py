# SPDX-License-Identifier: Apache-2.0
"""The operator in this process on a real API server, with doubles at its two outward ports.

The planner, the caches, the writes, the DaemonSet controller and the scheduler are the real ones; the
kubelets are KWOK's, which set every pod Ready.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from slmops.adapters.clock import SystemClock
from slmops.adapters.errors import Conflict, NotFound, Unavailable
from slmops.adapters.kube import KubeClient
from slmops.adapters.reflector import Reflector
from slmops.adapters.resources import DAEMON_SETS, DEPLOYMENTS, NODES, PODS, Resource
from slmops.api import API_VERSION, KIND
from slmops.model.config import OperatorConfig
from slmops.planning.names import Names
from slmops.runtime.onlooker import Onlooker
from slmops.runtime.operator import Operator, Parts
from slmwire.labels import REVISION, ROLE
from tests.apiserver.doubles import CountingClient, Killed, ScriptedProvider, ScriptedResolver

NAME: Final = "orders"
WAIT_SECONDS: Final = 120.0
"""Bounds a failure: what takes seconds takes a minute on a machine that has other things to do."""
QUIET_SECONDS: Final = 3.0
"""An operator that has not written for so long has nothing left to write."""
SOAKS_ON: Final = {"soak": "30m", "progressDeadline": "1h"}
"""Settings of a rollout whose waves soak until the test goes on, by an annotation or with another spec."""
_KWOK: Final = "kwok.x-k8s.io/node"
NAMESPACES: Final = Resource(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False)
Body = dict[str, Any]


@dataclass
class Cluster:
    """A namespace of its own with nodes of its own."""

    kube: KubeClient
    connect: Callable[[], CountingClient]
    namespace: str
    provider: ScriptedProvider = field(default_factory=ScriptedProvider)
    resolver: ScriptedResolver = field(default_factory=ScriptedResolver)
    runs: int = 0

    async def remove(self) -> None:
        """Take everything away without waiting for it, also what a dead operator left behind."""
        for body in await self.items(DEPLOYMENTS, namespace=self.namespace):
            name = body["metadata"]["name"]
            await self.kube.merge_patch(
                DEPLOYMENTS, namespace=self.namespace, name=name, body={"metadata": {"finalizers": None}}
            )
        await self.kube.delete(NAMESPACES, name=self.namespace)
        for node in await self.items(NODES):
            if node["metadata"]["name"].startswith(f"{self.namespace}-"):
                await self.kube.delete(NODES, name=node["metadata"]["name"])

    # Nodes

    async def add_node(self, name: str, **labels: str) -> str:
        """A Ready node of this test; returns its full name."""
        full = f"{self.namespace}-{name}"
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": full,
                "annotations": {_KWOK: "fake"},
                "labels": {"test": self.namespace, "kubernetes.io/hostname": full} | labels,
            },
        }
        await self.kube.apply(NODES, body=body)

        async def ready() -> bool:
            return _ready(await self.kube.get(NODES, name=full))

        await until("the node being Ready", ready)
        return full

    async def node_offline(self, node: str) -> None:
        """Its kubelet stops reporting: KWOK lets go of it and the condition turns Unknown."""
        await self.kube.merge_patch(NODES, name=node, body={"metadata": {"annotations": {_KWOK: None}}})
        silent_looks = 0

        async def stays_silent() -> bool:
            # KWOK may hear later than we that the node is not its own any more, and make it Ready again.
            nonlocal silent_looks
            body = await self.kube.get(NODES, name=node)
            silent_looks = 0 if _ready(body) else silent_looks + 1
            if not silent_looks:
                with suppress(Conflict):
                    await self._set_unknown(body)
            return silent_looks > 10

        await until("the node being silent", stays_silent)

    async def node_online(self, node: str) -> None:
        """Its kubelet is back."""
        await self.kube.merge_patch(NODES, name=node, body={"metadata": {"annotations": {_KWOK: "fake"}}})

        async def ready() -> bool:
            return _ready(await self.kube.get(NODES, name=node))

        await until("the node being Ready again", ready)

    async def _set_unknown(self, body: Body) -> None:
        for condition in body["status"]["conditions"]:
            if condition["type"] == "Ready":
                condition["status"] = "Unknown"
                condition["reason"] = "NodeStatusUnknown"
        await self.kube.replace(NODES, body=body, subresource="status")

    async def node_labels(self) -> dict[str, dict[str, str]]:
        """Our labels per node of this test, without the prefix."""
        prefix = Names(self.namespace, NAME).label_prefix
        return {
            body["metadata"]["name"].removeprefix(f"{self.namespace}-"): {
                key.removeprefix(prefix): value
                for key, value in body["metadata"]["labels"].items()
                if key.startswith(prefix)
            }
            for body in await self.items(NODES, label_selector=f"test={self.namespace}")
        }

    # Objects

    async def items(self, resource: Resource, *, namespace: str = "", label_selector: str = "") -> list[Body]:
        """All items of a list."""
        result: list[Body] = []
        async with aclosing(
            self.kube.list(resource, namespace=namespace, label_selector=label_selector)
        ) as pages:
            async for page in pages:
                result += page["items"]
        return result

    async def serving_pods(self) -> dict[str, str]:
        """Uid of each serving pod that is not being deleted -> its revision."""
        pods = await self.items(PODS, namespace=self.namespace, label_selector=f"{ROLE}=serve")
        return {
            p["metadata"]["uid"]: p["metadata"]["labels"][REVISION]
            for p in pods
            if "deletionTimestamp" not in p["metadata"]
        }

    async def daemon_sets(self) -> list[str]:
        """Names of all DaemonSets."""
        return [d["metadata"]["name"] for d in await self.items(DAEMON_SETS, namespace=self.namespace)]

    async def apply(self, version: str, **rollout: Any) -> None:
        """Apply the SLMDeployment with one model version, and settings of the rollout."""
        await self.kube.apply(
            DEPLOYMENTS, namespace=self.namespace, body=deployment(self.namespace, version, **rollout)
        )

    async def annotate(self, **annotations: str) -> None:
        """Set annotations of the SLMDeployment (`/` written as `__`)."""
        named = {key.replace("__", "/"): value for key, value in annotations.items()}
        await self.kube.merge_patch(
            DEPLOYMENTS,
            namespace=self.namespace,
            name=NAME,
            body={"metadata": {"annotations": {f"slmops.dev/{k}": v for k, v in named.items()}}},
        )

    async def read(self) -> Body:
        """The SLMDeployment."""
        return await self.kube.get(DEPLOYMENTS, namespace=self.namespace, name=NAME)

    async def status(self) -> Body:
        """Its status."""
        status: Body = (await self.read()).get("status") or {}
        return status

    async def until_status(self, what: str, test: Callable[[Body], bool]) -> Body:
        """Wait for a status; fails with the last one seen."""
        seen: Body = {}

        async def holds() -> bool:
            nonlocal seen
            seen = await self.status()
            return test(seen)

        await until(what, holds, seen=lambda: seen)
        return seen

    async def until_promoted(self, version: str) -> str:
        """Wait until `version` is stable and the rollout completed; its revision."""
        status = await self.until_status(
            f"{version} being promoted",
            lambda s: (
                s.get("modelVersion") == version
                and s["stableRevision"] == s["updateRevision"]
                and step_of(s) == "Completed"
            ),
        )
        return str(status["stableRevision"])

    async def until_judged(self) -> Body:
        """Wait until the first wave's nodes serve and its metrics are asked for; the status.

        With `provider.silent` set before, the rollout stays there until it is not any more.
        """
        return await self.until_status(
            "the first wave being judged", lambda s: step_of(s) == "Analysing" and s["rollout"]["wave"] == 0
        )

    async def until_promoted_again(self, revision: str) -> Body:
        """Wait until an earlier revision is the stable one and the rollout completed; the status."""
        return await self.until_status(
            f"{revision} being promoted",
            lambda s: s["stableRevision"] == s["updateRevision"] == revision and step_of(s) == "Completed",
        )

    async def until_settled(self, revision: str, nodes: int) -> None:
        """Wait until exactly `nodes` nodes serve `revision` and nothing else is left on any."""
        expected = {revision}
        labels: dict[str, dict[str, str]] = {}
        pods: dict[str, str] = {}

        async def settled() -> bool:
            nonlocal labels, pods
            labels = await self.node_labels()
            given = [set(found) for found in labels.values() if found]
            pods = await self.serving_pods()
            return (
                len(given) == nodes and all(g == expected for g in given) and len(pods) == nodes
                and set(pods.values()) == expected
            )  # fmt: skip

        await until(f"{nodes} nodes serving {revision} alone", settled, seen=lambda: (labels, pods))

    async def until_over(self, running: "Running", ended: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until the operator died, or `ended` holds and it writes no more; whether it died."""
        assert running.task is not None
        task = running.task

        async def over() -> bool:
            return task.done() or await ended()

        await until("the end or death", over)
        await _until_quiet(running.client, unless=task.done)
        return task.done()

    async def until_quiet(self, running: "Running") -> None:
        """Wait until the operator writes no more."""
        await _until_quiet(running.client)

    # The operator

    @asynccontextmanager
    async def operator(
        self, *, die_before: int | None = None, onlooker: Onlooker | None = None
    ) -> AsyncIterator["Running"]:
        """The operator, running until the end of the block (as a process that is ended cleanly)."""
        self.runs += 1
        client = self.connect()
        client.writes = []
        client.die_before = die_before
        running = Running(client=client, operator=self._build(client, onlooker or Onlooker()))
        task = asyncio.create_task(running.run())
        running.task = task
        try:
            yield running
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, BaseExceptionGroup, Killed):
                await task
            await client.close()

    def _build(self, client: KubeClient, onlooker: Onlooker) -> Operator:
        return Operator(
            Parts(
                kube=client,
                provider=self.provider,
                resolver=self.resolver,
                clock=SystemClock(),
                config=OperatorConfig(
                    runtime_image="registry.example/runtime:1",
                    optimizer_image="registry.example/optimizer:1",
                    prometheus_url="http://prometheus.example:9090",
                    release_timeout_seconds=20,
                    # The nodes of a test have just come up, and have no proxy to wait for.
                    node_settle_seconds=0,
                ),
                namespace=self.namespace,
                identity=f"operator-{self.runs}",
                watch_namespaces=(self.namespace,),
                onlooker=onlooker,
            )
        )


@dataclass
class Running:
    """An operator that runs."""

    client: CountingClient
    operator: Operator
    task: "asyncio.Task[None] | None" = None

    async def run(self) -> None:
        """The operator with a feed of SLMDeployments, which is kopf's part in production."""

        def feed(_: Any, old: Body | None, new: Body | None) -> None:
            if new is not None:
                self.operator.deployment_seen(new)
            elif old is not None:
                self.operator.deployment_gone(old)

        stream: Reflector[Body] = Reflector(
            self.client,
            DEPLOYMENTS,
            trim=dict,
            on_change=feed,
            namespace=self.operator.guard.namespace,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.run())
            group.create_task(self.operator.run())


def deployment(namespace: str, version: str, **rollout: Any) -> Body:
    """Three waves with soak and interval of a second; `version` decides the source."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "model": {"name": "orders", "version": version},
            "variants": [
                {
                    "name": "int4",
                    "source": {"http": {"url": f"https://models.example/{version}/m.json"}},
                    "resources": {"requests": {"memory": "64Mi"}},
                }
            ],
            "placement": {"nodeSelector": {"matchLabels": {"test": namespace}}},
            "rollout": {
                "waves": [
                    {"name": "pilot", "nodeSelector": {"matchLabels": {"pilot": "true"}}},
                    {"name": "half", "percent": 50},
                    {"name": "all", "percent": 100},
                ],
                "maxUnavailable": "50%",
                "soak": "1s",
                "progressDeadline": "60s",
                "analysis": analysis(passes=1),
            }
            | rollout,
        },
    }  # fmt: skip


def analysis(*, passes: int) -> Body:
    """Two metrics, one absolute and one against stable; one failed measurement decides."""
    errors = {"name": "errors", "preset": "ErrorRate", "max": "0.05", "failureLimit": 1}
    quality = {
        "name": "quality",
        "preset": "EvaluationScore",
        "maxDegradation": "0.03",
        "failureLimit": 1,
    }
    return {"interval": "1s", "passes": passes, "metrics": [errors, quality]}


def condition(status: Body, kind: str) -> Body:
    """A condition; empty when it is not there."""
    found: Body = next((c for c in status.get("conditions", ()) if c["type"] == kind), {})
    return found


def step_of(status: Body) -> str:
    """The rollout's step; empty before the first."""
    return str((status.get("rollout") or {}).get("step", ""))


def verdicts(status: Body) -> Mapping[str, str]:
    """Verdict by wave."""
    return {wave["name"]: wave["verdict"] for wave in status["rollout"]["waves"]}


async def until(
    what: str,
    test: Callable[[], Awaitable[bool]],
    *,
    seen: Callable[[], object] = lambda: "",
    seconds: float = WAIT_SECONDS,
) -> None:
    """Poll until `test` holds; AssertionError with what was seen when it does not in time.

    An API server that has no answer is asked again.
    """
    end = asyncio.get_running_loop().time() + seconds
    unanswered = ""
    while True:
        try:
            if await test():
                return
        except (NotFound, Unavailable) as error:
            unanswered = f"; last error: {error}"
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}; last seen: {seen()}{unanswered}")
        await asyncio.sleep(0.1)


async def _until_quiet(client: CountingClient, *, unless: Callable[[], bool] = lambda: False) -> None:
    """Wait until nothing has been written or was under way for a while, or `unless` holds."""
    clock = asyncio.get_running_loop().time
    written, since = len(client.writes), clock()
    while clock() - since < QUIET_SECONDS and not unless():
        await asyncio.sleep(0.1)
        if client.under_way or len(client.writes) != written:
            written, since = len(client.writes), clock()


def _ready(node: Body) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
