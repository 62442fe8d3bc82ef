# SPDX-License-Identifier: Apache-2.0
"""One real node: containerd, kubelet and kube-proxy in namespaces and cgroups of its own.

A private mount namespace gives the node its own /var/lib/kubelet, /var/lib/slmops and so on at the
paths that any node has, and takes every mount with it when it ends.
"""

import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.rig.cgroup import create_cgroup, kill_cgroup, remove_cgroup
from e2e.rig.control_plane import DNS_SERVICE_ADDRESS, POD_CIDR, ControlPlane
from e2e.rig.network import in_netns, make_node_network, netns_file, remove_node_network
from e2e.rig.process import Daemon, stop_all
from e2e.rig.progress import wait_until
from e2e.rig.render import (
    render_cni,
    render_containerd,
    render_kube_proxy,
    render_kubelet,
    render_registry_hosts,
)
from e2e.rig.shell import RigError, run
from e2e.rig.tools import tool
from e2e.rig.topology import REGISTRY, NodeSpec

PAUSE_IMAGE: Final = "localhost/pause:1"
NODE_DIRECTORIES: Final = (
    "/etc/cni",
    "/etc/containerd",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/slmops",
    "/var/log/containers",
    "/var/log/pods",
)
"""Paths that are the node's own; everything else it shares with the machine."""
_NAMESPACES: Final = Path("/run/slmops-rig")
_MADE: Final = "made-directories"
_CTR: Final = ("-a", "/run/containerd/containerd.sock", "-n", "k8s.io")
# A dead link is noticed, and a new connection made, in seconds instead of the default 45.
_CLIENT_ENV: Final = {"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "5", "HTTP2_PING_TIMEOUT_SECONDS": "4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a rig instance; everything about it follows from its spec and the control plane."""

    spec: NodeSpec
    control_plane: ControlPlane

    @property
    def directory(self) -> Path:
        """State of the node on the host."""
        return self.control_plane.directory / "nodes" / self.spec.name

    @property
    def mount_namespace(self) -> Path:
        """The node's mount namespace as a file."""
        return _NAMESPACES / self.control_plane.name / self.spec.name

    def host_path(self, path: str) -> Path:
        """Where a path of the node lies on the host, for one below NODE_DIRECTORIES."""
        if not any(path == own or path.startswith(f"{own}/") for own in NODE_DIRECTORIES):
            raise ValueError(f"{path} is not the node's own")
        return self.directory / "root" / path.lstrip("/")

    def daemon(self, part: str) -> Daemon:
        """One of containerd, kubelet, kube-proxy (running or not)."""
        return Daemon(
            name=f"{self.spec.name}/{part}",
            record=self.directory / "run" / f"{part}.pid",
            log=self.directory / "log" / f"{part}.log",
        )

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """All daemons of the node, in the order of starting."""
        return tuple(self.daemon(part) for part in ("containerd", "kubelet", "kube-proxy"))

    # Life

    def prepare(self) -> None:
        """Network, files, mounts and cgroups; idempotent. One node at a time: mounts are shared ground."""
        make_node_network(self.spec)
        self._write_configs()
        self._make_mounts()
        create_cgroup(self.spec.cgroup)

    def start_runtime(self) -> None:
        """containerd; idempotent."""
        daemon = self.daemon("containerd")
        if not daemon.alive:
            self._spawn("containerd", tool("containerd"), "--config", "/etc/containerd/config.toml")

    def import_images(self, images: Mapping[str, Path]) -> None:
        """Import OCI archives (reference -> file) that containerd does not have; waits for it to answer."""
        daemon = self.daemon("containerd")

        def answers() -> bool:
            daemon.check()
            return not self._ctr_fails()

        wait_until(f"{daemon.name} answering", answers, timeout_seconds=120, interval_seconds=0.1)
        present = self.run(str(tool("ctr")), *_CTR, "images", "ls", "-q").split()
        for reference, archive in images.items():
            if reference not in present:
                self.run(str(tool("ctr")), *_CTR, "images", "import", str(archive), timeout_seconds=120)

    def start_agents(self) -> None:
        """kubelet and kube-proxy; idempotent."""
        if not self.daemon("kubelet").alive:
            own = [f"{key}={value}" for key, value in self.spec.labels if "kubernetes.io" not in key]
            self._spawn(
                "kubelet",
                tool("kubelet"),
                "--config",
                self.directory / "kubelet.yaml",
                "--kubeconfig",
                self._kubeconfig("kubelet"),
                f"--hostname-override={self.spec.name}",
                f"--node-ip={self.spec.address}",
                f"--node-labels={','.join(own)}",
            )
        if not self.daemon("kube-proxy").alive:
            config = self.directory / "kube-proxy.yaml"
            self._spawn("kube-proxy", tool("kube-proxy"), "--config", config)

    def stop(self) -> None:
        """End the node's daemons and every container at once, as pulling the plug would, and remove it."""
        stop_all(self.daemons[1:], grace_seconds=0)
        kill_cgroup(self.spec.cgroup)
        stop_all(self.daemons, grace_seconds=0)
        self._unmount_namespace()
        remove_node_network(self.spec)
        remove_cgroup(self.spec.cgroup)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():  # a mount namespace may take a moment to go
            time.sleep(0.5)
            shutil.rmtree(self.directory)

    def reboot(self) -> None:
        """Pull the plug and power on again; the disk stays, and the cable is as plugged as it was.

        What a boot would begin without is gone: processes, mounts, /run, the pods' network. Returns when
        the daemons run, Ready or not.
        """
        stop_all(self.daemons[1:], grace_seconds=0)
        kill_cgroup(self.spec.cgroup)
        stop_all(self.daemons, grace_seconds=0)
        self._unmount_namespace()
        shutil.rmtree(self.host_path("/run/containerd"))
        self.host_path("/run/containerd").mkdir()
        in_netns(self.spec, "nft", "flush", "ruleset")
        in_netns(self.spec, "ip", "link", "del", "cni0", check=False)
        self._make_mounts()
        self.start_runtime()
        self.import_images({})
        self.start_agents()

    def restart(self, part: str) -> None:
        """Stop and start one daemon; pods go on."""
        self.daemon(part).stop()
        self.start_runtime()
        self.start_agents()

    def run(self, *command: str, check: bool = True, timeout_seconds: float = 60) -> str:
        """Run a host command inside the node's network and mount namespaces; return its output."""
        done = run([*self._enter(), *command], check=check, timeout_seconds=timeout_seconds)
        return done.stdout

    def signal_container(self, container_id: str, number: signal.Signals) -> None:
        """Send a signal to a container's first process; `container_id` as in pod status (`containerd://...`)."""
        name = container_id.removeprefix("containerd://")
        self.run(str(tool("ctr")), *_CTR, "tasks", "kill", "--signal", number.name, name)

    def running_containers(self) -> set[str]:
        """Ids of containers whose first process runs, sandboxes included, asked of the node's containerd."""
        lines = self.run(str(tool("ctr")), *_CTR, "tasks", "ls").splitlines()
        tasks = (line.split() for line in lines)
        return {task[0] for task in tasks if task and task[-1] == "RUNNING"}

    # Parts

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net={netns_file(self.spec)}", f"--mount={self.mount_namespace}"]

    def _spawn(self, part: str, *command: str | Path) -> None:
        path = [str(tool(name).parent) for name in ("containerd", "kubelet")]
        env = {"PATH": os.pathsep.join([*path, "/usr/sbin", "/usr/bin", "/sbin", "/bin"]), **_CLIENT_ENV}
        cgroup = create_cgroup(self.spec.cgroup)
        self.daemon(part).start([*self._enter(), *command], env=env, cgroup=cgroup)

    def _ctr_fails(self) -> bool:
        return bool(run([*self._enter(), tool("ctr"), *_CTR, "version"], check=False).returncode)

    def _kubeconfig(self, name: str) -> Path:
        return self.control_plane.directory / f"{self.spec.name}-{name}.kubeconfig"

    def _write_configs(self) -> None:
        spec, plane = self.spec, self.control_plane
        runc = shutil.which("runc", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if runc is None:
            raise RigError("runc is not installed")
        pair = plane.authority.issue(
            spec.name,
            common_name=f"system:node:{spec.name}",
            organization="system:nodes",
            dns_names=[spec.name],
            addresses=[spec.address],
        )
        plane.write_kubeconfig(f"{spec.name}-kubelet", pair=pair)
        proxy = plane.authority.issue(f"{spec.name}-proxy", common_name="system:kube-proxy")
        proxy_kubeconfig = plane.write_kubeconfig(f"{spec.name}-proxy", pair=proxy)
        for directory in NODE_DIRECTORIES:
            self.host_path(directory).mkdir(parents=True, exist_ok=True)
        texts = {
            self.directory / "kubelet.yaml": render_kubelet(
                address=spec.address,
                cgroup=spec.cgroup,
                authority=plane.authority.pair.certificate,
                certificate=pair.certificate,
                key=pair.key,
                cluster_dns=DNS_SERVICE_ADDRESS,
            ),
            self.directory / "kube-proxy.yaml": render_kube_proxy(
                address=spec.address, node=spec.name, kubeconfig=proxy_kubeconfig, pod_cidr=POD_CIDR
            ),
            self.host_path("/etc/cni/net.d/10-pods.conflist"): render_cni(pod_subnet=spec.pod_subnet),
            self.host_path("/etc/containerd/config.toml"): render_containerd(
                cni_bin=tool("bridge").parent, runc=Path(runc), pause_image=PAUSE_IMAGE
            ),
            self.host_path(f"/etc/containerd/certs.d/{REGISTRY}/hosts.toml"): render_registry_hosts(
                registry=REGISTRY
            ),
        }
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # kube-proxy watches its file and ends when it is written, even with the same content.
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def _make_mounts(self) -> None:
        marker = self.directory / "mounts-ready"
        if _is_mounted(self.mount_namespace) and marker.exists():
            return
        self._unmount_namespace()
        marker.unlink(missing_ok=True)
        _make_private(_NAMESPACES)
        self.mount_namespace.parent.mkdir(parents=True, exist_ok=True)
        self.mount_namespace.touch()
        lines = ["set -eu", "mount --make-rshared /"]
        for directory in NODE_DIRECTORIES:
            _make_mount_point(Path(directory), record=self.control_plane.directory / _MADE)
            lines.append(f"mount --bind '{self.host_path(directory)}' '{directory}'")
        lines.append(f"touch '{marker}'")
        namespace = f"--mount={self.mount_namespace}"
        run(["unshare", namespace, "--propagation", "private", "sh", "-c", "\n".join(lines)])

    def _unmount_namespace(self) -> None:
        while _is_mounted(self.mount_namespace):
            if run(["umount", self.mount_namespace], check=False).returncode:
                run(["umount", "--lazy", _NAMESPACES])  # something was mounted over it
        self.mount_namespace.unlink(missing_ok=True)


def remove_mount_points(control_plane: ControlPlane) -> None:
    """Take away what the nodes needed on the host: mount points that we made, and the namespaces' mount."""
    shutil.rmtree(_NAMESPACES / control_plane.name, ignore_errors=True)
    if _NAMESPACES.is_dir() and not any(_NAMESPACES.iterdir()):
        while _is_mounted(_NAMESPACES):
            run(["umount", _NAMESPACES])
        _NAMESPACES.rmdir()
    record = control_plane.directory / _MADE
    for directory in record.read_text().splitlines() if record.exists() else []:
        try:
            Path(directory).rmdir()
        except OSError:
            continue  # in use by now, or gone


def _make_mount_point(directory: Path, *, record: Path) -> None:
    if not directory.is_dir():
        with record.open("a") as made:  # before it is made: a crash in between only costs a line
            made.write(f"{directory}\n")
        directory.mkdir(parents=True, exist_ok=True)


def _make_private(directory: Path) -> None:
    # The kernel binds a mount namespace only onto a mount that propagates nowhere.
    directory.mkdir(parents=True, exist_ok=True)
    if not _is_mounted(directory):
        run(["mount", "--bind", directory, directory])
    run(["mount", "--make-private", directory])


def _is_mounted(path: Path) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in mounts)
