# SPDX-License-Identifier: Apache-2.0
"""The Prometheus that the chart can bring: what it may, what it scrapes, and who reaches it."""

from functools import cache
from typing import Any, Final

import pytest
import yaml

from e2e.checks.chart_prometheus import NAME, SCRAPES, configuration, is_own, with_prometheus
from e2e.checks.helm import CHART, NAMESPACE, find, objects, render_chart
from e2e.checks.network_policy import Connection, Endpoint, is_allowed, matches
from e2e.rig.tools import FAMILY_OF, family_version
from slmwire.paths import AGENT_PORT, HTTP_PORT

PLAIN: Final = cache(with_prometheus)
"""With the chart's own values."""
URL: Final = f"http://{NAME}.{NAMESPACE}.svc:9090"
SITES: Final = "__meta_kubernetes_node_label_"


def operator(bodies: list[dict[str, Any]]) -> dict[str, str]:
    (container,) = find(bodies, "Deployment", "slmops")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def jobs(bodies: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    read = yaml.safe_load(configuration(bodies)["prometheus.yml"])
    return {job["job_name"]: job for job in read["scrape_configs"]}


def discovery(bodies: list[dict[str, Any]], job: str) -> dict[str, Any]:
    (found,) = jobs(bodies)[job]["kubernetes_sd_configs"]
    return dict(found)


def pod(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = find(bodies, "Deployment", NAME)["spec"]["template"]
    return template


def test_there_is_none_unless_it_is_asked_for() -> None:
    bodies = objects(render_chart())
    assert not [body for body in bodies if is_own(body)]
    assert "SLMOPS_PROMETHEUS_URL" not in operator(bodies)


def test_it_judges_unless_another_is_named() -> None:
    assert operator(PLAIN())["SLMOPS_PROMETHEUS_URL"] == URL
    other = with_prometheus({"prometheus": {"url": "https://metrics.example"}})
    assert operator(other)["SLMOPS_PROMETHEUS_URL"] == "https://metrics.example"
    assert pod(other)


def test_its_service_leads_to_its_pod() -> None:
    bodies = with_prometheus({"commonLabels": {"team": "edge"}}, podLabels={"tier": "metrics"})
    service = find(bodies, "Service", NAME)["spec"]
    labels = pod(bodies)["metadata"]["labels"]
    (container,) = pod(bodies)["spec"]["containers"]
    assert service["selector"].items() <= labels.items()
    assert find(bodies, "Deployment", NAME)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["ports"] == [{"name": "http", "port": 9090, "targetPort": "http"}]
    assert container["ports"] == [{"name": "http", "containerPort": 9090}]
    assert (labels["team"], labels["tier"]) == ("edge", "metrics")
    others = [body for body in bodies if body["kind"] in ("Deployment", "DaemonSet") and not is_own(body)]
    assert not any(matches(body["spec"]["selector"], labels) for body in others)


def test_its_pod_meets_restricted() -> None:
    spec = pod(PLAIN())["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "configMap", "emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


def test_everyday_values_arrive_in_its_pod() -> None:
    everyday: dict[str, Any] = {
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"x": []}},
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "pull"}],
    }
    image = {"registry": "registry.example.com", "tag": "v3.16.1", "pullPolicy": "Always"}
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    bodies = with_prometheus(
        image=image, resources=resources, podAnnotations={"note": "x"}, **everyday
    )  # fmt: skip
    spec = pod(bodies)["spec"]
    (container,) = spec["containers"]
    assert {name: spec[name] for name in everyday} == everyday
    assert container["image"] == "registry.example.com/prom/prometheus:v3.16.1"
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"] == resources
    assert pod(bodies)["metadata"]["annotations"]["note"] == "x"


def test_its_version_is_the_one_that_the_rig_runs() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    built = family_version(FAMILY_OF["prometheus"])
    # As a Go module, Prometheus 3.16.0 is v0.316.0.
    _, minor, patch = built.split(".")
    assert values["prometheus"]["install"]["image"]["tag"] == f"v{minor[0]}.{int(minor[1:])}.{patch}"


@pytest.mark.parametrize(
    ("storage", "volume"),
    [
        ({"size": "1Gi"}, {"emptyDir": {"sizeLimit": "1Gi"}}),
        ({"persistent": True}, {"persistentVolumeClaim": {"claimName": NAME}}),
        (
            {"persistent": True, "existingClaim": "2026"},
            {"persistentVolumeClaim": {"claimName": "2026"}},
        ),
        ({"existingClaim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}),
    ],
)
def test_where_it_keeps_what_it_measures(storage: dict[str, Any], volume: dict[str, Any]) -> None:
    bodies = with_prometheus(storage=storage)
    (data,) = (entry for entry in pod(bodies)["spec"]["volumes"] if entry["name"] == "data")
    assert data == {"name": "data"} | volume
    claims = [body["metadata"]["name"] for body in bodies if body["kind"] == "PersistentVolumeClaim"]
    assert claims == ([NAME] if volume == {"persistentVolumeClaim": {"claimName": NAME}} else [])


def test_a_claim_is_of_the_size_and_class_that_are_asked_for() -> None:
    storage = {"persistent": True, "size": "5Gi", "storageClassName": "local-path"}
    claim = find(with_prometheus(storage=storage), "PersistentVolumeClaim", NAME)["spec"]
    assert claim["resources"] == {"requests": {"storage": "5Gi"}}
    assert claim["storageClassName"] == "local-path"


def test_a_changed_configuration_is_read_by_a_new_pod() -> None:
    def checksum(**values: Any) -> str:
        return str(pod(with_prometheus(**values))["metadata"]["annotations"]["checksum/config"])

    overrides = {"monitoring": {"prometheusRule": {"overrides": {"SLMOpsLatencyHigh": {"for": "1h"}}}}}
    assert checksum() == checksum(resources={"limits": {"memory": "1Gi"}})
    assert len({checksum(), checksum(scrapeInterval="30s"), checksum(values=overrides)}) == 3


def test_times_and_sizes_are_in_the_configuration() -> None:
    read = yaml.safe_load(
        configuration(with_prometheus(scrapeInterval="5s", retention="7d", retentionSize="500MB"))[
            "prometheus.yml"
        ]
    )
    assert read["global"] == {"scrape_interval": "5s", "evaluation_interval": "5s"}
    assert read["storage"]["tsdb"]["retention"] == {"time": "7d", "size": "500MB"}
    assert not any("scrape_interval" in job for job in read["scrape_configs"])


def test_the_site_is_a_label_of_the_node() -> None:
    def sources(bodies: list[dict[str, Any]]) -> list[str]:
        rules = [rule for job in jobs(bodies).values() for rule in job["relabel_configs"]]
        return [rule["source_labels"][0] for rule in rules if rule["source_labels"][0].startswith(SITES)]

    assert sources(PLAIN()) == [f"{SITES}topology_kubernetes_io_zone"] * 2
    assert sources(with_prometheus(siteLabel="slmops.dev/site")) == [f"{SITES}slmops_dev_site"] * 2
    without = with_prometheus(siteLabel="")
    assert not sources(without)
    assert "attach_metadata" not in str(jobs(without))
    assert "nodes" not in str([body for body in without if is_own(body) and "rules" in body])


def test_without_store_agents_it_scrapes_none() -> None:
    bodies = with_prometheus({"storeAgent": {"enabled": False}})
    assert list(jobs(bodies)) == ["slmops-operator", "slmops-models"]
    assert "SLMOpsStoreAgentMissing" not in configuration(bodies)["rules.yaml"]


def test_it_finds_an_operator_of_another_name() -> None:
    bodies = with_prometheus({"nameOverride": "edge"})
    for name in ("slmops-operator", "slmops-store-agents"):
        assert {
            "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"],
            "regex": "edge",
            "action": "keep",
        } in jobs(bodies)[name]["relabel_configs"]


def test_it_may_list_pods_and_nodes_and_nothing_else() -> None:
    bodies = [body for body in PLAIN() if is_own(body)]
    roles = {body["metadata"]["name"]: body["rules"] for body in bodies if "rules" in body}
    assert roles == {
        NAME: [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        f"{NAME}-sites": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}],
    }
    bound = [(body["kind"], body["roleRef"]["name"]) for body in bodies if "roleRef" in body]
    assert bound == [("ClusterRoleBinding", NAME), ("ClusterRoleBinding", f"{NAME}-sites")]
    subject = [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    assert all(body["subjects"] == subject for body in bodies if "roleRef" in body)
    assert pod(bodies)["spec"]["serviceAccountName"] == NAME


def test_with_namespaces_to_watch_it_may_look_there_alone() -> None:
    bodies = with_prometheus({"watchNamespaces": ["shop", NAMESPACE]}, siteLabel="")
    bindings = [body for body in bodies if is_own(body) and "roleRef" in body]
    assert [(body["kind"], body["metadata"]["namespace"]) for body in bindings] == [
        ("RoleBinding", "shop"),
        ("RoleBinding", NAMESPACE),
    ]
    assert discovery(bodies, "slmops-models")["namespaces"] == {"names": ["shop", NAMESPACE]}
    for job in ("slmops-operator", "slmops-store-agents"):
        assert discovery(bodies, job)["namespaces"] == {"own_namespace": True}
    assert "namespaces" not in discovery(PLAIN(), "slmops-models")


def test_rbac_create_leaves_its_account_and_no_role() -> None:
    bodies = with_prometheus({"rbac": {"create": False, "tenantRoles": False}})
    assert find(bodies, "ServiceAccount", NAME)
    assert not [body for body in bodies if is_own(body) and ("rules" in body or "roleRef" in body)]


def test_its_jobs_are_those_of_the_file() -> None:
    """What the values leave alone is as it is written."""
    plain = {job["job_name"]: job for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]}
    for name, job in jobs(PLAIN()).items():
        kept = {"job_name", "honor_labels", "tls_config", "relabel_configs"}
        assert {key: job[key] for key in kept & job.keys()} == {
            key: plain[name][key] for key in kept & plain[name].keys()
        }


# Who reaches whom, with networkPolicy.enabled


def endpoint(bodies: list[dict[str, Any]], kind: str, name: str, **ports: int) -> Endpoint:
    labels = find(bodies, kind, name)["spec"]["template"]["metadata"]["labels"]
    return Endpoint(address="10.42.0.9", namespace=NAMESPACE, labels=labels, ports=ports)


SERVE: Final = Endpoint(
    address="10.42.1.7",
    namespace="slm",
    labels={"app.kubernetes.io/managed-by": "slmops", "slmops.dev/role": "serve"},
)
API_SERVER: Final = Endpoint(address="198.51.100.2")
INTERNET: Final = Endpoint(address="203.0.113.80")
GRAFANA: Final = Endpoint(address="10.42.2.2", namespace=NAMESPACE, labels={"app": "grafana"})
STRANGER: Final = Endpoint(address="10.42.2.3", namespace=NAMESPACE, labels={"app": "till"})


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {
            # Narrowed to others: the release's own needs no entry.
            "prometheusPorts": [],
            "metricsFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
            "storeAgentFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        },
    ],
    ids=["open", "narrow"],
)
def test_policies_let_it_work_and_nobody_else_in(policy: dict[str, Any]) -> None:
    bodies = with_prometheus(
        {"networkPolicy": {"enabled": True} | policy},
        **{"from": [{"podSelector": {"matchLabels": {"app": "grafana"}}}]},
    )
    policies = [body for body in bodies if body["kind"] == "NetworkPolicy"]
    own = endpoint(bodies, "Deployment", NAME, http=9090)
    asks = endpoint(bodies, "Deployment", "slmops", metrics=9090, health=8081)
    agent = endpoint(bodies, "DaemonSet", "slmops-store-agent", store=AGENT_PORT)

    def go(source: Endpoint, target: Endpoint, port: int) -> bool:
        return is_allowed(Connection(source=source, target=target, port=port), policies)

    assert go(asks, own, 9090)
    assert go(GRAFANA, own, 9090)
    assert not go(STRANGER, own, 9090)
    assert not go(agent, own, 9090)
    assert go(own, asks, 9090)
    assert not go(own, asks, 8081)
    assert go(own, agent, AGENT_PORT)
    assert go(own, SERVE, HTTP_PORT)
    assert not go(own, SERVE, 22)
    assert go(own, API_SERVER, 6443)
    assert not go(own, INTERNET, 80)
    assert not go(own, STRANGER, 9090)


def test_policies_of_deployments_let_it_scrape() -> None:
    (peer,) = yaml.safe_load(operator(PLAIN())["SLMOPS_METRICS_FROM"])
    assert matches(peer["podSelector"], pod(PLAIN())["metadata"]["labels"])
    assert matches(peer["namespaceSelector"], {})
