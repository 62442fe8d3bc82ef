# SPDX-License-Identifier: Apache-2.0
"""What the operator's NetworkPolicies allow and deny, by the evaluator of their rules."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.checks.network_policy import Connection, Endpoint, is_allowed
from slmops.api import SLMDeploymentSpec
from slmops.model.config import NetworkConfig, OperatorConfig
from slmops.model.observed import NodeView
from slmops.planning import network
from slmops.planning.names import Names
from slmops.planning.network import CONTENT, MAX_NODE_NETWORKS, build_policies, is_forbidden
from slmops.planning.revision import Revision, RevisionVariant
from slmwire import labels
from slmwire.labels import Role
from slmwire.manifest import Manifest, ManifestFile
from slmwire.paths import AGENT_PORT, HTTP_PORT
from tests.unit.planning.fleet_spec import spec_body

NAMES = Names("slm", "orders")
NAMESPACED = NetworkConfig(default_clients="Namespace", operator_namespace="slmops-system")
CONFIG = OperatorConfig(runtime_image="r", network=NAMESPACED)
NODES = [NodeView(name="a", labels={}, ready=True, address="198.51.100.7")]


def revision_of(*urls: str) -> Revision:
    files = tuple(
        ManifestFile(path=f"f{index}", size=1, sha256="0" * 64, url=url) for index, url in enumerate(urls)
    )
    variant = RevisionVariant(
        name="int4",
        node_selector=SLMDeploymentSpec.model_validate(spec_body()).placement.node_selector,
        memory_bytes=1,
        manifest=Manifest(files=files),
        source_hash="",
        reference="",
        signature="",
        serve_template={},
        prefetch_template={},
    )
    return Revision(revision="r1", number=1, model_version="v1", variants=(variant,))


def policies(
    *urls: str,
    privacy: Mapping[str, Any] | None = None,
    config: OperatorConfig = CONFIG,
    nodes: Iterable[NodeView] = NODES,
) -> list[dict[str, Any]]:
    spec = SLMDeploymentSpec.model_validate(spec_body() | {"privacy": privacy or {}})
    return list(build_policies(NAMES, spec, config, revisions=[revision_of(*urls)], nodes=nodes))


def pod(address: str, namespace: str, tags: Mapping[str, str]) -> Endpoint:
    space = {"kubernetes.io/metadata.name": namespace}
    return Endpoint(address=address, namespace=namespace, labels=dict(tags), namespace_labels=space)


def ours(role: Role, deployment: str = "orders") -> Endpoint:
    tags = {
        labels.MANAGED_BY: labels.MANAGED_BY_VALUE,
        labels.DEPLOYMENT: deployment,
        labels.ROLE: role.value,
        labels.REVISION: "r1",
    }
    return pod("10.42.1.7", "slm", tags)


SERVE, PREFETCH, RELEASE = ours(Role.SERVE), ours(Role.PREFETCH), ours(Role.RELEASE)
OTHER = ours(Role.SERVE, "other")
CLIENT = pod("10.42.1.8", "slm", {"app": "till"})
STRANGER = pod("10.42.1.9", "shop", {"app": "till"})
PROMETHEUS = pod("10.42.2.2", "monitoring", {"app.kubernetes.io/name": "prometheus"})
OPERATOR = pod("10.42.0.9", "slmops-system", {"app.kubernetes.io/component": "operator"})
FALSE_OPERATOR = pod("10.42.0.8", "shop", {"app.kubernetes.io/component": "operator"})
DNS = pod("10.42.2.3", "kube-system", {"k8s-app": "kube-dns"})
MIRROR = pod("10.42.3.3", "mirror", {"app": "files"})
INTERNET = Endpoint(address="203.0.113.80")
SOURCE = Endpoint(address="192.0.2.10")
NODE = Endpoint(address="198.51.100.9")
METADATA = Endpoint(address="169.254.169.254")

BY_NAME = "https://models.example.com/v1/model.onnx"
BY_ADDRESS = "https://192.0.2.10:8443/v1/model.onnx"


def go(
    rules: list[dict[str, Any]], source: Endpoint, target: Endpoint, port: int, protocol: Any = "TCP"
) -> bool:
    return is_allowed(Connection(source=source, target=target, port=port, protocol=protocol), rules)


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        (CLIENT, SERVE, HTTP_PORT, True),
        (CLIENT, SERVE, HTTP_PORT + 1, False),
        (STRANGER, SERVE, HTTP_PORT, False),
        (INTERNET, SERVE, HTTP_PORT, False),
        (PROMETHEUS, SERVE, HTTP_PORT, True),
        (PROMETHEUS, SERVE, 22, False),
        (OPERATOR, SERVE, HTTP_PORT, True),
        (FALSE_OPERATOR, SERVE, HTTP_PORT, False),
        (SERVE, INTERNET, 443, True),  # models.example.com may be any address
        (PREFETCH, INTERNET, 443, True),
        (PREFETCH, INTERNET, 80, False),
        (PREFETCH, INTERNET, 25, False),
        (SERVE, METADATA, 443, False),
        (SERVE, METADATA, 80, False),
        (PREFETCH, Endpoint(address="100.100.100.200"), 443, False),
        (PREFETCH, Endpoint(address="fd00:ec2::254"), 443, False),
        (PREFETCH, Endpoint(address="fe80::1"), 443, False),
        (PREFETCH, Endpoint(address="2001:db8::1"), 443, True),
        (SERVE, NODE, AGENT_PORT, True),
        (SERVE, NODE, 10250, False),
        (SERVE, INTERNET, AGENT_PORT, False),
        (SERVE, STRANGER, 80, False),
        (SERVE, CLIENT, HTTP_PORT, False),
        (RELEASE, INTERNET, 443, False),
        (RELEASE, NODE, AGENT_PORT, False),
        (OTHER, INTERNET, 25, True),  # another deployment's pods are not touched
        (CLIENT, INTERNET, 443, True),
        (STRANGER, CLIENT, 80, True),
    ],
)
def test_a_source_by_name(source: Endpoint, target: Endpoint, port: int, allowed: bool) -> None:
    assert go(policies(BY_NAME), source, target, port) is allowed


def test_a_source_by_address_is_all_that_is_reached() -> None:
    rules = policies(BY_ADDRESS)
    assert go(rules, PREFETCH, SOURCE, 8443) and go(rules, SERVE, SOURCE, 8443)
    assert not go(rules, SERVE, SOURCE, 443)
    assert not go(rules, SERVE, INTERNET, 8443)
    assert not go(rules, SERVE, DNS, 53, "UDP"), "nothing has a name, so nothing is asked"


def test_names_are_asked_at_the_clusters_dns_alone() -> None:
    rules = policies(BY_NAME)
    for protocol in ("UDP", "TCP"):
        assert go(rules, SERVE, DNS, 53, protocol)
        assert not go(rules, SERVE, INTERNET, 53, protocol)
        assert not go(rules, RELEASE, DNS, 53, protocol)
    assert not go(rules, SERVE, STRANGER, 53)


@pytest.mark.parametrize(
    "url",
    ["http://files.mirror/m", "http://files.mirror.svc/m", "http://files.mirror.svc.cluster.local:80/m"],
)
def test_a_services_pods_are_reached_at_their_own_port(url: str) -> None:
    # Policies see the pod's port, 9000 say, and not the Service's.
    rules = policies(url)
    assert go(rules, PREFETCH, MIRROR, 9000)
    assert not go(rules, PREFETCH, STRANGER, 9000)
    assert not go(rules, PREFETCH, INTERNET, 9000)


def test_a_bare_name_is_a_service_of_the_namespace() -> None:
    rules = policies("http://files/m")
    assert go(rules, PREFETCH, CLIENT, 9000)
    assert not go(rules, PREFETCH, STRANGER, 9000)


def test_files_of_the_node_and_images_need_no_network() -> None:
    rules = policies("file:///opt/model.onnx", "")
    assert not go(rules, PREFETCH, INTERNET, 443)
    assert not go(rules, PREFETCH, DNS, 53, "UDP")
    assert go(rules, PREFETCH, NODE, AGENT_PORT)


def test_the_sources_of_all_revisions_are_open() -> None:
    spec = SLMDeploymentSpec.model_validate(spec_body())
    both = [revision_of(BY_ADDRESS), revision_of("http://192.0.2.11/m")]
    rules = list(build_policies(NAMES, spec, CONFIG, revisions=both, nodes=NODES))
    assert go(rules, PREFETCH, SOURCE, 8443)
    assert go(rules, PREFETCH, Endpoint(address="192.0.2.11"), 80)
    assert not go(rules, PREFETCH, Endpoint(address="192.0.2.11"), 8443)


def test_with_denied_serving_pods_reach_nothing_and_others_fetch() -> None:
    rules = policies(BY_NAME, privacy={"egress": "Denied"})
    for target, port in ((INTERNET, 443), (NODE, AGENT_PORT), (DNS, 53), (METADATA, 80), (CLIENT, 80)):
        assert not go(rules, SERVE, target, port)
    assert go(rules, PREFETCH, INTERNET, 443) and go(rules, PREFETCH, NODE, AGENT_PORT)
    assert go(rules, CLIENT, SERVE, HTTP_PORT)


@given(
    address=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    port=st.integers(min_value=1, max_value=65535),
    protocol=st.sampled_from(["TCP", "UDP"]),
)
def test_with_denied_there_is_no_address_that_a_serving_pod_reaches(
    address: str, port: int, protocol: str
) -> None:
    rules = policies(BY_NAME, BY_ADDRESS, privacy={"egress": "Denied"})
    assert not go(rules, SERVE, Endpoint(address=address), port, protocol)


_HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=4, network="169.254.0.0/16").map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=6, network="fe80::/10").map(lambda address: f"[{address}]"),
    st.ip_addresses(v=4, network="169.254.0.0/16").map(lambda address: f"[::ffff:{address}]"),
    st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True),
)
_URLS = st.tuples(st.sampled_from(["http", "https"]), _HOSTS, st.integers(1, 65535)).map(
    lambda parts: f"{parts[0]}://{parts[1]}:{parts[2]}/m"
)
_SECRET_ADDRESSES = st.one_of(
    st.ip_addresses(v=4, network="169.254.0.0/16"),
    st.ip_addresses(v=6, network="fe80::/10"),
    st.sampled_from(["100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"]),
).map(str)


@given(
    urls=st.lists(_URLS, max_size=5),
    egress=st.sampled_from(["Sources", "Denied"]),
    addresses=st.lists(st.ip_addresses().map(str), max_size=3),
    many=st.booleans(),
    target=_SECRET_ADDRESSES,
    port=st.integers(1, 65535),
    role=st.sampled_from(list(Role)),
)
def test_no_link_local_or_metadata_address_is_ever_reached(
    urls: list[str], egress: str, addresses: list[str], many: bool, target: str, port: int, role: Role
) -> None:
    where = [*addresses, target]
    where += [f"10.0.{index}.1" for index in range(MAX_NODE_NETWORKS + 1)] if many else []
    nodes = [NodeView(name=a, labels={}, ready=True, address=a) for a in where]
    rules = policies(*urls, privacy={"egress": egress}, nodes=nodes)
    for protocol in ("TCP", "UDP"):
        assert not go(rules, ours(role), Endpoint(address=target), port, protocol), rules


@given(urls=st.lists(_URLS, min_size=1, max_size=5))
def test_what_sources_name_by_address_is_reached_unless_it_is_forbidden(urls: list[str]) -> None:
    rules = policies(*urls)
    for url in urls:
        host, _, port = url.split("/")[2].rpartition(":")
        address = host.strip("[]")
        if address[0].isdigit() or ":" in address:
            # An IPv4 address in IPv6 clothes leaves the pod as IPv4; no policy ever sees the other form.
            parsed = ip_address(address)
            address = str((parsed.version == 6 and parsed.ipv4_mapped) or parsed)
            reached = go(rules, PREFETCH, Endpoint(address=address), int(port))
            assert reached is not is_forbidden(address), url


def test_many_sites_open_the_stores_port_only() -> None:
    nodes = [
        NodeView(name=f"n{i}", labels={}, ready=True, address=f"10.{i // 250}.{i % 250}.4")
        for i in range(300)
    ]
    rules = policies(BY_ADDRESS, nodes=nodes)
    assert go(rules, PREFETCH, Endpoint(address="10.1.9.4"), AGENT_PORT)
    assert not go(rules, PREFETCH, Endpoint(address="10.1.9.4"), 443)
    alone = policies(BY_ADDRESS, config=replace(CONFIG, store_agent_port=0))
    assert not go(alone, PREFETCH, NODE, AGENT_PORT)


def test_clients_are_whom_spec_names() -> None:
    by_name = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    tills = {"podSelector": {"matchLabels": {"app": "till"}}}
    rules = policies(BY_NAME, privacy={"clients": [by_name | tills]})
    assert go(rules, STRANGER, SERVE, HTTP_PORT)
    assert not go(rules, CLIENT, SERVE, HTTP_PORT)
    assert not go(rules, pod("10.42.1.3", "shop", {"app": "camera"}), SERVE, HTTP_PORT)
    assert go(rules, PROMETHEUS, SERVE, HTTP_PORT)
    own = policies(BY_NAME, privacy={"clients": [{}]}, config=OperatorConfig(runtime_image="r"))
    assert go(own, CLIENT, SERVE, HTTP_PORT) and not go(own, STRANGER, SERVE, HTTP_PORT)
    every = policies(BY_NAME, privacy={"clients": [{"namespaceSelector": {}}]})
    assert go(every, STRANGER, SERVE, HTTP_PORT)
    nobody = policies(BY_NAME, privacy={"clients": []})
    assert not go(nobody, CLIENT, SERVE, HTTP_PORT) and go(nobody, OPERATOR, SERVE, HTTP_PORT)


def test_by_default_who_came_in_before_an_upgrade_still_does() -> None:
    rules = policies(BY_NAME, config=OperatorConfig(runtime_image="r"))
    for source in (CLIENT, STRANGER, PROMETHEUS, INTERNET):
        assert go(rules, source, SERVE, HTTP_PORT)
        assert not go(rules, source, SERVE, 22)
    assert not go(rules, SERVE, INTERNET, 80)


def test_the_administrator_says_who_monitors_and_where_the_dns_is() -> None:
    collector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    network = replace(NAMESPACED, metrics_from=(collector,), dns_to=({"ipBlock": {"cidr": "192.0.2.53/32"}},))
    rules = policies(BY_NAME, config=replace(CONFIG, network=network))
    assert go(rules, STRANGER, SERVE, HTTP_PORT) and not go(rules, PROMETHEUS, SERVE, HTTP_PORT)
    assert go(rules, SERVE, Endpoint(address="192.0.2.53"), 53, "UDP") and not go(
        rules, SERVE, DNS, 53, "UDP"
    )


def test_equal_rules_have_an_equal_hash_whatever_the_order() -> None:
    nodes = [NodeView(name=a, labels={}, ready=True, address=a) for a in ("198.51.100.7", "192.0.2.1")]
    first = policies(BY_NAME, BY_ADDRESS, nodes=nodes)
    assert policies(BY_ADDRESS, BY_NAME, nodes=nodes[::-1]) == first
    other = policies(BY_NAME, nodes=nodes)
    assert [p["metadata"]["annotations"][CONTENT] for p in other] != [
        p["metadata"]["annotations"][CONTENT] for p in first
    ]


def test_a_look_at_many_nodes_parses_no_network_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look asks for every node: what is forbidden is worked out once, each address once."""
    nodes = [NodeView(name=f"n{i}", labels={}, ready=True, address=f"10.9.0.{i}") for i in range(200)]
    first = network._node_networks(nodes)
    assert first == [{"ipBlock": {"cidr": "10.9.0.0/24"}}]
    monkeypatch.setattr(network, "ip_network", pytest.fail)
    assert network._node_networks(nodes) == first
