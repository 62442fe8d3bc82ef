# SPDX-License-Identifier: Apache-2.0
"""What stands beside the cluster on the bridge: registry, model files, Prometheus."""

import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from e2e.rig.control_plane import ControlPlane
from e2e.rig.paths import CHECKOUT, cache_dir
from e2e.rig.process import Daemon
from e2e.rig.progress import wait_until
from e2e.rig.render import render_prometheus, render_registry
from e2e.rig.tools import tool
from e2e.rig.topology import (
    BRIDGE_ADDRESS,
    MODELS_PORT,
    MODELS_TLS_PORT,
    PROMETHEUS_PORT,
    REGISTRY,
)

MODELS_ROOT: Final = CHECKOUT / "e2e" / "models"
PARTS: Final = ("registry", "models", "models-tls", "prometheus")
_HEALTH: Final = {
    "registry": f"http://{REGISTRY}/v2/",
    "models": f"http://{BRIDGE_ADDRESS}:{MODELS_PORT}/README.md",
    "prometheus": f"http://{BRIDGE_ADDRESS}:{PROMETHEUS_PORT}/-/ready",
}


def faults_file(plane: ControlPlane) -> Path:
    """The model server's fault file of an instance."""
    return plane.directory / "model-faults.json"


def start_services(plane: ControlPlane) -> None:
    """Start what does not run; idempotent."""
    for part in PARTS:
        start_service(plane, part)


def start_service(plane: ControlPlane, part: str) -> None:
    """Start one of PARTS unless it runs, and wait until it answers."""
    daemon = plane.daemon(part)
    if daemon.alive:
        return
    if part == "registry":
        _start_registry(plane, daemon)
    elif part == "prometheus":
        _start_prometheus(plane, daemon)
    else:
        _start_models(plane, daemon, tls=part == "models-tls")
    url = _HEALTH.get(part)
    if url is None:
        daemon.check()
        return

    def answers() -> bool:
        daemon.check()
        return is_answering(url)

    wait_until(f"{part} answering on {url}", answers, timeout_seconds=30, interval_seconds=0.1)


def is_answering(url: str) -> bool:
    """Whether an HTTP server answers there at all, with anything below 500."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def _start_registry(plane: ControlPlane, daemon: Daemon) -> None:
    # The images outlive the instance: the next one finds them by their content tags.
    storage = cache_dir() / "registry"
    storage.mkdir(parents=True, exist_ok=True)
    config = plane.directory / "registry.yaml"
    config.write_text(render_registry(address=REGISTRY, storage=storage))
    daemon.start([tool("registry"), "serve", config], env={"OTEL_TRACES_EXPORTER": "none"})


def _start_models(plane: ControlPlane, daemon: Daemon, *, tls: bool) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "e2e.rig.fileserver",
        f"--root={MODELS_ROOT}",
        f"--address={BRIDGE_ADDRESS}",
        f"--port={MODELS_TLS_PORT if tls else MODELS_PORT}",
        f"--faults={faults_file(plane)}",
    ]
    if tls:
        pair = plane.authority.issue("models", common_name="models", addresses=[BRIDGE_ADDRESS])
        command += [f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}"]
    daemon.start(command, cwd=CHECKOUT, env={"PYTHONPATH": str(CHECKOUT)})


def _start_prometheus(plane: ControlPlane, daemon: Daemon) -> None:
    directory = plane.directory / "prometheus"
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "prometheus.yml"
    config.write_text(render_prometheus(kubeconfig=plane.kubeconfig))
    daemon.start(
        [
            tool("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--storage.tsdb.retention.time=12h",
            f"--web.listen-address={BRIDGE_ADDRESS}:{PROMETHEUS_PORT}",
            "--log.level=warn",
        ]
    )


def build_monitoring_objects() -> list[dict[str, Any]]:
    """Service monitoring/prometheus:9090, which leads from the cluster to the host's Prometheus."""
    metadata = {"name": "prometheus", "namespace": "monitoring"}
    port = {"name": "http", "port": PROMETHEUS_PORT, "protocol": "TCP"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [port | {"targetPort": PROMETHEUS_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": "prometheus"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
            "ports": [port],
        },
    ]
