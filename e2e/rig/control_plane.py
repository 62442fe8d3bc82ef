# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes control plane as host processes: store, API server, controllers, scheduler.

Alone it binds to loopback with ports of its own, so that several can run side by side (the API-server
tests); below a full rig it binds to the rig's bridge.
"""

import fcntl
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from e2e.rig.fleet import apply_fleet, fleet_daemon, start_fleet
from e2e.rig.kubectl import Kubectl
from e2e.rig.paths import instance_dir
from e2e.rig.pki import Authority, KeyPair
from e2e.rig.process import Daemon, stop_all
from e2e.rig.progress import step, wait_until
from e2e.rig.render import render_kubeconfig
from e2e.rig.shell import RigError
from e2e.rig.tools import tool

Store = Literal["kine", "etcd"]
POD_CIDR: Final = "10.42.0.0/16"
SERVICE_CIDR: Final = "10.43.0.0/16"
API_SERVICE_ADDRESS: Final = "10.43.0.1"
DNS_SERVICE_ADDRESS: Final = "10.43.0.10"
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
READY_SECONDS: Final = 180
NODE_GRACE_SECONDS: Final = 20
"""Kubelets report every 5 s (render.py): a node is NotReady this long after its link is cut."""
# A unix socket's path ends at 107 characters; kine adds none.
_SOCKET_PATH_LIMIT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the parts listen; kept for the life of the instance, so that kubeconfigs stay valid."""

    address: str
    api_port: int
    store: Store
    store_port: int
    store_peer_port: int


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


@contextmanager
def instance_lock(name: str) -> Iterator[None]:
    """One `up`, `down` or repair of an instance at a time; released by the kernel if we are killed."""
    path = instance_dir(name).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class ControlPlane:
    """One control plane, known by name; an object for a name that runs already takes it over.

    `address` is where the API server listens: loopback, or the bridge of a full rig. `api_port` 0
    picks a free port. A node that has been silent for `node_grace_seconds` is NotReady.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        store: Store = "kine",
        address: str = "127.0.0.1",
        api_port: int = 0,
        node_grace_seconds: int = NODE_GRACE_SECONDS,
    ) -> None:
        self.name = name
        self.directory = instance_dir(name)
        self._wanted = (store, address, api_port)
        self._node_grace_seconds = node_grace_seconds

    # Files

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of a cluster administrator."""
        return self.directory / "admin.kubeconfig"

    @property
    def authority(self) -> Authority:
        """The instance's certificate authority."""
        return Authority(self.directory / "pki")

    @property
    def kubectl(self) -> Kubectl:
        """kubectl with the administrator's kubeconfig."""
        return Kubectl(tool("kubectl"), self.kubeconfig)

    @property
    def server(self) -> str:
        """URL of the API server."""
        endpoints = self._load_endpoints()
        if endpoints is None:
            raise RigError(f"rig {self.name} is not up")
        return f"https://{endpoints.address}:{endpoints.api_port}"

    def daemon(self, part: str) -> Daemon:
        """One of store, apiserver, controller-manager, scheduler (running or not)."""
        return Daemon(
            name=f"{self.name}/{part}",
            record=self.directory / "run" / f"{part}.pid",
            log=self.directory / "log" / f"{part}.log",
        )

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """All parts, in the order of starting."""
        return (
            self.daemon("store"),
            self.daemon("apiserver"),
            self.daemon("controller-manager"),
            self.daemon("scheduler"),
        )

    # Life

    def up(self, *, kwok_nodes: int = 0) -> "ControlPlane":
        """Start what does not run, wait until the API server is ready; add fake nodes if asked.

        Idempotent: parts that run are left alone, parts that died are started again over their data.
        """
        with instance_lock(self.name):
            self.start()
        if kwok_nodes:
            with step(f"{kwok_nodes} fake nodes (KWOK)", key=f"kwok {kwok_nodes}"):
                start_fleet(self.directory, name=self.name, kubeconfig=self.kubeconfig)
                apply_fleet(self.kubectl, count=kwok_nodes)
        return self

    def start(self) -> None:
        """`up` without the lock and the fake nodes, for a caller that holds the lock."""
        binaries = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"]
        endpoints = self._choose_endpoints()
        for binary in [endpoints.store, *binaries]:
            tool(binary)
        if all(daemon.alive for daemon in self.daemons) and self._api_ready():
            return
        with step(f"control plane on {endpoints.store}", key=f"control plane {endpoints.store}"):
            self._write_identity(endpoints)
            if not self.daemon("store").alive:
                self._start_store(endpoints)
            if not self.daemon("apiserver").alive:
                self._start_apiserver(endpoints)
            self._wait_api_ready()
            self._start_controllers()

    def down(self) -> None:
        """Stop everything, wait until it is gone, and delete the instance's state."""
        with instance_lock(self.name):
            self.stop()
            shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self) -> None:
        """Stop all processes, the data stays."""
        # Clients first: an API server waits for its watchers when it ends.
        stop_all([fleet_daemon(self.directory, name=self.name), *self.daemons[2:]], grace_seconds=3)
        stop_all([self.daemon("apiserver")], grace_seconds=3)
        stop_all([self.daemon("store")], grace_seconds=5)

    def restart_apiserver(self, *, downtime_seconds: float = 0) -> None:
        """End the API server, keep it away for a while, start it again and wait until it is ready."""
        import time

        with instance_lock(self.name):
            self.daemon("apiserver").stop(grace_seconds=3)
            time.sleep(downtime_seconds)
            endpoints = self._load_endpoints()
            if endpoints is None:
                raise RigError(f"rig {self.name} is not up")
            self._start_apiserver(endpoints)
            self._wait_api_ready()
            self._start_controllers()

    # Parts

    def _load_endpoints(self) -> Endpoints | None:
        try:
            return Endpoints(**json.loads((self.directory / "endpoints.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _choose_endpoints(self) -> Endpoints:
        kept = self._load_endpoints()
        if kept is not None:
            return kept
        store, address, api_port = self._wanted
        ports = free_ports(3)
        chosen = Endpoints(
            address=address,
            api_port=api_port or ports[0],
            store=store,
            store_port=ports[1],
            store_peer_port=ports[2],
        )
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.directory / "endpoints.json.new"
        partial.write_text(json.dumps(asdict(chosen)))
        partial.replace(self.directory / "endpoints.json")
        return chosen

    def _write_identity(self, endpoints: Endpoints) -> None:
        self.authority.create()
        service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", ISSUER.split("//")[1]]
        self.authority.issue(
            "apiserver",
            common_name="kube-apiserver",
            dns_names=["localhost", *service],
            addresses=sorted({"127.0.0.1", API_SERVICE_ADDRESS, endpoints.address}),
        )
        masters = "system:masters"
        self.authority.issue("kubelet-client", common_name="kube-apiserver-kubelet", organization=masters)
        admin = self.authority.issue("admin", common_name="admin", organization=masters)
        self.write_kubeconfig("admin", pair=admin)
        for part in ("controller-manager", "scheduler"):
            self.write_kubeconfig(part, pair=self.authority.issue(part, common_name=f"system:kube-{part}"))

    def write_kubeconfig(self, name: str, *, pair: KeyPair) -> Path:
        """Write `<name>.kubeconfig` for a certificate of this instance."""
        endpoints = self._choose_endpoints()
        path = self.directory / f"{name}.kubeconfig"
        text = render_kubeconfig(
            server=f"https://{endpoints.address}:{endpoints.api_port}",
            authority=self.authority.pair.certificate,
            certificate=pair.certificate,
            key=pair.key,
        )
        if not path.exists() or path.read_text() != text:
            partial = path.with_suffix(".new")
            partial.touch(mode=0o600)
            partial.write_text(text)
            partial.replace(path)
        return path

    def _start_store(self, endpoints: Endpoints) -> None:
        data = self.directory / "store"
        data.mkdir(parents=True, exist_ok=True)
        url = f"http://127.0.0.1:{endpoints.store_port}"
        if endpoints.store == "etcd":
            peer = f"http://127.0.0.1:{endpoints.store_peer_port}"
            command: list[str | Path] = [
                tool("etcd"), "--data-dir", data / "etcd", "--unsafe-no-fsync",
                "--listen-client-urls", url, "--advertise-client-urls", url,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}",
            ]  # fmt: skip
        else:
            database = (
                f"sqlite://{data}/state.db?_journal=WAL&cache=shared&_busy_timeout=30000&_synchronous=OFF"
            )
            command = [
                tool("kine"), "--endpoint", database,
                "--listen-address", url, "--metrics-bind-address", "0",
            ]  # fmt: skip
        self.daemon("store").start(command, cwd=data)
        self._wait_port(endpoints.store_port, self.daemon("store"))

    def _start_apiserver(self, endpoints: Endpoints) -> None:
        pki, daemon = self.authority, self.daemon("apiserver")
        serving, kubelet = pki.directory / "apiserver", pki.directory / "kubelet-client"
        flags = {
            "etcd-servers": f"http://127.0.0.1:{endpoints.store_port}",
            "secure-port": endpoints.api_port,
            "bind-address": endpoints.address,
            "tls-cert-file": f"{serving}.crt",
            "tls-private-key-file": f"{serving}.key",
            "client-ca-file": pki.pair.certificate,
            "kubelet-client-certificate": f"{kubelet}.crt",
            "kubelet-client-key": f"{kubelet}.key",
            "kubelet-certificate-authority": pki.pair.certificate,
            # Node names are in no DNS.
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-key-file": pki.service_account_public_key,
            "service-account-signing-key-file": pki.service_account_key,
            "service-account-issuer": ISSUER,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-cluster-ip-range": SERVICE_CIDR,
            "allow-privileged": "true",
            "profiling": "false",
            # A loopback address cannot be an endpoint of the Service `kubernetes`, and no pod asks for it.
            "endpoint-reconciler-type": "none" if endpoints.address.startswith("127.") else "lease",
        }
        daemon.start([tool("kube-apiserver"), *(f"--{key}={value}" for key, value in flags.items())])

    def _start_controllers(self) -> None:
        pki = self.authority
        common = {"bind-address": "127.0.0.1", "leader-elect": "false", "profiling": "false"}
        ports = free_ports(2)
        managers = {
            "kubeconfig": self.directory / "controller-manager.kubeconfig",
            "secure-port": ports[0],
            "service-account-private-key-file": pki.service_account_key,
            "root-ca-file": pki.pair.certificate,
            "cluster-signing-cert-file": pki.pair.certificate,
            "cluster-signing-key-file": pki.pair.key,
            "use-service-account-credentials": "true",
            "allocate-node-cidrs": "true",
            "cluster-cidr": POD_CIDR,
            "node-monitor-grace-period": f"{self._node_grace_seconds}s",
            "node-monitor-period": "2s",
        }
        scheduler = {"kubeconfig": self.directory / "scheduler.kubeconfig", "secure-port": ports[1]}
        for part, flags in (("controller-manager", managers), ("scheduler", scheduler)):
            daemon = self.daemon(part)
            if not daemon.alive:
                arguments = [f"--{key}={value}" for key, value in {**common, **flags}.items()]
                daemon.start([tool(f"kube-{part}"), *arguments])

    def _wait_port(self, port: int, daemon: Daemon) -> None:
        def open_() -> bool:
            daemon.check()
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(f"{daemon.name} listening", open_, timeout_seconds=90, interval_seconds=0.05)

    def _api_ready(self) -> bool:
        try:
            return self.kubectl.raw("/readyz", timeout_seconds=15) == "ok"
        except (RigError, subprocess.SubprocessError):
            return False

    def _wait_api_ready(self) -> None:
        def ready() -> bool:
            self.daemon("apiserver").check()
            return self._api_ready()

        wait_until("the API server being ready", ready, timeout_seconds=READY_SECONDS, interval_seconds=0.1)
