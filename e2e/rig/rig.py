# SPDX-License-Identifier: Apache-2.0
"""The full rig: control plane, real nodes, DNS, registry, model files and Prometheus, as one thing."""

import json
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from e2e.rig.access import ClusterAccess
from e2e.rig.apt import install_packages
from e2e.rig.argocd import ArgoCD
from e2e.rig.control_plane import ControlPlane, Store, instance_lock
from e2e.rig.dns import build_dns_objects, dns_image, image_archive
from e2e.rig.fleet import apply_fleet, start_fleet
from e2e.rig.network import (
    in_netns,
    is_link_up,
    limit_bandwidth,
    make_bridge,
    netns_file,
    remove_bridge,
    set_link,
)
from e2e.rig.node import PAUSE_IMAGE, Node, remove_mount_points
from e2e.rig.paths import cache_dir, instance_dir, instances
from e2e.rig.process import stop_all
from e2e.rig.progress import step, wait_until
from e2e.rig.services import (
    PARTS,
    build_monitoring_objects,
    faults_file,
    registry_faults_file,
    start_service,
    start_services,
)
from e2e.rig.shell import RigError, run
from e2e.rig.tools import build_tools
from e2e.rig.topology import (
    API_PORT,
    BASIC_REGISTRY,
    BRIDGE_ADDRESS,
    FAULTY_REGISTRY,
    MODELS_PORT,
    MODELS_TLS_PORT,
    PROMETHEUS_PORT,
    REGISTRY,
    S3_PORT,
    TOKEN_REGISTRY,
    plan_nodes,
)

READY_SECONDS: Final = 300
_FAMILIES: Final = (
    "kubernetes",
    "containerd",
    "cni",
    "pause",
    "coredns",
    "registry",
    "versitygw",
    "prometheus",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RigPlan:
    """What `up` was asked for; kept so that `down`, `status` and a second `up` know it."""

    edge_nodes: int
    store: Store


class Rig(ClusterAccess):
    """The rig known by `name`; an object for one that is up takes it over.

    `edge_nodes` and `store` count for the first `up` only; None takes what the rig has, or 3 and kine.
    """

    def __init__(
        self, name: str = "default", *, edge_nodes: int | None = None, store: Store | None = None
    ) -> None:
        self.name = name
        self.directory = instance_dir(name)
        kept = load_plan(name)
        if kept is not None and edge_nodes not in (None, kept.edge_nodes):
            raise RigError(f"rig {name} has {kept.edge_nodes} edge nodes: take it down first to change that")
        if kept is not None and store not in (None, kept.store):
            raise RigError(f"rig {name} is on {kept.store}: take it down first to change that")
        self.plan = kept or RigPlan(edge_nodes=edge_nodes or 3, store=store or "kine")
        self.control_plane = ControlPlane(
            name, store=self.plan.store, address=BRIDGE_ADDRESS, api_port=API_PORT
        )
        specs = plan_nodes(self.plan.edge_nodes)
        self.nodes = {spec.name: Node(spec=spec, control_plane=self.control_plane) for spec in specs}
        super().__init__(kubeconfig=self.control_plane.kubeconfig)

    # What it offers

    registry = REGISTRY
    prometheus_url = f"http://{BRIDGE_ADDRESS}:{PROMETHEUS_PORT}"
    models_url = f"http://{BRIDGE_ADDRESS}:{MODELS_PORT}"
    """Model files as the machine, the nodes and the pods see them."""
    models_tls_url = f"https://{BRIDGE_ADDRESS}:{MODELS_TLS_PORT}"
    basic_registry = BASIC_REGISTRY
    """The registry again, for those who show USER and PASSWORD."""
    token_registry = TOKEN_REGISTRY
    """And again, for those who bring a token of the token server."""
    faulty_registry = FAULTY_REGISTRY
    """The open registry behind a proxy that does what `set_registry_faults` says."""
    s3_url = f"http://{BRIDGE_ADDRESS}:{S3_PORT}"

    @property
    def authority(self) -> Path:
        """Certificate of the authority behind `models_tls_url`."""
        return self.control_plane.authority.pair.certificate

    @property
    def argocd(self) -> ArgoCD:
        """Argo CD, which runs only for those who call its `up`."""
        return ArgoCD(self.control_plane)

    @property
    def edge_nodes(self) -> tuple[str, ...]:
        """Names of the edge nodes."""
        return tuple(name for name in self.nodes if name != "server-0")

    # Life

    def up(self, *, kwok_nodes: int = 0) -> "Rig":
        """Bring everything up, or what is missing of it, and wait until all nodes are Ready. Idempotent."""
        with instance_lock(self.name):
            self._check_alone()
            install_packages()
            build_tools([self.plan.store, *_FAMILIES])
            self._write_plan()
            # A look at what runs is no measure of a start.
            again = " again" if self.control_plane.daemon("apiserver").alive else ""
            make_bridge(state=self.directory)
            self.control_plane.start()
            with step("registry, model files, Prometheus", key=f"services{again}"):
                start_services(self.control_plane)
            with step(f"{len(self.nodes)} real nodes", key=f"nodes {len(self.nodes)}{again}"):
                self._start_nodes()
            with step("cluster DNS", key=f"cluster DNS{again}"):
                self._wait_dns()
            if kwok_nodes:
                with step(f"{kwok_nodes} fake nodes (KWOK)", key=f"kwok {kwok_nodes}"):
                    start_fleet(self.directory, name=self.name, kubeconfig=self.kubeconfig)
                    apply_fleet(self.kubectl, count=kwok_nodes)
        return self

    def down(self) -> None:
        """End and delete everything of this instance, whatever state a crash left it in."""
        with instance_lock(self.name), step("take the rig down", key="down"):
            with ThreadPoolExecutor(max_workers=4) as pool:
                list(pool.map(Node.stop, self.nodes.values()))
            self.argocd.down()
            stop_all([self.control_plane.daemon(part) for part in PARTS], grace_seconds=5)
            self.control_plane.stop()
            remove_mount_points(self.control_plane)
            remove_bridge(state=self.directory)
            shutil.rmtree(self.directory, ignore_errors=True)

    def _check_alone(self) -> None:
        for other in instances():
            if other != self.name and load_plan(other) is not None:
                raise RigError(
                    f"rig {other} holds the bridge; run `python -m e2e.rig down --name {other}` first"
                )

    def _write_plan(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.directory / "rig.json.new"
        partial.write_text(json.dumps(asdict(self.plan)))
        partial.replace(self.directory / "rig.json")

    def _start_nodes(self) -> None:
        pause = {PAUSE_IMAGE: image_archive("pause", reference=PAUSE_IMAGE)}
        dns = {dns_image(): image_archive("coredns", reference=dns_image())}

        def start(node: Node) -> None:
            node.start_runtime()
            node.import_images(pause | dns if node.spec.name == "server-0" else pause)
            node.start_agents()

        for node in self.nodes.values():
            node.prepare()
        with ThreadPoolExecutor(max_workers=4) as pool:
            started = [pool.submit(start, node) for node in self.nodes.values()]
            self.kubectl.apply(*build_dns_objects(), *build_monitoring_objects())
            for future in started:
                future.result()
        wait_until("all nodes registering", self._label_nodes, timeout_seconds=READY_SECONDS)
        wait_until("all nodes being Ready", self._nodes_ready, timeout_seconds=READY_SECONDS)

    def _label_nodes(self) -> bool:
        """Give each registered node its labels; whether all are registered."""
        found = {item["metadata"]["name"]: item for item in self.kubectl.items("nodes")}
        if not set(self.nodes) <= set(found):
            for node in self.nodes.values():
                node.daemon("kubelet").check()
            return False
        for name, node in self.nodes.items():
            present: Mapping[str, str] = found[name]["metadata"].get("labels", {})
            missing = [f"{key}={value}" for key, value in node.spec.labels if present.get(key) != value]
            if missing:
                self.kubectl("label", "--overwrite", "node", name, *missing)
        return True

    def _nodes_ready(self) -> bool:
        ready = self.ready_nodes()
        for node in self.nodes.values():
            for daemon in node.daemons:
                daemon.check()
        return set(self.nodes) <= ready

    def _wait_dns(self) -> None:
        self.kubectl(
            "-n",
            "kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            "--timeout=240s",
            timeout_seconds=250,
        )

    # Faults

    def node_link_down(self, node: str) -> None:
        """Pull the node's cable: the node goes on alone."""
        set_link(self.nodes[node].spec, up=False)

    def node_link_up(self, node: str) -> None:
        """Plug the cable in again."""
        set_link(self.nodes[node].spec, up=True)

    def limit_bandwidth(self, node: str, mbit: float | None) -> None:
        """Limit what flows to the node, in Mbit/s; None lifts the limit."""
        limit_bandwidth(self.nodes[node].spec, megabits_per_second=mbit)

    def mount_disk(self, node: str, path: str, *, mebibytes: int) -> None:
        """Mount a small empty disk (ext4 on a loop device) on a folder of the node below /var/lib/slmops.

        It counts for pods started from now on. `node_path` goes on showing what the disk hides; look at the
        disk by `exec_on_node`. A reboot unmounts it.
        """
        image = self.nodes[node].directory / "disks" / f"{path.strip('/').replace('/', '-')}.img"
        image.parent.mkdir(exist_ok=True)
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        run(["mkfs.ext4", "-q", "-F", "-m", "0", image])
        self.exec_on_node(node, "mkdir", "-p", path)
        self.exec_on_node(node, "mount", "-o", "loop", str(image), path)

    def unmount_disk(self, node: str, path: str) -> None:
        """Take the disk away again; pods that use it keep it until they end."""
        self.exec_on_node(node, "umount", "--lazy", path, check=False)

    def node_netns(self, node: str) -> Path:
        """The node's network namespace as a file."""
        return netns_file(self.nodes[node].spec)

    def exec_in_netns(self, node: str, *command: str, check: bool = True, timeout_seconds: float = 60) -> str:
        """Run a command of this machine in the node's network; return its standard output."""
        return in_netns(self.nodes[node].spec, *command, check=check, timeout_seconds=timeout_seconds)

    def exec_on_node(self, node: str, *command: str, check: bool = True, timeout_seconds: float = 60) -> str:
        """Like `exec_in_netns`, with the node's own file system too (/var/lib/slmops and so on)."""
        return self.nodes[node].run(*command, check=check, timeout_seconds=timeout_seconds)

    def node_path(self, node: str, path: str) -> Path:
        """Where the node's own `path` (below /var/lib/slmops, say) lies on this machine."""
        return self.nodes[node].host_path(path)

    def reboot_node(self, node: str) -> None:
        """Power the node off and on: everything on it ends at once; its disk stays, its link is as it was."""
        self.nodes[node].reboot()

    def kill_container(self, namespace: str, pod: str, *, container: str | None = None) -> None:
        """SIGKILL the first process of a pod's container (its first one by default)."""
        self.signal_container(namespace, pod, signal.SIGKILL, container=container)

    def signal_container(
        self, namespace: str, pod: str, number: signal.Signals, *, container: str | None = None
    ) -> None:
        """Send a signal to the first process of a pod's container (its first one by default)."""
        status = self.kubectl.get("-n", namespace, "pod", pod)
        states = status["status"].get("containerStatuses", [])
        if container is not None:
            states = states + status["status"].get("initContainerStatuses", [])
        for state in states:
            if container in (None, state["name"]) and state.get("containerID"):
                self.nodes[status["spec"]["nodeName"]].signal_container(state["containerID"], number)
                return
        raise RigError(f"pod {namespace}/{pod} has no running container {container or ''}")

    def kill_daemon(self, node: str, part: str) -> None:
        """SIGKILL a node's containerd, kubelet or kube-proxy; `up` or `restart_daemon` brings it back."""
        self.nodes[node].daemon(part).signal(signal.SIGKILL)

    def restart_daemon(self, node: str, part: str) -> None:
        """Stop and start a node's containerd, kubelet or kube-proxy; pods go on."""
        self.nodes[node].restart(part)

    def restart_kubelet(self, node: str) -> None:
        """Stop and start the node's kubelet; pods go on."""
        self.restart_daemon(node, "kubelet")

    def restart_apiserver(self, *, downtime_seconds: float = 0) -> None:
        """Restart the API server, away for a while."""
        self.control_plane.restart_apiserver(downtime_seconds=downtime_seconds)

    def stop_service(self, part: str) -> None:
        """Stop one of services.PARTS."""
        self.control_plane.daemon(part).stop()

    def start_service(self, part: str) -> None:
        """Start it again."""
        start_service(self.control_plane, part)

    def set_model_faults(self, faults: Mapping[str, Mapping[str, Any]]) -> None:
        """What the model server does wrong, by path prefix (see e2e/rig/fileserver.py); {} heals it."""
        _write_faults(faults_file(self.control_plane), faults)

    def set_registry_faults(self, faults: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for `faulty_registry`, by prefixes such as /v2/models/orders/blobs."""
        _write_faults(registry_faults_file(self.control_plane), faults)

    @property
    def model_log(self) -> Path:
        """The model server's log: one line `<seconds> <client> "<request line>" <status> - <range>` each."""
        return self.control_plane.daemon("models").log

    # Status

    def observe_status(self) -> dict[str, Any]:
        """What runs: processes, nodes with Ready and link, addresses. Never raises for what is down."""
        plane = self.control_plane
        ready: set[str] = set()
        if plane.daemon("apiserver").alive:
            try:
                ready = self.ready_nodes()
            except RigError:
                ready = set()
        return {
            "name": self.name,
            "kubeconfig": str(self.kubeconfig),
            "plan": asdict(self.plan),
            "processes": {
                daemon.name.partition("/")[2]: daemon.pid
                for daemon in (*plane.daemons, *(plane.daemon(part) for part in PARTS))
            },
            "nodes": [
                {
                    "name": node.spec.name,
                    "address": node.spec.address,
                    "ready": node.spec.name in ready,
                    "link": is_link_up(node.spec),
                    "labels": dict(node.spec.labels),
                    "processes": {daemon.name.partition("/")[2]: daemon.pid for daemon in node.daemons},
                }
                for node in self.nodes.values()
            ],
            "registry": self.registry,
            "prometheus": self.prometheus_url,
            "models": self.models_url,
            "cache": str(cache_dir()),
        }


def _write_faults(path: Path, faults: Mapping[str, Mapping[str, Any]]) -> None:
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(faults))
    partial.replace(path)


def load_plan(name: str) -> RigPlan | None:
    """The plan of a rig that is up, or was when it crashed."""
    try:
        return RigPlan(**json.loads((instance_dir(name) / "rig.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
