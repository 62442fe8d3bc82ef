# SPDX-License-Identifier: Apache-2.0
"""Argo CD core beside a control plane: repo server, application and ApplicationSet controller, Redis.

It runs as processes of the machine, as the control plane does, and without API server and UI. All listen on
loopback; only the application controller's metrics cannot be bound to an address. What it needs of a
cluster is applied as its own installation manifests have it, so that its defaults are those of users.
"""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.rig.control_plane import ControlPlane, free_ports
from e2e.rig.process import Daemon, stop_all
from e2e.rig.progress import step, wait_until
from e2e.rig.tools import FAMILY_OF, build_tools, module_source, tool

NAMESPACE: Final = "argocd"
PARTS: Final = (
    "argocd-redis",
    "argocd-repo-server",
    "argocd-application-controller",
    "argocd-applicationset",
)
"""Its processes, in the order of starting."""
IN_CLUSTER: Final = "https://kubernetes.default.svc"
"""Argo CD's name for the cluster that it runs in, which is this one."""
RESYNC_SECONDS: Final = 4
"""How often Git and cluster are compared even when nothing calls for it: 180 s by default."""
_CRDS: Final = ("application-crd.yaml", "applicationset-crd.yaml", "appproject-crd.yaml")


class ArgoCD:
    """The Argo CD of one control plane; an object for one that runs takes it over."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.directory = plane.directory / "argocd"

    @property
    def binary(self) -> Path:
        """The command line tool, which is all other parts too."""
        return tool("argocd")

    def daemons(self) -> tuple[Daemon, ...]:
        """Its processes, running or not."""
        return tuple(self.plane.daemon(part) for part in PARTS)

    def up(self) -> "ArgoCD":
        """Start what does not run, after what it needs is in the cluster. Builds it first if need be."""
        build_tools(["argo-cd", "helm", "kustomize"])
        if all(daemon.alive for daemon in self.daemons()):
            return self
        with step("Argo CD", key="argocd"):
            self.down()
            self._install()
            self._start()
        return self

    def down(self) -> None:
        """End its processes; what is in the cluster stays, and what Applications have made too."""
        stop_all(list(reversed(self.daemons())), grace_seconds=3)
        shutil.rmtree(self.directory, ignore_errors=True)

    def add_cluster(self, name: str, *, labels: Mapping[str, str]) -> None:
        """Register this cluster once more by its address, as `argocd cluster add` registers others."""
        user = yaml.safe_load(self.plane.kubeconfig.read_text())
        certificates = user["users"][0]["user"] | user["clusters"][0]["cluster"]
        config = {
            "tlsClientConfig": {
                "caData": certificates["certificate-authority-data"],
                "certData": certificates["client-certificate-data"],
                "keyData": certificates["client-key-data"],
            }
        }
        body = _secret(
            f"cluster-{name}", {"name": name, "server": self.plane.server, "config": json.dumps(config)}
        )
        body["metadata"]["labels"] |= {"argocd.argoproj.io/secret-type": "cluster", **labels}
        self.plane.kubectl.apply(body)

    def _install(self) -> None:
        kubectl = self.plane.kubectl
        source = module_source(FAMILY_OF["argocd"]) / "manifests"
        files = [source / "crds" / name for name in _CRDS]
        files += sorted((source / "base" / "config").glob("argocd-*.yaml"))
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        named = [f"--filename={path}" for path in files]
        kubectl("apply", "--server-side", "--force-conflicts", "--namespace", NAMESPACE, *named)
        wait_until("the kinds of Argo CD being served", self._kinds_served, timeout_seconds=120)
        project = {
            "sourceRepos": ["*"],
            "destinations": [{"server": "*", "namespace": "*"}],
            "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
        }
        kubectl.apply(
            _secret("argocd-redis", {"auth": ""}),
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "AppProject",
                "metadata": {"name": "default", "namespace": NAMESPACE},
                "spec": project,
            },
        )

    def _kinds_served(self) -> bool:
        served = self.plane.kubectl("api-resources", "--api-group=argoproj.io", "-o", "name", check=False)
        return len(served.split()) == len(_CRDS)

    def _start(self) -> None:
        redis, repo, repo_metrics, metrics, set_metrics, set_probe, set_hook = free_ports(7)
        state = {name: self.directory / name for name in ("redis", "tmp", "home", "tls", "ssh", "plugins")}
        for folder in state.values():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        redis_address, repo_address = f"127.0.0.1:{redis}", f"127.0.0.1:{repo}"
        tools = os.pathsep.join(str(tool(name).parent) for name in ("helm", "kustomize"))
        common = {
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_PLUGINSOCKFILEPATH": str(state["plugins"]),
            "ARGOCD_RECONCILIATION_TIMEOUT": f"{RESYNC_SECONDS}s",
            "ARGOCD_RECONCILIATION_JITTER": "0s",
            "ARGOCD_SSH_DATA_PATH": str(state["ssh"]),
            "ARGOCD_TLS_DATA_PATH": str(state["tls"]),
            "HOME": str(state["home"]),
            "HOSTNAME": "argocd-application-controller-0",
            "KUBECONFIG": str(self.plane.kubeconfig),
            "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
            "TMPDIR": str(state["tmp"]),
        }
        here: tuple[str | Path, ...] = ("--kubeconfig", self.plane.kubeconfig, "--namespace", NAMESPACE)
        commands: Mapping[str, list[str | Path]] = {
            "argocd-redis": [
                "redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--dir", state["redis"],
                "--save", "", "--appendonly", "no",
            ],
            "argocd-repo-server": [
                self.binary, "--address=127.0.0.1", f"--port={repo}", "--metrics-address=127.0.0.1",
                f"--metrics-port={repo_metrics}", f"--redis={redis_address}", "--disable-tls",
            ],
            "argocd-application-controller": [
                self.binary, *here, f"--redis={redis_address}", f"--repo-server={repo_address}",
                "--repo-server-plaintext", f"--metrics-port={metrics}",
                # So that tests read each resource's health from the Application; the UI has it from Redis.
                "--persist-resource-health",
            ],
            "argocd-applicationset": [
                self.binary, *here, f"--argocd-repo-server={repo_address}", "--repo-server-plaintext",
                f"--metrics-addr=127.0.0.1:{set_metrics}", f"--probe-addr=127.0.0.1:{set_probe}",
                f"--webhook-addr=127.0.0.1:{set_hook}",
            ],
        }  # fmt: skip
        # The one binary looks at its name.
        names = {"argocd-applicationset": "argocd-applicationset-controller"}
        listening = {
            "argocd-redis": redis,
            "argocd-repo-server": repo,
            "argocd-application-controller": metrics,
        }
        for part in PARTS:
            daemon = self.plane.daemon(part)
            binary_name = names.get(part, part)
            daemon.start(commands[part], env=common | {"ARGOCD_BINARY_NAME": binary_name}, cwd=self.directory)
            port = listening.get(part, set_probe)
            wait_until(
                f"{part} listening",
                partial(_listens, daemon, port),
                timeout_seconds=180,
                interval_seconds=0.1,
            )


def _listens(daemon: Daemon, port: int) -> bool:
    daemon.check()
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _secret(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/part-of": "argocd"},
        },
        "stringData": dict(values),
    }
