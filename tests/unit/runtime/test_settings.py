# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment."""

import logging
from pathlib import Path

import pytest

from slmops.model.config import NetworkConfig
from slmops.runtime.settings import SettingsError, read_settings

IMAGE = {"SLMOPS_RUNTIME_IMAGE": "registry/runtime:1"}


def test_defaults() -> None:
    found = read_settings(IMAGE, default_namespace="slmops-system")
    assert found.planner.runtime_image == "registry/runtime:1"
    assert found.planner.allowed_host_paths == ("/var/lib/slmops",)
    assert found.planner.allowed_file_paths == ()
    assert (found.namespace, found.watch_namespaces, found.planner.prometheus_url) == (
        "slmops-system",
        (),
        "",
    )
    assert (found.prometheus_credentials_dir, found.prometheus_tenant) == ("", "")
    assert found.planner.allowed_prometheus_urls == ()
    assert (found.metrics_port, found.health_port) == (9090, 8081)
    assert found.health_host == "0.0.0.0"
    assert found.planner.store_agent_port == 8491
    assert found.planner.store_agent_path == "/var/lib/slmops"
    assert (found.log_format, found.log_level) == ("json", logging.INFO)


def test_everything_set(tmp_path: Path) -> None:
    found = read_settings(
        IMAGE
        | {
            "SLMOPS_PROMETHEUS_URL": "https://prometheus.example/prom",
            "SLMOPS_PROMETHEUS_CREDENTIALS_DIR": str(tmp_path),
            "SLMOPS_PROMETHEUS_TENANT": "edge|lab",
            "SLMOPS_ALLOWED_PROMETHEUS_URLS": "https://metrics.example/team-a, http://prom:9090",
            "SLMOPS_RUNTIME_PULL_POLICY": "Always",
            "SLMOPS_NAMESPACE": "ops",
            "SLMOPS_WATCH_NAMESPACES": "a, b,",
            "SLMOPS_ALLOWED_HOST_PATHS": "/data,/var/lib/slmops",
            "SLMOPS_ALLOWED_FILE_PATHS": "/srv/models",
            "SLMOPS_LOG_FORMAT": "text",
            "SLMOPS_LOG_LEVEL": "debug",
            "SLMOPS_METRICS_PORT": "0",
            "SLMOPS_HEALTH_PORT": "1234",
            "SLMOPS_PAGE_HOSTS": "Fleet.example.com, [fd00::1]",
            "SLMOPS_NODE_SETTLE_SECONDS": "0",
            "SLMOPS_STORE_AGENT_PORT": "0",
            "SLMOPS_STORE_AGENT_PATH": "/data/models",
        }
    )
    assert found.watch_namespaces == ("a", "b")
    assert found.prometheus_credentials_dir == str(tmp_path)
    assert found.page_hosts == ("fleet.example.com", "[fd00::1]")
    assert found.prometheus_tenant == "edge|lab"
    assert found.planner.allowed_prometheus_urls == ("https://metrics.example/team-a", "http://prom:9090")
    assert found.planner.runtime_pull_policy == "Always"
    assert found.planner.store_agent_port == 0
    assert found.planner.store_agent_path == "/data/models"
    assert found.planner.allowed_host_paths == ("/data", "/var/lib/slmops")
    assert found.planner.node_settle_seconds == 0
    assert (found.log_format, found.log_level, found.metrics_port) == ("text", logging.DEBUG, 0)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("SLMOPS_RUNTIME_IMAGE", "", "name the inference server's image"),
        ("SLMOPS_PROMETHEUS_URL", "prometheus:9090", "such as http://"),
        ("SLMOPS_PAGE_HOSTS", "fleet.example.com:443", "without a port"),
        ("SLMOPS_PAGE_HOSTS", "*.example.com", "such as fleet.example.com"),
        ("SLMOPS_HEALTH_HOST", "localhost", "must be an IP address"),
        ("SLMOPS_PROMETHEUS_URL", "http://p/?x=1", "without a query"),
        ("SLMOPS_PROMETHEUS_URL", "http://u:top-secret@p", "belong into a Secret"),
        ("SLMOPS_PROMETHEUS_CREDENTIALS_DIR", "/nowhere", "mount the Secret there"),
        ("SLMOPS_PROMETHEUS_CREDENTIALS_DIR", "/", "https only"),
        ("SLMOPS_PROMETHEUS_TENANT", "a b", "tenant's id"),
        ("SLMOPS_PROMETHEUS_TENANT", "a\r\nX: y", "tenant's id"),
        ("SLMOPS_ALLOWED_PROMETHEUS_URLS", "https://a.example,metrics.example", "'metrics.example' must be"),
        ("SLMOPS_ALLOWED_PROMETHEUS_URLS", "https://a.example/../b", "without .."),
        ("SLMOPS_ALLOWED_PROMETHEUS_URLS", "https://u:top-secret@a.example", "and credentials"),
        ("SLMOPS_RUNTIME_PULL_POLICY", "Sometimes", "one of Always, IfNotPresent, Never"),
        ("SLMOPS_WATCH_NAMESPACES", "Prod", "'Prod' is not the name of a namespace"),
        ("SLMOPS_ALLOWED_HOST_PATHS", "var/lib", "absolute path"),
        ("SLMOPS_ALLOWED_FILE_PATHS", "/srv/../etc", "without .."),
        ("SLMOPS_ALLOWED_SOURCE_HOSTS", "https://a.example", "must be a host such as models.example.com"),
        ("SLMOPS_ALLOWED_SOURCE_HOSTS", "a.example,*", "'*' must be a host"),
        ("SLMOPS_NETWORK_POLICY", "Off", "one of Managed, None"),
        ("SLMOPS_CLIENTS", "Nobody", "one of Any, Namespace"),
        ("SLMOPS_METRICS_FROM", "prometheus", "JSON list of peers"),
        ("SLMOPS_METRICS_FROM", '[{"from": []}]', "list of peers as in a NetworkPolicy"),
        ("SLMOPS_DNS_TO", "{}", "list of peers as in a NetworkPolicy"),
        ("SLMOPS_LOG_FORMAT", "xml", "one of json, text"),
        ("SLMOPS_LOG_LEVEL", "loud", "one of DEBUG"),
        ("SLMOPS_METRICS_PORT", "70000", "port number"),
        ("SLMOPS_HEALTH_PORT", "-1", "port number"),
        ("SLMOPS_NODE_SETTLE_SECONDS", "1m", "from 0 to 600"),
        ("SLMOPS_STORE_AGENT_PORT", "http", "port number"),
        ("SLMOPS_STORE_AGENT_PATH", "models", "absolute path"),
        ("SLMOPS_STORE_AGENT_PATH", "/var/../etc", "without .."),
    ],
)
def test_wrong_value_names_the_variable_and_the_cure(name: str, value: str, cure: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(IMAGE | {name: value})
    assert name in str(caught.value)
    assert cure in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "top-secret" not in str(caught.value)


def test_images_by_engine() -> None:
    found = read_settings(
        IMAGE | {"SLMOPS_ENGINE_IMAGES": "llama.cpp=a/llama:1, openvino=b:5000/ov@sha256:0"}
    )
    assert found.planner.engine_images == {"llama.cpp": "a/llama:1", "openvino": "b:5000/ov@sha256:0"}
    assert read_settings(IMAGE).planner.engine_images == {}


@pytest.mark.parametrize("text", ["vllm=a:1", "openvino", "openvino=", "=a:1"])
def test_a_wrong_image_of_an_engine_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"SLMOPS_ENGINE_IMAGES: .* must be engine=image with one of"):
        read_settings(IMAGE | {"SLMOPS_ENGINE_IMAGES": text})


def test_what_network_policies_rest_on() -> None:
    default = read_settings(IMAGE, default_namespace="ops").planner
    assert default.network == NetworkConfig(operator_namespace="ops")
    assert default.allowed_source_hosts == ()
    assert default.hugging_face_endpoint == "https://huggingface.co"
    found = read_settings(
        IMAGE
        | {
            "SLMOPS_NAMESPACE": "slmops-system",
            "SLMOPS_NETWORK_POLICY": "None",
            "SLMOPS_CLIENTS": "Namespace",
            "SLMOPS_METRICS_FROM": '[{"ipBlock": {"cidr": "192.0.2.0/24"}}]',
            "SLMOPS_DNS_TO": '[{"namespaceSelector": {}, "podSelector": {}}]',
            "SLMOPS_ALLOWED_SOURCE_HOSTS": "a.example, *.b.example:8443,[2001:db8::1]",
            "HF_ENDPOINT": "https://hub.example",
        }
    ).planner
    assert found.network == NetworkConfig(
        default_mode="None",
        default_clients="Namespace",
        operator_namespace="slmops-system",
        metrics_from=({"ipBlock": {"cidr": "192.0.2.0/24"}},),
        dns_to=({"namespaceSelector": {}, "podSelector": {}},),
    )
    assert found.allowed_source_hosts == ("a.example", "*.b.example:8443", "[2001:db8::1]")
    assert found.hugging_face_endpoint == "https://hub.example"
