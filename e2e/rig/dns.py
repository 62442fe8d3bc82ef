# SPDX-License-Identifier: Apache-2.0
"""CoreDNS as a pod on the server node, from an image of the one binary that the rig built."""

from pathlib import Path
from typing import Any, Final

from e2e.rig.control_plane import DNS_SERVICE_ADDRESS
from e2e.rig.oci import write_binary_image
from e2e.rig.render import CLUSTER_DOMAIN
from e2e.rig.tools import FAMILY_OF, family_dir, family_hash, tool
from e2e.rig.topology import CONTROL_PLANE_LABEL

COREFILE: Final = f"""\
.:53 {{
    errors
    health :8080 {{
        lameduck 1s
    }}
    ready :8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""
"""No forwarder: a name outside the cluster does not exist, and no query leaves the machine."""


def image_archive(binary: str, *, reference: str) -> Path:
    """OCI archive of a tool as an image; written once beside the tool."""
    path = tool(binary)
    archive = family_dir(FAMILY_OF[binary]) / f"{binary}.oci.tar"
    if not archive.exists():
        write_binary_image(archive, reference=reference, binary=path, entrypoint=[f"/{binary}"])
    return archive


def dns_image() -> str:
    """Reference of the CoreDNS image; changes with the build."""
    return f"localhost/coredns:{family_hash(FAMILY_OF['coredns'])}"


def build_dns_objects() -> list[dict[str, Any]]:
    """ServiceAccount, role, configuration, Deployment and Service of the cluster's DNS."""
    labels = {"k8s-app": "kube-dns"}
    metadata = {"name": "coredns", "namespace": "kube-system", "labels": labels}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"}
    watch = ["list", "watch"]
    container = {
        "name": "coredns",
        "image": dns_image(),
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "40Mi"}, "limits": {"memory": "170Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "failureThreshold": 6},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {CONTROL_PLANE_LABEL: "true"},
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": rbac,
            "kind": "ClusterRole",
            "metadata": {"name": role["name"]},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": watch},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
            ],
        },
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role["name"]},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"Corefile": COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata | {"name": "kube-dns"},
            "spec": {
                "clusterIP": DNS_SERVICE_ADDRESS,
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                ],
            },
        },
    ]
