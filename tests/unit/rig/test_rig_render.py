# SPDX-License-Identifier: Apache-2.0
"""Rendered configurations, parsed back as their readers would."""

import base64
import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from e2e.rig.dns import build_dns_objects
from e2e.rig.fleet import render_fleet_node
from e2e.rig.paths import RIG_SOURCE
from e2e.rig.render import (
    render_cni,
    render_containerd,
    render_kube_proxy,
    render_kubeconfig,
    render_kubelet,
    render_prometheus,
    render_registry,
    render_registry_hosts,
)
from e2e.rig.services import build_monitoring_objects


def test_kubeconfig_carries_its_certificates(tmp_path: Path) -> None:
    for name in ("ca", "crt", "key"):
        (tmp_path / name).write_text(f"the {name}")
    text = render_kubeconfig(
        server="https://127.0.0.1:1",
        authority=tmp_path / "ca",
        certificate=tmp_path / "crt",
        key=tmp_path / "key",
    )
    read = yaml.safe_load(text)
    assert read["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert base64.b64decode(read["users"][0]["user"]["client-key-data"]) == b"the key"
    assert str(tmp_path) not in text


def test_containerd_is_told_what_the_machine_needs() -> None:
    text = render_containerd(
        cni_bin=Path("/cni"), runc=Path("/usr/sbin/runc"), pause_image="localhost/pause:1"
    )
    plugins: dict[str, Any] = tomllib.loads(text)["plugins"]
    runtime = plugins["io.containerd.cri.v1.runtime"]
    assert runtime["restrict_oom_score_adj"] is True
    assert runtime["netns_mounts_under_state_dir"] is True
    assert runtime["cni"]["bin_dirs"] == ["/cni"]
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["BinaryName"] == "/usr/sbin/runc"
    assert plugins["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == "localhost/pause:1"


def test_registry_hosts_speak_plain_http() -> None:
    read = tomllib.loads(render_registry_hosts(registry="10.99.0.1:5000"))
    assert list(read["host"]) == ["http://10.99.0.1:5000"]


def test_cni_hands_out_the_nodes_own_subnet() -> None:
    plugins = json.loads(render_cni(pod_subnet="10.42.9.0/24"))["plugins"]
    assert [plugin["type"] for plugin in plugins] == ["bridge", "portmap"]
    assert plugins[0]["ipam"]["ranges"] == [[{"subnet": "10.42.9.0/24"}]]


def test_kubelet_and_proxy_are_the_nodes_own() -> None:
    kubelet = yaml.safe_load(
        render_kubelet(
            address="10.99.0.11",
            cgroup="/slmops-edge-1",
            authority=Path("/ca"),
            certificate=Path("/crt"),
            key=Path("/key"),
            cluster_dns="10.43.0.10",
        )
    )
    assert kubelet["cgroupRoot"] == "/slmops-edge-1"
    assert kubelet["address"] == "10.99.0.11"
    assert kubelet["authentication"]["anonymous"]["enabled"] is False
    proxy = yaml.safe_load(
        render_kube_proxy(
            address="10.99.0.11", node="edge-1", kubeconfig=Path("/kc"), pod_cidr="10.42.0.0/16"
        )
    )
    assert proxy["mode"] == "nftables"
    assert proxy["hostnameOverride"] == "edge-1"
    assert proxy["healthzBindAddress"] == "10.99.0.11:10256"


def test_prometheus_finds_serving_pods_every_two_seconds() -> None:
    read = yaml.safe_load(render_prometheus(kubeconfig=Path("/kc")))
    assert read["global"]["scrape_interval"] == "2s"
    serve = next(job for job in read["scrape_configs"] if job["job_name"] == "slmserve")
    assert serve["kubernetes_sd_configs"] == [{"role": "pod", "kubeconfig_file": "/kc"}]
    keeps = {
        rule["source_labels"][0]: rule["regex"]
        for rule in serve["relabel_configs"]
        if rule.get("action") == "keep"
    }
    assert keeps["__meta_kubernetes_pod_label_slmops_dev_role"] == "serve"
    assert keeps["__meta_kubernetes_pod_label_app_kubernetes_io_managed_by"] == "slmops"


def test_registry_listens_only_where_it_is_told() -> None:
    read = yaml.safe_load(render_registry(address="10.99.0.1:5000", storage=Path("/store")))
    assert read["http"]["addr"] == "10.99.0.1:5000"
    assert read["storage"]["filesystem"]["rootdirectory"] == "/store"


def test_dns_runs_on_the_server_and_forwards_nothing() -> None:
    objects = {item["kind"]: item for item in build_dns_objects()}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"node-role.kubernetes.io/control-plane": "true"}
    assert objects["Service"]["spec"]["clusterIP"] == "10.43.0.10"
    assert "forward" not in objects["ConfigMap"]["data"]["Corefile"]


def test_the_prometheus_service_leads_to_the_bridge() -> None:
    objects = {item["kind"]: item for item in build_monitoring_objects()}
    assert "selector" not in objects["Service"]["spec"]
    assert objects["EndpointSlice"]["endpoints"][0]["addresses"] == ["10.99.0.1"]
    assert objects["EndpointSlice"]["metadata"]["labels"] == {"kubernetes.io/service-name": "prometheus"}


def test_fake_nodes_alternate_sites_and_kwok_accepts_the_parallelism() -> None:
    sites = [render_fleet_node(index)["metadata"]["labels"]["slmops.dev/site"] for index in range(4)]
    assert sites == ["site-a", "site-b", "site-a", "site-b"]
    documents = list(yaml.safe_load_all((RIG_SOURCE / "kwok.yaml").read_text()))
    assert documents[0]["options"]["nodeLeaseParallelism"] > 0
    assert documents[0]["options"]["nodeLeaseDurationSeconds"] == 40
