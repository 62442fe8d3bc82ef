# SPDX-License-Identifier: Apache-2.0
"""Configuration texts of everything the rig starts: pure functions from settings to files."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

CLUSTER_DOMAIN: Final = "cluster.local"


def render_yaml(*documents: Mapping[str, Any]) -> str:
    """YAML of one or more documents, keys in the given order."""
    return yaml.safe_dump_all([dict(document) for document in documents], sort_keys=False)


def render_kubeconfig(*, server: str, authority: Path, certificate: Path, key: Path) -> str:
    """A kubeconfig with the certificates inside, so that the one file can be copied anywhere."""

    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return render_yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "rig", "cluster": {"server": server, "certificate-authority-data": data(authority)}}
            ],
            "users": [
                {
                    "name": "rig",
                    "user": {"client-certificate-data": data(certificate), "client-key-data": data(key)},
                }
            ],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
            "current-context": "rig",
        }
    )


def render_containerd(*, cni_bin: Path, runc: Path, pause_image: str) -> str:
    """containerd's configuration; every path is the node's own, seen in the node's mount namespace."""
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.runtime"]
  # The machine may lack CAP_SYS_RESOURCE, and then no score can be lowered.
  restrict_oom_score_adj = true
  # Pod namespaces below our own state: they vanish with it, none is left in the host's /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni_bin}"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = "{runc}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause_image}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""


def render_registry_hosts(*, registry: str) -> str:
    """hosts.toml that tells containerd to speak plain HTTP to the rig's registry."""
    return f'server = "http://{registry}"\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'


def render_cni(*, pod_subnet: str) -> str:
    """CNI chain of one node: a bridge with the node's /24, and host ports."""
    return json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/var/lib/cni/networks",
                        "ranges": [[{"subnet": pod_subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        },
        indent=1,
    )


def render_kubelet(
    *, address: str, cgroup: str, authority: Path, certificate: Path, key: Path, cluster_dns: str
) -> str:
    """KubeletConfiguration of one node; `cgroup` is the node's own root in the cgroup tree."""
    return render_yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [cluster_dns],
            "clusterDomain": CLUSTER_DOMAIN,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "address": address,
            "healthzPort": 0,
            "resolvConf": "",
            "imageGCHighThresholdPercent": 100,
            # The nodes share one disk and one memory: only a machine that is really full may evict.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "nodeStatusUpdateFrequency": "5s",
            # Ten seconds of silence are four missed renewals: NotReady soon enough for a test.
            "nodeLeaseDurationSeconds": 10,
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "maxPods": 60,
            "serializeImagePulls": False,
            "shutdownGracePeriod": "0s",
        }
    )


def render_kube_proxy(*, address: str, node: str, kubeconfig: Path, pod_cidr: str) -> str:
    """KubeProxyConfiguration of one node, in nftables mode."""
    return render_yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": pod_cidr,
            "hostnameOverride": node,
            "healthzBindAddress": f"{address}:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            # The limit is the machine's, and a network namespace cannot set it.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
    )


def render_registry(*, address: str, storage: Path, auth: Mapping[str, Any] | None = None) -> str:
    """Configuration of an OCI registry: files below `storage`, plain HTTP on `address`.

    `auth` is the section of that name; None lets everybody in.
    """
    return render_yaml(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(storage)},
                "delete": {"enabled": True},
                "maintenance": {
                    "uploadpurging": {"enabled": True, "age": "24h", "interval": "24h", "dryrun": False}
                },
            },
            "http": {"addr": address},
        }
        | ({"auth": dict(auth)} if auth else {})
    )


def render_prometheus(*, kubeconfig: Path) -> str:
    """Prometheus: serving pods every two seconds, the operator's pod, found by the API server.

    The pods' own const labels carry identity; the target labels only say where a sample came from.
    """
    meta = "__meta_kubernetes_pod"
    where = [
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": [f"{meta}_name"], "target_label": "pod"},
        {"source_labels": [f"{meta}_node_name"], "target_label": "node"},
    ]

    def keep(label: str, value: str) -> dict[str, Any]:
        return {"source_labels": [label], "regex": value, "action": "keep"}

    discovery = [{"role": "pod", "kubeconfig_file": str(kubeconfig)}]
    running = keep(f"{meta}_phase", "Running")
    return render_yaml(
        {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
            "scrape_configs": [
                {
                    "job_name": "slmserve",
                    "tls_config": {"insecure_skip_verify": True},
                    "kubernetes_sd_configs": discovery,
                    "relabel_configs": [
                        keep(f"{meta}_label_app_kubernetes_io_managed_by", "slmops"),
                        keep(f"{meta}_label_slmops_dev_role", "serve"),
                        running,
                        # Init containers and ports without a number would be targets of their own.
                        keep(f"{meta}_container_init", "false"),
                        keep(f"{meta}_container_port_number", "8080"),
                        {
                            "source_labels": [f"{meta}_container_port_name"],
                            "regex": "(https?)",
                            "target_label": "__scheme__",
                        },
                        *where,
                    ],
                },
                {
                    "job_name": "slmops",
                    "kubernetes_sd_configs": discovery,
                    "relabel_configs": [
                        keep(f"{meta}_label_app_kubernetes_io_name", "slmops"),
                        keep(f"{meta}_container_port_name", "metrics"),
                        running,
                        *where,
                    ],
                },
            ],
        }
    )
