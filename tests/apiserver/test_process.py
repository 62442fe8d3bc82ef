# SPDX-License-Identifier: Apache-2.0
"""The operator as it is run: `python -m slmops` with kopf, health endpoint, metrics and signals."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from e2e.rig import ControlPlane
from e2e.rig.control_plane import free_ports
from slmops.adapters.resources import DEPLOYMENTS, LEASES
from tests.apiserver.harness import NAME, WAIT_SECONDS, Cluster, condition, deployment, until

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 30
"""What the chart's pod has to end in."""


@asynccontextmanager
async def _process(
    kubeconfig: Path, namespace: str, **settings: str
) -> AsyncIterator[tuple[Process, int, int]]:
    health, metrics = free_ports(2)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "operator"),
        "KUBECONFIG": str(kubeconfig),
        "SLMOPS_RUNTIME_IMAGE": "registry.example/runtime:1",
        "SLMOPS_NAMESPACE": namespace,
        "SLMOPS_WATCH_NAMESPACES": namespace,
        "SLMOPS_HEALTH_PORT": str(health),
        "SLMOPS_METRICS_PORT": str(metrics),
        "SLMOPS_ALLOWED_FILE_PATHS": "/srv/models",
    } | settings
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "slmops", env=environment, stdout=PIPE, stderr=PIPE, cwd=ROOT
    )
    try:
        yield process, health, metrics
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _file_deployment(namespace: str) -> dict[str, object]:
    # A source that needs no network: the real resolver is at work here.
    body = deployment(namespace, "v1")
    file = {"path": "model.onnx", "size": 5, "sha256": "0" * 64}
    body["spec"]["variants"][0]["source"] = {"file": {"path": "/srv/models/v1", "files": [file]}}
    return body


async def test_process_installs_reports_and_ends_cleanly(cluster: Cluster, kwok: ControlPlane) -> None:
    namespace = cluster.namespace
    (page,) = free_ports(1)
    settings = {"SLMOPS_PAGE_PORT": str(page), "SLMOPS_HEALTH_HOST": "::1"}
    async with _process(kwok.kubeconfig, namespace, **settings) as (process, health, metrics):
        await cluster.kube.apply(DEPLOYMENTS, namespace=namespace, body=_file_deployment(namespace))
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        await cluster.until_status("all ready", lambda s: s["readyNodes"] == "4/4")
        body = await cluster.read()
        # kopf leaves no mark: the only finalizer is ours and there is no annotation of its own.
        assert body["metadata"]["finalizers"] == ["slmops.dev/cleanup"]
        assert not any("kopf" in key for key in body["metadata"].get("annotations", {}))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://[::1]:{health}/healthz") as answer:
                assert answer.status == 200
            for host in ("[::1]", "127.0.0.1"):
                async with session.get(f"http://{host}:{metrics}/metrics") as answer:
                    text = await answer.text()
            async with session.get(f"http://127.0.0.1:{page}/api/deployments/{namespace}/{NAME}") as answer:
                shown = await answer.json()
            open_page = await session.get(f"http://127.0.0.1:{page}/api/events")
            await open_page.content.readline()
        assert (shown["row"]["ready"], shown["leads"], shown["nodesKnown"]) == (4, True, True)
        assert [len(site["cells"]) for site in shown["grid"]["sites"]] == [4]
        assert f'slmops_nodes{{deployment="{NAME}",namespace="{namespace}",state="ready"}} 4.0' in text
        assert 'slmops_kubernetes_requests_total{code="200",resource="nodes",verb="patch"}' in text

        await cluster.kube.delete(DEPLOYMENTS, namespace=namespace, name=NAME)

        async def gone() -> bool:
            return not await cluster.items(DEPLOYMENTS, namespace=namespace)

        await until("the object being gone", gone)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), GRACE_SECONDS)
    assert process.returncode == 0, errors.decode()
    lines = [json.loads(line) for line in errors.decode().splitlines()]
    assert {"Installing", "Promoted", "Deleted"} <= {line.get("reason") for line in lines}
    assert all({"ts", "level", "msg"} <= line.keys() for line in lines)
    assert not [line for line in lines if line["level"] in ("error", "critical")], lines
    lease = await cluster.kube.get(LEASES, namespace=namespace, name="slmops")
    assert lease["spec"].get("holderIdentity", "") == ""


async def test_process_that_lost_the_lease_ends_with_a_failure(cluster: Cluster, kwok: ControlPlane) -> None:
    namespace = cluster.namespace
    async with _process(kwok.kubeconfig, namespace) as (process, _, _):

        async def held() -> bool:
            lease = await cluster.kube.get(LEASES, namespace=namespace, name="slmops")
            return bool(lease["spec"]["holderIdentity"])

        await until("the Lease being held", held)
        taken = {"spec": {"holderIdentity": "other"}}
        await cluster.kube.merge_patch(LEASES, namespace=namespace, name="slmops", body=taken)
        _, errors = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
    assert process.returncode == 1
    assert "was taken by other" in errors.decode()


async def test_second_process_waits_for_the_lease(cluster: Cluster, kwok: ControlPlane) -> None:
    namespace = cluster.namespace
    async with cluster.operator():
        await cluster.apply("v1")
        await cluster.until_promoted("v1")
        async with _process(kwok.kubeconfig, namespace) as (process, health, _):

            async def healthy() -> bool:
                with suppress(aiohttp.ClientError):
                    async with (
                        aiohttp.ClientSession() as session,
                        session.get(f"http://127.0.0.1:{health}/healthz") as answer,
                    ):
                        return answer.status == 200
                return False

            await until("the second process being healthy", healthy)
            lease = await cluster.kube.get(LEASES, namespace=namespace, name="slmops")
            assert lease["spec"]["holderIdentity"] == "operator-1"
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), GRACE_SECONDS)
    assert process.returncode == 0
    assert b"waiting for the Lease" in errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SLMOPS_RUNTIME_IMAGE": ""}, "SLMOPS_RUNTIME_IMAGE is not set"),
        ({"SLMOPS_PAGE_PORT": "80a"}, "SLMOPS_PAGE_PORT=80a: must be a port number"),
        ({"SLMOPS_PAGE_HOST": "localhost"}, "SLMOPS_PAGE_HOST=localhost: must be an IP address"),
        ({"SLMOPS_METRICS_PORT": "http"}, "SLMOPS_METRICS_PORT=http: must be a port number"),
        ({"SLMOPS_PROMETHEUS_URL": "prom:9090"}, "SLMOPS_PROMETHEUS_URL=prom:9090: must be a URL"),
    ],
)
async def test_wrong_setting_is_one_clear_line(
    kwok: ControlPlane, settings: dict[str, str], message: str
) -> None:
    async with _process(kwok.kubeconfig, "default", **settings) as (process, _, _):
        _, errors = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
    assert process.returncode == 2
    assert len(errors.decode().splitlines()) == 1
    assert message in errors.decode()


async def test_settled_process_is_silent(cluster: Cluster) -> None:
    """Nothing happens: nothing is read, written or asked, but for the Lease."""
    async with cluster.operator() as running:
        await cluster.apply("v1")
        revision = await cluster.until_promoted("v1")
        await cluster.until_settled(revision, 4)
        status = await cluster.until_status("all ready", lambda s: s["readyNodes"] == "4/4")
        assert condition(status, "Progressing")["status"] == "False"
        await cluster.until_quiet(running)
        running.client.writes.clear()
        asked = cluster.provider.asked
        version = (await cluster.read())["metadata"]["resourceVersion"]
        await asyncio.sleep(3)
        assert running.client.writes == []
        assert cluster.provider.asked == asked
        assert (await cluster.read())["metadata"]["resourceVersion"] == version
