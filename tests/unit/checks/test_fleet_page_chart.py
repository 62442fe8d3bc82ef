# SPDX-License-Identifier: Apache-2.0
"""The chart's fleet page: who can reach it, with which values."""

from typing import Any

from e2e.checks.helm import NAMESPACE, find, objects, render_chart
from e2e.checks.network_policy import Connection, Endpoint, is_allowed

PORT = 8080
OPERATOR = Endpoint(
    address="10.42.0.5",
    namespace=NAMESPACE,
    labels={
        "app.kubernetes.io/name": "slmops",
        "app.kubernetes.io/instance": "slmops",
        "app.kubernetes.io/component": "operator",
    },
    ports={"metrics": 9090, "health": 8081, "page": PORT},
)
PROXY = Endpoint(
    address="10.42.0.9", namespace="login", labels={"app": "proxy"}, namespace_labels={"name": "login"}
)
STRANGER = Endpoint(address="10.42.0.11", namespace="shop", labels={"app": "till"})
FROM = [
    {
        "namespaceSelector": {"matchLabels": {"name": "login"}},
        "podSelector": {"matchLabels": {"app": "proxy"}},
    }
]


def rendered(**page: Any) -> list[dict[str, Any]]:
    return objects(render_chart({"networkPolicy": {"enabled": True}, "fleetPage": page}))


def container(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = find(bodies, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(bodies: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(bodies)["env"]}


def reaches(source: Endpoint, bodies: list[dict[str, Any]]) -> bool:
    policies = [body for body in bodies if body["kind"] == "NetworkPolicy"]
    return is_allowed(Connection(source=source, target=OPERATOR, port=PORT), policies)


def test_by_default_it_is_for_port_forwarding_alone() -> None:
    bodies = rendered()
    assert environment(bodies)["SLMOPS_PAGE_PORT"] == str(PORT)
    assert environment(bodies)["SLMOPS_PAGE_HOST"] == "127.0.0.1"
    assert not [body for body in bodies if body["kind"] == "Service"]
    assert not reaches(PROXY, bodies)


def test_it_can_be_left_out() -> None:
    found = environment(rendered(enabled=False, service={"enabled": True}))
    assert not [name for name in found if name.startswith("SLMOPS_PAGE")]


def test_a_service_admits_nobody_that_is_not_named() -> None:
    bodies = rendered(service={"enabled": True, "type": "NodePort", "port": 8088, "annotations": {"a": "b"}})
    service = find(bodies, "Service", "slmops-page")
    assert service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["type"] == "NodePort"
    assert service["spec"]["ports"] == [{"name": "http", "port": 8088, "targetPort": "page"}]
    assert service["spec"]["selector"].items() <= OPERATOR.labels.items()
    assert {"name": "page", "containerPort": PORT} in container(bodies)["ports"]
    assert environment(bodies)["SLMOPS_PAGE_HOST"] == "::", "IPv4 and IPv6"
    assert not reaches(PROXY, bodies)


def test_the_names_that_it_answers_to_are_handed_on() -> None:
    bodies = rendered(service={"enabled": True}, hosts=["fleet.example.com", "[fd00::1]"])
    assert environment(bodies)["SLMOPS_PAGE_HOSTS"] == "fleet.example.com,[fd00::1]"
    assert "SLMOPS_PAGE_HOSTS" not in environment(rendered())


def test_a_service_admits_who_is_named() -> None:
    bodies = rendered(service={"enabled": True}, **{"from": FROM})
    assert reaches(PROXY, bodies)
    assert not reaches(STRANGER, bodies)
    metrics = Connection(source=STRANGER, target=OPERATOR, port=9090)
    assert is_allowed(metrics, [body for body in bodies if body["kind"] == "NetworkPolicy"])
