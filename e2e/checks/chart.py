# SPDX-License-Identifier: Apache-2.0
"""The chart: lint, values that must be refused, and forms that it must render."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import yaml

from e2e.checks.check import Check, CheckError
from e2e.checks.helm import CHART, find, helm, objects, render_chart
from e2e.rig import RigError
from e2e.rig.paths import CHECKOUT
from slmops.api.kinds import KINDS
from slmwire.labels import DOMAIN
from slmwire.paths import AGENT_PORT

_DIGEST: Final = "sha256:" + "0" * 64
_IMAGES: Final = ("image", "runtimeImage", "optimizerImage")

BAD_VALUES: Final[tuple[tuple[str, Mapping[str, Any]], ...]] = (
    # values that must be refused, by the path that the answer has to name
    ("promtheus", {"promtheus": {"url": "http://x"}}),
    ("image.digest", {"image": {"digest": "latest"}}),
    ("image.pullPolicy", {"image": {"pullPolicy": "Sometimes"}}),
    ("image", {"image": {"repo": "x"}}),
    ("repository", {"image": {"repository": None}}),
    ("runtime.engineImages", {"runtime": {"engineImages": {"vllm": "a/vllm:1"}}}),
    ("runtime.engineImages.openvino", {"runtime": {"engineImages": {"openvino": "a/b:1,c=d"}}}),
    ("prometheus.url", {"prometheus": {"url": "prometheus:9090"}}),
    ("prometheus.url", {"prometheus": {"url": "http://user:password@prometheus:9090"}}),
    ("prometheus.url", {"prometheus": {"url": "http://prometheus:9090", "existingSecret": "login"}}),
    ("prometheus.existingSecret", {"prometheus": {"existingSecret": "Not A Name"}}),
    ("prometheus.tenant", {"prometheus": {"tenant": "a b"}}),
    ("prometheus.allowedURLs.0", {"prometheus": {"allowedURLs": ["metrics.example"]}}),
    ("prometheus.url", {"prometheus": {"install": {"enabled": True}, "existingSecret": "login"}}),
    ("prometheus.install.image.tag", {"prometheus": {"install": {"image": {"tag": ""}}}}),
    ("prometheus.install.retention", {"prometheus": {"install": {"retention": "two days"}}}),
    ("prometheus.install.retentionSize", {"prometheus": {"install": {"retentionSize": "1Gi"}}}),
    ("prometheus.install.storage.size", {"prometheus": {"install": {"storage": {"size": "1GB"}}}}),
    ("prometheus.install.storage", {"prometheus": {"install": {"storage": {"class": "fast"}}}}),
    ("prometheus.install.from.0", {"prometheus": {"install": {"from": [{"pods": {}}]}}}),
    ("watchNamespaces", {"watchNamespaces": "shop"}),
    ("watchNamespaces.0", {"watchNamespaces": ["Shop"]}),
    ("allowedHostPaths", {"allowedHostPaths": []}),
    ("allowedHostPaths.0", {"allowedHostPaths": ["/var/../etc"]}),
    ("allowedFilePaths.0", {"allowedFilePaths": ["models"]}),
    ("storeAgent.hostPath", {"storeAgent": {"hostPath": "/var/../etc"}}),
    ("storeAgent.port", {"storeAgent": {"port": 0}}),
    ("storeAgent.maxUnavailable", {"storeAgent": {"maxUnavailable": "all"}}),
    ("storeAgent", {"storeAgent": {"hostNetwork": True}}),
    ("podMonitor.interval", {"podMonitor": {"interval": "often"}}),
    ("log.level", {"log": {"level": "verbose"}}),
    ("crds.keep", {"crds": {"keep": "yes"}}),
    ("extraEnv.0", {"extraEnv": [{"value": "x"}]}),
    ("extraVolumes.0.name", {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}),
    ("extraVolumeMounts.0.mountPath", {"extraVolumeMounts": [{"name": "ca", "mountPath": "ca"}]}),
    ("commonLabels", {"commonLabels": {"team": "the edge"}}),
    ("tolerations.0.effect", {"tolerations": [{"effect": "NoWay"}]}),
    ("storeAgent.tolerations.0", {"storeAgent": {"tolerations": [{"keys": "x"}]}}),
    ("topologySpreadConstraints.0", {"topologySpreadConstraints": [{"topologyKey": "zone"}]}),
    ("affinity", {"affinity": {"nodeAfinity": {}}}),
    ("resources.limits.memory", {"resources": {"limits": {"memory": "lots"}}}),
    ("resources", {"resources": {"limit": {}}}),
    ("serviceMonitor.enabled", {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}),
    ("podMonitor.siteLabel", {"podMonitor": {"siteLabel": "a b"}}),
    ("monitoring.runbookBase", {"monitoring": {"runbookBase": "docs/runbooks.md"}}),
    (
        "overrides.SLMOpsLatencyHigh.for",
        {"monitoring": {"prometheusRule": {"overrides": {"SLMOpsLatencyHigh": {"for": "long"}}}}},
    ),
    (
        "there is no alert SLMOpsLatency;",
        {"monitoring": {"prometheusRule": {"enabled": True, "overrides": {"SLMOpsLatency": {"for": "1h"}}}}},
    ),
    ("monitoring.dashboards.label", {"monitoring": {"dashboards": {"label": ""}}}),
    ("allowedSourceHosts.0", {"allowedSourceHosts": ["https://models.example.com"]}),
    ("privacy.networkPolicy", {"privacy": {"networkPolicy": "Off"}}),
    ("privacy.clients", {"privacy": {"clients": []}}),
    ("privacy.metricsFrom.0", {"privacy": {"metricsFrom": [{"pods": {}}]}}),
    ("privacy.dnsTo", {"privacy": {"dnsTo": []}}),
    ("fleetPage.port", {"fleetPage": {"port": 9090}}),
    ("fleetPage.service.type", {"fleetPage": {"service": {"type": "ExternalName"}}}),
    ("fleetPage.from.0", {"fleetPage": {"from": [{"pods": {}}]}}),
    ("networkPolicy.apiServerPorts", {"networkPolicy": {"apiServerPorts": []}}),
    ("networkPolicy.apiServerCIDRs.0", {"networkPolicy": {"apiServerCIDRs": ["10.0.0.1"]}}),
    ("networkPolicy.metricsFrom.0", {"networkPolicy": {"metricsFrom": [{"pods": {}}]}}),
)


def check_lint() -> str:
    """`helm lint --strict` finds nothing."""
    helm("lint", "--strict", "--quiet", str(CHART))
    return "helm lint --strict finds nothing"


def check_bad_values() -> str:
    """The schema refuses wrong values and names them."""
    for path, values in BAD_VALUES:
        try:
            render_chart(values)
        except RigError as error:
            if path not in str(error).replace("/", "."):
                raise CheckError(f"values {values} are refused without naming {path}: {error}") from error
        else:
            raise CheckError(f"values {values} are taken; values.schema.json must refuse {path}")
    return f"{len(BAD_VALUES)} wrong values are refused by name"


def check_schema_is_complete() -> str:
    """Each value has its place in the schema with a description, and each place a value."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    problems = _compare(schema, values, "") + find_loose_ends(schema)
    if problems:
        raise CheckError("; ".join(problems))
    return "values.yaml and values.schema.json agree"


def _compare(schema: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> list[str]:
    known = {name: node for name, node in schema["properties"].items() if name != "global"}
    problems = [f"{prefix}{name}: only in values.yaml" for name in values.keys() - known.keys()]
    problems += [f"{prefix}{name}: only in values.schema.json" for name in known.keys() - values.keys()]
    problems += [f"{prefix}{name}: no description" for name in known if not known[name].get("description")]
    for name in known.keys() & values.keys():
        if "properties" in known[name]:
            problems += _compare(known[name], values[name], f"{prefix}{name}.")
    return problems


def find_loose_ends(schema: Mapping[str, Any], path: str = "") -> list[str]:
    """Properties at any depth without a description, and objects that do not say what else they take."""
    problems: list[str] = []
    if schema.get("type") == "object" and "additionalProperties" not in schema:
        problems.append(f"{path}: does not say whether it takes more properties")
    for name, node in schema.get("properties", {}).items():
        where = f"{path}.{name}".lstrip(".")
        if not node.get("description"):
            problems.append(f"{where}: no description")
        problems += find_loose_ends(node, where)
    for name, node in schema.get("definitions", {}).items():
        problems += find_loose_ends(node, f"definitions.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), Mapping):
            problems += find_loose_ends(schema[name], f"{path}.{name}")
    return problems


def check_artifacthub() -> str:
    """What Artifact Hub shows of the chart is what the chart has."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    shown = {
        key.partition("/")[2]: yaml.safe_load(text)
        for key, text in chart["annotations"].items()
        if key.startswith("artifacthub.io/")
    }
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = {f"{values[name]['repository']}:{chart['appVersion']}" for name in _IMAGES}
    other = values["prometheus"]["install"]["image"]
    images.add(f"{other['repository']}:{other['tag']}")
    wrong = [
        text
        for text, holds in {
            "images": {entry["image"] for entry in shown["images"]} == images,
            "crds": {(entry["name"], entry["kind"]) for entry in shown["crds"]}
            == {(f"{kind.plural}.{DOMAIN}", kind.kind) for kind in KINDS},
            "crdsExamples": {entry["kind"] for entry in shown["crdsExamples"]}
            == {kind.kind for kind in KINDS},
            "license": shown["license"] == "Apache-2.0",
            "changes": {entry["kind"] for entry in shown["changes"]}
            <= {"added", "changed", "deprecated", "removed", "fixed", "security"},
        }.items()
        if not holds
    ]
    if wrong:
        raise CheckError(f"Chart.yaml: artifacthub.io/{', '.join(wrong)}: not what the chart has")
    return "annotations name the chart's images and definitions"


def check_versions() -> str:
    """Chart and application carry the project's version."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if {chart["version"], chart["appVersion"]} != {project}:
        raise CheckError(f"Chart.yaml: version and appVersion must be {project}, as in pyproject.toml")
    return f"chart and application are {project}"


def check_forms() -> str:
    """Values that change the shape of what is rendered do so."""
    image = {"registry": "registry.example.com", "repository": "a/operator", "digest": _DIGEST}
    bodies = objects(
        render_chart(
            {
                "image": image,
                "runtimeImage": image | {"repository": "a/runtime", "digest": "", "tag": "7"},
                "prometheus": {
                    "url": "https://prometheus:9090",
                    # A name may be all digits, which YAML takes for a number.
                    "existingSecret": "2026",
                    "tenant": "edge",
                    "allowedURLs": ["https://metrics.example/team-a", "http://prometheus.shop:9090"],
                },
                "runtime": {"engineImages": {"openvino": "a/openvino:1", "llama.cpp": "a/llama:2"}},
                "watchNamespaces": ["shop", "clinic"],
                "crds": {"install": False},
                "rbac": {"readSecrets": False, "tenantRoles": False},
                "podMonitor": {"enabled": True, "labels": {"release": "x"}},
                "fleetPage": {"port": 8888},
                "storeAgent": {"port": 9999, "hostPath": "/data/slmops", "nodeSelector": {"edge": "true"}},
            }
        )
    )
    pod = find(bodies, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    agent = find(bodies, "DaemonSet")["spec"]["template"]["spec"]
    without = objects(render_chart({"storeAgent": {"enabled": False}, "podMonitor": {"enabled": True}}))
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    secrets = {
        volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume
    }
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    kinds = [body["kind"] for body in bodies]
    rules = [rule for body in bodies if body["kind"].endswith("Role") for rule in body["rules"]]
    bound = {b["metadata"]["namespace"] for b in bodies if b["kind"] == "RoleBinding"}
    wrong = [
        text
        for text, holds in {
            "image by digest": container["image"] == f"registry.example.com/a/operator@{_DIGEST}",
            "runtime image": environment["SLMOPS_RUNTIME_IMAGE"] == "registry.example.com/a/runtime:7",
            "runtime.engineImages": environment["SLMOPS_ENGINE_IMAGES"]
            == "llama.cpp=a/llama:2,openvino=a/openvino:1",
            "DeviceProfiles are read and never written": [
                rule["verbs"] for rule in rules if "deviceprofiles" in rule["resources"]
            ]
            == [["list", "watch"]],
            "prometheus.url": environment["SLMOPS_PROMETHEUS_URL"] == "https://prometheus:9090",
            "prometheus.existingSecret": secrets == {"prometheus": "2026"}
            and mounts["prometheus"] == environment["SLMOPS_PROMETHEUS_CREDENTIALS_DIR"],
            "prometheus.tenant": environment["SLMOPS_PROMETHEUS_TENANT"] == "edge",
            "prometheus.allowedURLs": environment["SLMOPS_ALLOWED_PROMETHEUS_URLS"]
            == "https://metrics.example/team-a,http://prometheus.shop:9090",
            "watchNamespaces": environment["SLMOPS_WATCH_NAMESPACES"] == "shop,clinic",
            "permissions only in watchNamespaces": {"shop", "clinic"} < bound
            and kinds.count("ClusterRoleBinding") == 1,
            "crds.install": "CustomResourceDefinition" not in kinds,
            "rbac.readSecrets": not any("secrets" in rule["resources"] for rule in rules),
            "podMonitor.enabled": kinds.count("PodMonitor") == 3,
            "fleetPage": environment["SLMOPS_PAGE_PORT"] == "8888"
            and environment["SLMOPS_PAGE_HOST"] == "127.0.0.1"
            and not any(port["name"] == "page" for port in container["ports"]),
            "servers are scraped by what their port's name says": [
                (endpoint["port"], endpoint.get("scheme", "http"), "tlsConfig" in endpoint)
                for body in bodies
                if body["kind"] == "PodMonitor" and body["metadata"]["name"].endswith("-models")
                for endpoint in body["spec"]["podMetricsEndpoints"]
            ]
            == [("http", "http", False), ("https", "https", True)],
            "storeAgent": _is_agent(agent, image="registry.example.com/a/runtime:7")
            and environment["SLMOPS_STORE_AGENT_PORT"] == "9999"
            and environment["SLMOPS_STORE_AGENT_PATH"] == "/data/slmops",
            "storeAgent.enabled": [b["kind"] for b in without].count("PodMonitor") == 2
            and not any(b["kind"] == "DaemonSet" for b in without),
        }.items()
        if not holds
    ]
    if wrong:
        raise CheckError(f"not as the values say: {', '.join(wrong)}")
    return "images, namespaces, CRD, permissions and monitors follow the values"


def check_pod_values() -> str:
    """Everyday values of pods arrive where they should."""
    everyday: dict[str, Any] = {
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"x": []}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"note": "x"},
        "podLabels": {"tier": "control"},
        "imagePullSecrets": [{"name": "pull"}],
        "resources": {"limits": {"memory": "1Gi"}},
    }
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    bodies = objects(
        render_chart(
            {
                **everyday,
                "storeAgent": everyday,
                "commonLabels": {"team": "edge", "app.kubernetes.io/name": "other"},
                "topologySpreadConstraints": [spread],
                "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
                "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
                "serviceMonitor": {"enabled": True, "labels": {"release": "x"}, "siteLabel": "a.b/site"},
            }
        )
    )
    templates = {kind: find(bodies, kind)["spec"]["template"] for kind in ("Deployment", "DaemonSet")}
    pod = templates["Deployment"]["spec"]
    monitors = {b["metadata"]["name"]: b["spec"] for b in bodies if b["kind"] == "ServiceMonitor"}
    services = [b for b in bodies if b["kind"] == "Service"]
    selectors = [b["spec"]["selector"] for b in bodies if b["kind"] in templates]
    wrong = [
        f"{kind}: {name}"
        for kind, template in templates.items()
        for name, found in {
            **{name: template["spec"].get(name) for name in everyday},
            "podAnnotations": template["metadata"]["annotations"],
            "podLabels": template["metadata"]["labels"],
            "resources": template["spec"]["containers"][0]["resources"],
        }.items()
        if not _holds_all(found, everyday[name])
    ]
    wrong += [
        text
        for text, holds in {
            "commonLabels": all(b["metadata"]["labels"].get("team") == "edge" for b in bodies)
            and all(t["metadata"]["labels"].get("team") == "edge" for t in templates.values())
            and not any("team" in selector["matchLabels"] for selector in selectors),
            "commonLabels do not replace ours": all(
                b["metadata"]["labels"]["app.kubernetes.io/name"] == "slmops" for b in bodies
            ),
            "topologySpreadConstraints": pod["topologySpreadConstraints"] == [spread],
            "extraEnv": any(e["name"] == "HTTPS_PROXY" for e in pod["containers"][0]["env"]),
            "extraVolumes": any(v["name"] == "ca" for v in pod["volumes"]),
            "extraVolumeMounts": any(
                m["mountPath"] == "/etc/ca" for m in pod["containers"][0]["volumeMounts"]
            ),
            "serviceMonitor": len(monitors) == 3
            and len(services) == 2
            and all(service["spec"]["clusterIP"] == "None" for service in services)
            and monitors["slmops-operator"]["endpoints"][0]["honorLabels"] is True
            and "__meta_kubernetes_node_label_a_b_site" in str(monitors["slmops-models"]["endpoints"]),
        }.items()
        if not holds
    ]
    if wrong:
        raise CheckError(f"not as the values say: {', '.join(wrong)}")
    return "labels, scheduling, volumes and monitors arrive in the pods"


def _holds_all(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(key in found and _holds_all(found[key], value) for key, value in wanted.items())
    return bool(found == wanted)


def _is_agent(pod: Mapping[str, Any], *, image: str) -> bool:
    """Whether the agent has no credential, no capability, the store and nothing else of the node."""
    (container,) = pod["containers"]
    security = container["securityContext"]
    return (
        container["image"] == image
        and pod["automountServiceAccountToken"] is False
        and security["capabilities"] == {"drop": ["ALL"]}
        and security["readOnlyRootFilesystem"] is True
        and security["allowPrivilegeEscalation"] is False
        and not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        and [volume["hostPath"]["path"] for volume in pod["volumes"]] == ["/data/slmops"]
        and container["ports"] == [{"name": "store", "containerPort": AGENT_PORT, "hostPort": 9999}]
        and pod["nodeSelector"] == {"edge": "true"}
        and pod["tolerations"] == [{"operator": "Exists"}]
    )


CHECKS: Final = (
    Check(name="chart lint", run=check_lint),
    Check(name="chart values", run=check_bad_values),
    Check(name="chart schema", run=check_schema_is_complete),
    Check(name="chart versions", run=check_versions),
    Check(name="chart annotations", run=check_artifacthub),
    Check(name="chart forms", run=check_forms),
    Check(name="chart pods", run=check_pod_values),
)
