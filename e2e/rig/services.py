# SPDX-License-Identifier: Apache-2.0
"""What stands beside the cluster on the bridge: registries, model files, S3, Prometheus."""

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.rig.control_plane import ControlPlane
from e2e.rig.paths import CHECKOUT, cache_dir
from e2e.rig.progress import wait_until
from e2e.rig.render import render_prometheus, render_registry
from e2e.rig.token_server import ISSUER
from e2e.rig.tools import tool
from e2e.rig.topology import (
    BASIC_REGISTRY,
    BRIDGE_ADDRESS,
    FAULTY_REGISTRY,
    FAULTY_REGISTRY_PORT,
    MODELS_PORT,
    MODELS_TLS_PORT,
    PASSWORD,
    PROMETHEUS_PORT,
    REGISTRY,
    S3_PORT,
    TOKEN_PORT,
    TOKEN_REGISTRY,
    USER,
)

MODELS_ROOT: Final = CHECKOUT / "e2e" / "models"
S3_BUCKET: Final = "models"
S3_REGION: Final = "edge-1"
_PASSWORD_BCRYPT: Final = "$2b$04$lNw.L.MEEtm665mQDY/MKuBNqxcNAM1853SYmSclZzvJ2xl.S5hYy"
_HEALTH: Final = {
    "registry": f"http://{REGISTRY}/v2/",
    "registry-basic": f"http://{BASIC_REGISTRY}/v2/",
    "registry-token": f"http://{TOKEN_REGISTRY}/v2/",
    "registry-faulty": f"http://{FAULTY_REGISTRY}/v2/",
    "tokens": f"http://{BRIDGE_ADDRESS}:{TOKEN_PORT}/healthz",
    "s3": f"http://{BRIDGE_ADDRESS}:{S3_PORT}/",
    "models": f"http://{BRIDGE_ADDRESS}:{MODELS_PORT}/README.md",
    "prometheus": f"http://{BRIDGE_ADDRESS}:{PROMETHEUS_PORT}/-/ready",
}


def faults_file(plane: ControlPlane) -> Path:
    """The model server's fault file of an instance."""
    return plane.directory / "model-faults.json"


def registry_faults_file(plane: ControlPlane) -> Path:
    """The fault file of the proxy before the registry."""
    return plane.directory / "registry-faults.json"


def start_services(plane: ControlPlane) -> None:
    """Start what does not run; idempotent."""
    for part in PARTS:
        start_service(plane, part)


def start_service(plane: ControlPlane, part: str) -> None:
    """Start one of PARTS unless it runs just so already, and wait until it answers.

    One that another checkout or another configuration started is replaced.
    """
    daemon = plane.daemon(part)
    command, config = _COMMANDS[part](plane)
    changed = config is not None and config.write()
    if daemon.alive and not changed and daemon.command == [str(word) for word in command]:
        return
    daemon.stop()
    daemon.start(command, cwd=CHECKOUT, env={"PYTHONPATH": str(CHECKOUT), "OTEL_TRACES_EXPORTER": "none"})
    url = _HEALTH.get(part)
    if url is None:
        daemon.check()
        return

    def answers() -> bool:
        daemon.check()
        return is_answering(url)

    wait_until(f"{part} answering on {url}", answers, timeout_seconds=120, interval_seconds=0.1)


def is_answering(url: str) -> bool:
    """Whether an HTTP server answers there at all, with anything below 500."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file as it is to be."""

    path: Path
    text: str

    def write(self) -> bool:
        """Write it; whether it differed from what was there."""
        if self.path.exists() and self.path.read_text() == self.text:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text)
        return True


Command = tuple[list[str | Path], ConfigFile | None]


def _build_registry(plane: ControlPlane) -> Command:
    # The images outlive the instance: the next one finds them by their content tags.
    storage = cache_dir() / "registry"
    storage.mkdir(parents=True, exist_ok=True)
    return _registry(plane, "registry", render_registry(address=REGISTRY, storage=storage))


def _registry(plane: ControlPlane, name: str, text: str) -> Command:
    config = ConfigFile(plane.directory / f"{name}.yaml", text)
    return [tool("registry"), "serve", config.path], config


# The two guarded ones show what was pushed to the open one: they have its files.


def _build_basic_registry(plane: ControlPlane) -> Command:
    users = plane.directory / "registry-users"
    ConfigFile(users, f"{USER}:{_PASSWORD_BCRYPT}\n").write()
    auth = {"htpasswd": {"realm": "slmops-rig", "path": str(users)}}
    text = render_registry(address=BASIC_REGISTRY, storage=cache_dir() / "registry", auth=auth)
    return _registry(plane, "registry-basic", text)


def _build_token_registry(plane: ControlPlane) -> Command:
    auth = {
        "token": {
            "realm": f"http://{BRIDGE_ADDRESS}:{TOKEN_PORT}/token",
            "service": "slmops-rig-registry",
            "issuer": ISSUER,
            "rootcertbundle": str(plane.authority.pair.certificate),
        }
    }
    text = render_registry(address=TOKEN_REGISTRY, storage=cache_dir() / "registry", auth=auth)
    return _registry(plane, "registry-token", text)


def _build_tokens(plane: ControlPlane) -> Command:
    pair = plane.authority.issue("registry-tokens", common_name="registry-tokens")
    command: list[str | Path] = [
        sys.executable, "-m", "e2e.rig.token_server", f"--address={BRIDGE_ADDRESS}", f"--port={TOKEN_PORT}",
        f"--user={USER}", f"--password={PASSWORD}", f"--certificate={pair.certificate}", f"--key={pair.key}",
    ]  # fmt: skip
    return command, None


def _build_faulty_registry(plane: ControlPlane) -> Command:
    command: list[str | Path] = [
        sys.executable, "-m", "e2e.rig.proxy", f"--upstream={REGISTRY}", f"--address={BRIDGE_ADDRESS}",
        f"--port={FAULTY_REGISTRY_PORT}", f"--faults={registry_faults_file(plane)}",
    ]  # fmt: skip
    return command, None


def _build_s3(plane: ControlPlane) -> Command:
    # A folder is a bucket, a file an object. The models come anew with each start of a fresh instance.
    root = plane.directory / "s3"
    bucket = root / S3_BUCKET
    if not bucket.is_dir():
        bucket.parent.mkdir(parents=True, exist_ok=True)
        partial = root.with_name("s3.new")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(MODELS_ROOT / "orders", partial)
        partial.rename(bucket)
    command: list[str | Path] = [
        tool("versitygw"), f"--port={BRIDGE_ADDRESS}:{S3_PORT}", f"--access={USER}", f"--secret={PASSWORD}",
        f"--region={S3_REGION}", "--quiet", "posix", "--nometa", root,
    ]  # fmt: skip
    return command, None


def _build_models(plane: ControlPlane) -> Command:
    command = _fileserver(plane, port=MODELS_PORT)
    return command, None


def _build_models_tls(plane: ControlPlane) -> Command:
    pair = plane.authority.issue("models", common_name="models", addresses=[BRIDGE_ADDRESS])
    secured = [f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}"]
    return [*_fileserver(plane, port=MODELS_TLS_PORT), *secured], None


def _fileserver(plane: ControlPlane, *, port: int) -> list[str | Path]:
    return [
        sys.executable,
        "-m",
        "e2e.rig.fileserver",
        f"--root={MODELS_ROOT}",
        f"--address={BRIDGE_ADDRESS}",
        f"--port={port}",
        f"--faults={faults_file(plane)}",
    ]


def _build_prometheus(plane: ControlPlane) -> Command:
    directory = plane.directory / "prometheus"
    text = render_prometheus(kubeconfig=plane.kubeconfig)
    config = ConfigFile(directory / "prometheus.yml", text)
    command: list[str | Path] = [
        tool("prometheus"),
        f"--config.file={config.path}",
        f"--storage.tsdb.path={directory / 'data'}",
        "--storage.tsdb.retention.time=12h",
        f"--web.listen-address={BRIDGE_ADDRESS}:{PROMETHEUS_PORT}",
        "--log.level=warn",
    ]
    return command, config


_COMMANDS: Final[Mapping[str, Callable[[ControlPlane], Command]]] = {
    "registry": _build_registry,
    "registry-basic": _build_basic_registry,
    "registry-token": _build_token_registry,
    "registry-faulty": _build_faulty_registry,
    "tokens": _build_tokens,
    "s3": _build_s3,
    "models": _build_models,
    "models-tls": _build_models_tls,
    "prometheus": _build_prometheus,
}
PARTS: Final = tuple(_COMMANDS)
"""The services, in the order of starting."""


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
