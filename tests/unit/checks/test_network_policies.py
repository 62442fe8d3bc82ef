# SPDX-License-Identifier: Apache-2.0
"""What the shipped NetworkPolicies allow and deny, by an evaluator of their rules."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from e2e.checks.helm import NAMESPACE, RELEASE, objects, render_chart
from e2e.checks.network_policy import Connection, Endpoint, Policy, is_allowed
from slmwire import labels
from slmwire.paths import AGENT_PORT, HTTP_PORT

EXAMPLE = Path(__file__).parents[3] / "manifests" / "examples" / "network-policy.yaml"


def pod(address: str, namespace: str, **tags: str) -> Endpoint:
    return Endpoint(
        address=address,
        namespace=namespace,
        labels={key.replace("__", "/").replace("_", "-"): value for key, value in tags.items()},
        namespace_labels={"kubernetes.io/metadata.name": namespace},
    )


def of_role(role: labels.Role) -> Endpoint:
    return Endpoint(
        address="10.42.1.7",
        namespace="slm",
        labels={labels.MANAGED_BY: labels.MANAGED_BY_VALUE, labels.ROLE: role.value},
        namespace_labels={"kubernetes.io/metadata.name": "slm"},
    )


def of_chart(component: str, *, ports: dict[str, int]) -> Endpoint:
    return Endpoint(
        address="10.42.0.9",
        namespace=NAMESPACE,
        labels={
            "app.kubernetes.io/name": "slmops",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": component,
        },
        namespace_labels={"kubernetes.io/metadata.name": NAMESPACE},
        ports=ports,
    )


SERVE, PREFETCH, RELEASE_POD = (of_role(role) for role in labels.Role)
OPERATOR = of_chart("operator", ports={"metrics": 9090, "health": 8081})
AGENT = of_chart("store-agent", ports={"store": AGENT_PORT})
CLIENT = pod("10.42.1.8", "slm", app="till")
STRANGER = pod("10.42.1.9", "other", app="till")
PROMETHEUS = pod("10.42.2.2", "monitoring", app="prometheus")
DNS = pod("10.42.2.3", "kube-system", k8s_app="kube-dns")
SOURCE = Endpoint(address="192.0.2.10")
NODE = Endpoint(address="198.51.100.7")
INTERNET = Endpoint(address="203.0.113.80")
API_SERVER = Endpoint(address="198.51.100.2")
METADATA = Endpoint(address="169.254.169.254")


def example() -> list[Policy]:
    found = [body for body in yaml.safe_load_all(EXAMPLE.read_text()) if body]
    return [body | {"metadata": body["metadata"] | {"namespace": "slm"}} for body in found]


def strict() -> list[Policy]:
    """As the example's comment says it: serving pods reach nothing at all."""
    bodies: list[Any] = copy.deepcopy(example())
    (fetch,) = (body for body in bodies if body["metadata"]["name"] == "slm-fetch")
    fetch["spec"]["podSelector"]["matchExpressions"][0]["values"].remove("serve")
    return bodies


def charts(**values: Any) -> list[Policy]:
    bodies = objects(render_chart({"networkPolicy": {"enabled": True, **values}}))
    return [body for body in bodies if body["kind"] == "NetworkPolicy"]


def go(source: Endpoint, target: Endpoint, port: int, policies: list[Policy], protocol: Any = "TCP") -> bool:
    return is_allowed(Connection(source=source, target=target, port=port, protocol=protocol), policies)


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
        (AGENT, SERVE, HTTP_PORT, False),
        (SERVE, SOURCE, 443, True),  # the fetcher's way is the server's as well
        (PREFETCH, SOURCE, 443, True),
        (PREFETCH, SOURCE, 80, False),
        (SERVE, NODE, AGENT_PORT, True),
        (SERVE, NODE, 10250, False),
        (SERVE, INTERNET, 443, False),
        (PREFETCH, INTERNET, 443, False),
        (SERVE, API_SERVER, 6443, False),
        (SERVE, METADATA, 80, False),
        (SERVE, CLIENT, 80, False),
        (SERVE, STRANGER, 80, False),
        (RELEASE_POD, SOURCE, 443, False),
        (RELEASE_POD, NODE, AGENT_PORT, False),
        (CLIENT, INTERNET, 443, True),  # pods of others are not touched
        (STRANGER, CLIENT, 80, True),
    ],
)
def test_the_example_for_a_tenant(source: Endpoint, target: Endpoint, port: int, allowed: bool) -> None:
    assert go(source, target, port, example()) is allowed


def test_names_are_asked_at_the_clusters_dns_alone() -> None:
    for protocol in ("UDP", "TCP"):
        assert go(SERVE, DNS, 53, example(), protocol)
        assert not go(SERVE, INTERNET, 53, example(), protocol)
        assert not go(RELEASE_POD, DNS, 53, example(), protocol)
    assert not go(SERVE, DNS, 443, example())


@given(
    address=st.ip_addresses(v=4).map(str),
    port=st.integers(min_value=1, max_value=65535),
    protocol=st.sampled_from(["TCP", "UDP"]),
)
def test_in_the_strict_form_a_serving_pod_reaches_nothing(address: str, port: int, protocol: str) -> None:
    assert not go(SERVE, Endpoint(address=address), port, strict(), protocol)
    assert not go(SERVE, DNS, 53, strict(), "UDP")


def test_in_the_strict_form_models_are_fetched_ahead_and_clients_are_served() -> None:
    assert go(PREFETCH, SOURCE, 443, strict())
    assert go(PREFETCH, NODE, AGENT_PORT, strict())
    assert go(CLIENT, SERVE, HTTP_PORT, strict())
    assert not go(STRANGER, SERVE, HTTP_PORT, strict())


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        (OPERATOR, API_SERVER, 6443, True),
        (OPERATOR, API_SERVER, 443, True),
        (OPERATOR, API_SERVER, 10250, False),
        (OPERATOR, PROMETHEUS, 9090, True),
        (OPERATOR, INTERNET, 443, True),  # a model source
        (OPERATOR, INTERNET, 22, False),
        (OPERATOR, METADATA, 80, False),
        (OPERATOR, SERVE, HTTP_PORT, True),
        (OPERATOR, PREFETCH, HTTP_PORT, False),
        (OPERATOR, CLIENT, HTTP_PORT, False),
        (PROMETHEUS, OPERATOR, 9090, True),
        (PROMETHEUS, OPERATOR, 8081, False),
        (PROMETHEUS, AGENT, AGENT_PORT, True),
        (NODE, AGENT, AGENT_PORT, True),
        (NODE, AGENT, 22, False),
        (AGENT, SOURCE, 443, False),
        (AGENT, NODE, AGENT_PORT, False),
        (AGENT, DNS, 53, False),
        (CLIENT, INTERNET, 443, True),
    ],
)
def test_the_charts_own(source: Endpoint, target: Endpoint, port: int, allowed: bool) -> None:
    assert go(source, target, port, charts()) is allowed


def test_the_charts_own_can_be_narrowed() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    policies = charts(
        apiServerCIDRs=["198.51.100.2/32"],
        apiServerPorts=[6443],
        sourcePorts=[],
        prometheusPorts=[9091],
        metricsFrom=[monitoring],
        storeAgentFrom=[{"ipBlock": {"cidr": "198.51.100.0/24"}}],
        extraEgress=[{"to": [{"ipBlock": {"cidr": "203.0.113.80/32"}}], "ports": [{"port": 8443}]}],
    )
    assert go(OPERATOR, API_SERVER, 6443, policies)
    assert not go(OPERATOR, NODE, 6443, policies)
    assert not go(OPERATOR, INTERNET, 443, policies)
    assert go(OPERATOR, INTERNET, 8443, policies)
    assert go(OPERATOR, PROMETHEUS, 9091, policies)
    assert go(PROMETHEUS, OPERATOR, 9090, policies)
    assert not go(STRANGER, OPERATOR, 9090, policies)
    assert go(NODE, AGENT, AGENT_PORT, policies)
    assert not go(STRANGER, AGENT, AGENT_PORT, policies)


def test_without_the_toggle_nothing_is_denied() -> None:
    bodies = objects(render_chart())
    assert not [body for body in bodies if body["kind"] == "NetworkPolicy"]
    without = objects(render_chart({"networkPolicy": {"enabled": True}, "storeAgent": {"enabled": False}}))
    assert sum(body["kind"] == "NetworkPolicy" for body in without) == 1


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({"podSelector": {}}, False),  # Ingress alone, without a rule
        ({"podSelector": {}, "ingress": [{}]}, True),
        ({"podSelector": {"matchLabels": {"a": "b"}}}, True),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, True),
        ({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}, False),
        ({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}, True),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 8000, "endPort": 8100}]}]}, True),
        ({"podSelector": {}, "ingress": [{"ports": [{"port": 8000, "endPort": 8050}]}]}, False),
        ({"podSelector": {}, "ingress": [{"ports": [{"protocol": "UDP"}]}]}, False),
    ],
)
def test_the_evaluator_knows_the_rules(spec: dict[str, Any], allowed: bool) -> None:
    policy = {"metadata": {"namespace": "slm"}, "spec": spec}
    assert go(STRANGER, SERVE, HTTP_PORT, [policy]) is allowed
