# SPDX-License-Identifier: Apache-2.0
"""The operator's configuration from the environment: read once, complained about in one line."""

import ipaddress
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmops.api.variant import ENGINE_NAMES
from slmops.model.config import PUBLIC_HUB, NetworkConfig, OperatorConfig
from slmops.model.hosts import is_host_entry
from slmops.model.urls import is_allowed_url
from slmops.runtime.network_settings import read_network
from slmwire.paths import AGENT_PORT, DEFAULT_STORE_PATH

DEFAULT_METRICS_PORT: Final = 9090
DEFAULT_HEALTH_PORT: Final = 8081
DEFAULT_PAGE_HOST: Final = "127.0.0.1"
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
_LOG_FORMATS: Final = ("json", "text")
_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_URL: Final = re.compile(r"https?://[^\s/?#@]+[^\s?#@]*")
_TENANT: Final = re.compile(r"[A-Za-z0-9!._*'()|-]{0,150}")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the process was told."""

    planner: OperatorConfig
    prometheus_credentials_dir: str
    """Folder that its Secret is mounted at; empty: no credentials."""
    prometheus_tenant: str
    namespace: str
    """Where the operator's Lease lies."""
    watch_namespaces: tuple[str, ...]
    """Empty: all."""
    log_format: str
    log_level: int
    metrics_port: int
    """0 serves no metrics."""
    health_port: int
    """0 serves no health endpoint."""
    health_host: str
    """Address that the health endpoint listens on: all of IPv4, or the pod's own, which may be of IPv6."""
    page_port: int
    """0 serves no fleet page."""
    page_host: str
    """Address that the fleet page listens on; the loopback one is reached by port forwarding alone."""
    page_hosts: tuple[str, ...]
    """Names that the fleet page answers to besides localhost, in lower case; empty: see start_server."""
    identity: str
    """Of this process among the operator's processes."""


def read_settings(
    environ: Mapping[str, str] | None = None, *, default_namespace: str = "default"
) -> Settings:
    """Settings from `environ` (the process's own by default). Raises SettingsError."""
    source = os.environ if environ is None else environ

    def text(name: str, default: str = "") -> str:
        return source.get(name, "").strip() or default

    image = text("SLMOPS_RUNTIME_IMAGE")
    if not image:
        raise SettingsError(
            "SLMOPS_RUNTIME_IMAGE is not set: name the inference server's image (chart value runtimeImage)"
        )
    url = text("SLMOPS_PROMETHEUS_URL")
    if url and not _URL.fullmatch(url):
        shown = "(with credentials)" if "@" in url else url
        raise SettingsError(
            f"SLMOPS_PROMETHEUS_URL={shown}: must be a URL such as http://prometheus.monitoring:9090, "
            "without a query; credentials belong into a Secret (chart value prometheus.existingSecret)"
        )
    credentials_dir = text("SLMOPS_PROMETHEUS_CREDENTIALS_DIR")
    if credentials_dir and not Path(credentials_dir).is_dir():
        raise SettingsError(
            f"SLMOPS_PROMETHEUS_CREDENTIALS_DIR={credentials_dir}: is no folder; mount the Secret there or "
            "leave it unset"
        )
    if credentials_dir and not url.startswith("https://"):
        raise SettingsError(
            "SLMOPS_PROMETHEUS_CREDENTIALS_DIR: credentials go over https only; give SLMOPS_PROMETHEUS_URL "
            "an https URL or leave this unset"
        )
    tenant = text("SLMOPS_PROMETHEUS_TENANT")
    if not _TENANT.fullmatch(tenant):
        raise SettingsError(
            f"SLMOPS_PROMETHEUS_TENANT={tenant!r}: must be a tenant's id: letters, digits and !-_.*'()|"
        )
    namespaces = _list(text("SLMOPS_WATCH_NAMESPACES"))
    for namespace in namespaces:
        if not _NAMESPACE.fullmatch(namespace):
            raise SettingsError(f"SLMOPS_WATCH_NAMESPACES: {namespace!r} is not the name of a namespace")
    return Settings(
        planner=OperatorConfig(
            runtime_image=image,
            runtime_pull_policy=_choice(
                "SLMOPS_RUNTIME_PULL_POLICY",
                text("SLMOPS_RUNTIME_PULL_POLICY", "IfNotPresent"),
                _PULL_POLICIES,
            ),
            engine_images=_engine_images(text("SLMOPS_ENGINE_IMAGES")),
            optimizer_image=text("SLMOPS_OPTIMIZER_IMAGE"),
            allowed_host_paths=_paths(
                "SLMOPS_ALLOWED_HOST_PATHS", text("SLMOPS_ALLOWED_HOST_PATHS", "/var/lib/slmops")
            ),
            allowed_file_paths=_paths("SLMOPS_ALLOWED_FILE_PATHS", text("SLMOPS_ALLOWED_FILE_PATHS")),
            allowed_source_hosts=_hosts("SLMOPS_ALLOWED_SOURCE_HOSTS", text("SLMOPS_ALLOWED_SOURCE_HOSTS")),
            hugging_face_endpoint=text("HF_ENDPOINT", PUBLIC_HUB),
            network=_network(text, namespace=text("SLMOPS_NAMESPACE", default_namespace)),
            prometheus_url=url,
            allowed_prometheus_urls=_urls(
                "SLMOPS_ALLOWED_PROMETHEUS_URLS", text("SLMOPS_ALLOWED_PROMETHEUS_URLS")
            ),
            node_settle_seconds=_seconds(
                "SLMOPS_NODE_SETTLE_SECONDS", text("SLMOPS_NODE_SETTLE_SECONDS", "30")
            ),
            store_agent_port=_port(
                "SLMOPS_STORE_AGENT_PORT", text("SLMOPS_STORE_AGENT_PORT", str(AGENT_PORT))
            ),
            store_agent_path=_path(
                "SLMOPS_STORE_AGENT_PATH", text("SLMOPS_STORE_AGENT_PATH", DEFAULT_STORE_PATH)
            ),
        ),
        prometheus_credentials_dir=credentials_dir,
        prometheus_tenant=tenant,
        namespace=text("SLMOPS_NAMESPACE", default_namespace),
        watch_namespaces=namespaces,
        log_format=_choice("SLMOPS_LOG_FORMAT", text("SLMOPS_LOG_FORMAT", "json"), _LOG_FORMATS),
        log_level=int(
            getattr(
                logging,
                _choice("SLMOPS_LOG_LEVEL", text("SLMOPS_LOG_LEVEL", "INFO").upper(), _LOG_LEVELS),
            )
        ),
        metrics_port=_port("SLMOPS_METRICS_PORT", text("SLMOPS_METRICS_PORT", str(DEFAULT_METRICS_PORT))),
        health_port=_port("SLMOPS_HEALTH_PORT", text("SLMOPS_HEALTH_PORT", str(DEFAULT_HEALTH_PORT))),
        health_host=_address("SLMOPS_HEALTH_HOST", text("SLMOPS_HEALTH_HOST", "0.0.0.0")),
        page_port=_port("SLMOPS_PAGE_PORT", text("SLMOPS_PAGE_PORT", "0")),
        page_hosts=_names("SLMOPS_PAGE_HOSTS", text("SLMOPS_PAGE_HOSTS")),
        page_host=_address("SLMOPS_PAGE_HOST", text("SLMOPS_PAGE_HOST", DEFAULT_PAGE_HOST)),
        # In a pod the process number is always the same, so a restarted container takes its Lease
        # over at once; on a workstation it tells two operators apart.
        identity=f"{socket.gethostname()}-{os.getpid()}",
    )


def _engine_images(text: str) -> dict[str, str]:
    """`engine=image,engine=image`."""
    images: dict[str, str] = {}
    for entry in _list(text):
        engine, equals, image = (part.strip() for part in entry.partition("="))
        if engine not in ENGINE_NAMES or not equals or not image:
            raise SettingsError(
                f"SLMOPS_ENGINE_IMAGES: {entry!r} must be engine=image with one of {', '.join(ENGINE_NAMES)} "
                "(chart value runtime.engineImages)"
            )
        images[engine] = image
    return images


def _list(text: str) -> tuple[str, ...]:
    return tuple(entry for part in text.split(",") if (entry := part.strip()))


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise SettingsError(f"{name}={value}: must be one of {', '.join(choices)}")
    return value


def _port(name: str, value: str) -> int:
    if not value.isdigit() or not 0 <= int(value) <= 65535:
        raise SettingsError(f"{name}={value}: must be a port number, or 0 for none")
    return int(value)


def _address(name: str, value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise SettingsError(
            f"{name}={value}: must be an IP address to listen on, such as 127.0.0.1 or 0.0.0.0"
        ) from None


def _seconds(name: str, value: str) -> float:
    if not value.isdecimal() or int(value) > 600:
        raise SettingsError(f"{name}={value}: must be a whole number of seconds from 0 to 600")
    return float(value)


def _paths(name: str, value: str) -> tuple[str, ...]:
    return tuple(_path(name, path) for path in _list(value))


def _path(name: str, value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/"):
        raise SettingsError(f"{name}: {value!r} must be an absolute path without ..")
    return value


def _network(text: Callable[[str], str], *, namespace: str) -> NetworkConfig:
    try:
        return read_network(text, namespace=namespace)
    except ValueError as error:
        raise SettingsError(f"{error} (chart value privacy)") from error


def _hosts(name: str, value: str) -> tuple[str, ...]:
    hosts = _list(value)
    for host in hosts:
        if not is_host_entry(host):
            raise SettingsError(
                f"{name}: {host!r} must be a host such as models.example.com, *.example.com or 192.0.2.10, "
                "with :port if only that port is meant (chart value allowedSourceHosts)"
            )
    return hosts


def _names(name: str, value: str) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _list(value))
    for host in hosts:
        if not is_host_entry(host) or "*" in host or re.search(r":\d+$", host):
            raise SettingsError(
                f"{name}: {host!r} must be a host such as fleet.example.com or 192.0.2.10, without a port "
                "(chart value fleetPage.hosts)"
            )
    return hosts


def _urls(name: str, value: str) -> tuple[str, ...]:
    urls = _list(value)
    for url in urls:
        # One that allows nothing, not even itself, is a slip of the pen.
        if not _URL.fullmatch(url) or not is_allowed_url(url, (url,)):
            shown = "(with credentials)" if "@" in url else url
            raise SettingsError(
                f"{name}: {shown!r} must be the beginning of a URL such as https://metrics.example/team-a, "
                "without .., query and credentials"
            )
    return urls
