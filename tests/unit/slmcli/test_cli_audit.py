# SPDX-License-Identifier: Apache-2.0
"""`audit`: what is found about the operator's own pods, about changed ones, and what policies let through."""

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slmcli.audit.document import audit_document
from slmcli.audit.findings import assess_findings, reaches_level
from slmcli.audit.policies import assess_reach
from slmcli.audit.report import Finding, Observed, build_audit, build_observed
from slmcli.errors import CliError, ForbiddenError
from slmcli.kube import connect
from slmcli.render.audit import residency_text
from slmcli.revisions import read_revisions
from slmcli.view import read_deployment
from slmops.api.spec import SLMDeploymentSpec
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved
from slmops.planning.build import build_service, build_templates
from slmops.planning.effective import EffectiveVariant
from slmops.planning.expand import expand_spec
from slmops.planning.names import Names
from slmops.planning.network import build_policies
from slmops.planning.revision import source_hash
from slmwire.manifest import STORE_URL, Manifest, ManifestFile
from tests.unit.planning.test_network import revision_of
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    EVIL,
    STABLE,
    Body,
    ago,
    build_body,
    build_node,
    build_revision,
    build_spec,
    build_status,
    condition,
)
from tests.unit.slmcli.cli_server import ScriptedApi, serve, write_kubeconfig

DIGEST = "sha256:" + "a" * 64
MANIFEST = Manifest(files=(ManifestFile(path="model.onnx", size=10, sha256="1" * 64),))
IMAGE = f"registry.example/slmops-runtime@{DIGEST}"
KEY = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
POLICIES = Path(__file__).parents[3] / "manifests/examples/network-policy.yaml"


ADAPTER = {"sha256": "d" * 64, "size": 4096}


def build_pods(
    *, role: int = 0, image: str = IMAGE, node: str = "n1", service: Body | None = None, site: str = ""
) -> Body:
    """The pod that the operator's template makes on a node: `role` 0 serves, 1 fetches ahead. With `site`
    that of one which adapts the model."""
    more: Body = {"adaptation": {"sites": [site]}} if site else {}
    spec = SLMDeploymentSpec.model_validate(build_spec("v1") | {"service": service or {}} | more)
    if site:
        found = {source_hash(v.source): Resolved(manifest=MANIFEST, reference="r") for v in spec.variants}
        expanded = expand_spec(spec, known=found).variants
        (at_site,) = (v for v in expanded if isinstance(v, EffectiveVariant) and v.examples is not None)
        spec = spec.model_copy(update={"variants": [at_site.model_copy(update={"name": "int4"})]})
    templates = build_templates(
        Names("shop", "orders"),
        spec,
        config=OperatorConfig(runtime_image=image),
        revision=STABLE,
        digests={"int4": DIGEST},
        references={"int4": "r"},
    )
    template = deepcopy(templates["int4"][role])
    containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    reported = [
        {"name": c["name"], "imageID": f"registry.example/slmops-runtime@{DIGEST}"} for c in containers
    ]
    return {
        "metadata": {
            "name": f"orders-{node}-{role}",
            "namespace": "shop",
            "labels": template["metadata"]["labels"],
        },
        "spec": template["spec"] | {"nodeName": node},
        "status": {
            "startTime": ago(500),
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": reported,
            "initContainerStatuses": reported,
        },
    }


def _spec(**model: Any) -> Body:
    spec = build_spec("v1")
    spec["model"] |= model
    spec["variants"][0]["source"]["http"]["sha256"] = "0" * 64
    return spec


def _service(**more: Any) -> Body:
    spec = SLMDeploymentSpec.model_validate(build_spec("v1"))
    body = build_service(Names("shop", "orders"), spec)
    body["spec"] |= more
    return body


def _closed() -> list[Body]:
    """No egress at all, and ingress from the namespace alone."""
    return [
        {
            "metadata": {"name": "closed"},
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {}}]}],
            },
        }
    ]


def _observe(**more: Any) -> Observed:
    signed = _spec(signature={"publicKeys": [KEY]})
    verified = condition(
        "SignatureVerified", "True", "Verified", f"1 variant(s), signed by sha256:{'b' * 64}"
    )
    status = build_status()
    status["conditions"].append(verified)
    view = read_deployment(build_body(status, spec=more.pop("spec", signed)))
    given_: Body = {
        "pods": [build_pods(), build_pods(role=1)],
        "services": [_service()],
        "policies": _closed(),
        "nodes": [build_node("n1")],
        "unread": [],
    }
    revisions = read_revisions(view, [build_revision(1, STABLE, "v1")])
    return build_observed(view, revisions=revisions, **given_ | more)


def _found(**more: Any) -> dict[str, Finding]:
    return {finding.reason: finding for finding in assess_findings(build_audit(_observe(**more)))}


def test_what_the_operator_makes_is_clean_but_for_keys_and_tls() -> None:
    found = _found()
    assert {reason: f.severity for reason, f in found.items()} == {"NoKeys": "low", "PlainHttp": "low"}
    audit = build_audit(_observe())
    assert audit.signature.state == "verified" and audit.signature.signed_by == ("sha256:" + "b" * 64,)
    assert [v.in_use for v in audit.variants] == ["yes"]
    assert audit.egress["serve"].describe("Egress") == "egress denied"
    assert audit.egress["prefetch"].is_restricted


ACCESS: Body = {
    "auth": {"apiKeysSecretRef": {"name": "orders-keys"}},
    "tls": {"secretRef": {"name": "orders-tls"}},
}


def test_keys_and_tls_that_the_operator_gave_are_no_finding() -> None:
    pods = [build_pods(service=ACCESS), build_pods(service=ACCESS, role=1)]
    assert _found(pods=pods) == {}
    between = _found(pods=[*pods, build_pods(node="n2")])
    assert set(between) == {"NoKeys", "PlainHttp"} and "n2" in between["NoKeys"].subject


def test_traffic_to_another_node_is_less_of_a_matter_by_tls() -> None:
    services = [_service(internalTrafficPolicy="Cluster")]
    found = _found(services=services)["TrafficLeavesNode"]
    assert found.severity == "medium" and "unencrypted" in found.message
    found = _found(services=services, pods=[build_pods(service=ACCESS)])["TrafficLeavesNode"]
    assert found.severity == "low" and "TLS" in found.message


@pytest.mark.parametrize("where", ["/etc/slmops-keys", "/somewhere"])
def test_those_secrets_in_another_container_are_a_finding(where: str) -> None:
    body = build_pods(service=ACCESS)
    mount = {"name": "api-keys", "mountPath": where, "readOnly": True}
    body["spec"]["containers"].append({"name": "proxy", "image": IMAGE, "volumeMounts": [mount]})
    found = _found(pods=[body])["SecretMounted"]
    assert "proxy: Secret orders-keys" in found.message


def _change(change: Callable[[Body], object]) -> list[Body]:
    body = build_pods()
    change(body["spec"])
    return [body]


def _server(spec: Body) -> Body:
    server: Body = spec["containers"][0]
    return server


PROJECTED = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


@pytest.mark.parametrize(
    ("change", "reason", "severity"),
    [
        (lambda s: s["volumes"].append(PROJECTED), "TokenMounted", "high"),
        (lambda s: s.pop("automountServiceAccountToken"), "TokenMounted", "high"),
        (lambda s: s.update(hostNetwork=True), "HostNamespace", "high"),
        (lambda s: s.update(ephemeralContainers=[{"name": "debugger", "image": "busybox"}]),
         "DebugContainer", "high"),
        (lambda s: s["containers"].append({"name": "proxy", "image": "mesh"}), "ForeignContainer", "medium"),
        (lambda s: _server(s)["securityContext"].update(privileged=True), "Privileged", "high"),
        (lambda s: _server(s)["securityContext"].update(runAsUser=0), "RunsAsRoot", "high"),
        (lambda s: _server(s).pop("securityContext"), "RunsAsRoot", "high"),
        (lambda s: _server(s)["securityContext"].update(readOnlyRootFilesystem=False),
         "NotHardened", "medium"),
        (lambda s: _server(s)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}),
         "NotHardened", "medium"),
        (lambda s: s.pop("securityContext"), "NotHardened", "medium"),
        (lambda s: _server(s)["volumeMounts"][0].pop("readOnly"), "HostPathWritable", "high"),
        (lambda s: (s["volumes"].append({"name": "s", "secret": {"secretName": "db"}}),
                    _server(s)["volumeMounts"].append({"name": "s", "mountPath": "/s"})),
         "SecretMounted", "medium"),
        (lambda s: _server(s)["env"].append({"name": "P", "valueFrom": {"secretKeyRef": {"name": "db"}}}),
         "SecretInEnvironment", "medium"),
        (lambda s: _server(s)["env"].append({"name": "ORT_DISABLE_TELEMETRY", "value": "0"}),
         "TelemetryOn", "medium"),
        (lambda s: _server(s).update(image="registry.example/x:1"), "ImageByTag", "low"),
    ],
)  # fmt: skip
def test_a_pod_that_was_changed(change: Callable[[Body], object], reason: str, severity: str) -> None:
    found = _found(pods=_change(change))
    assert found[reason].severity == severity
    assert found[reason].subject and found[reason].message and found[reason].cure


def test_a_secret_of_the_source_is_the_fetcher_s() -> None:
    def add(spec: Body) -> None:
        spec["volumes"].append({"name": "s", "secret": {"secretName": "token"}})
        spec["initContainers"][0]["volumeMounts"].append({"name": "s", "mountPath": "/s"})

    assert "SecretMounted" not in _found(pods=_change(add))


def test_the_same_tag_that_is_two_images() -> None:
    other = build_pods(image="registry.example/x:1", node="n2")
    for entry in other["status"]["containerStatuses"]:
        entry["imageID"] = "sha256:" + "c" * 64
    found = _found(pods=[build_pods(image="registry.example/x:1"), other])
    assert (
        found["ImagesDiffer"].severity == "medium" and "2 different images" in found["ImagesDiffer"].message
    )


@pytest.mark.parametrize(
    ("spec", "reasons"),
    [
        (_spec(), {"Unsigned"}),
        (build_spec("v1"), {"Unsigned", "SourceNotPinned"}),
        (_spec(signature={"publicKeys": [KEY], "policy": "Warn"}), {"SignatureNotEnforced"}),
    ],
)
def test_bytes_that_nobody_vouches_for(spec: Body, reasons: set[str]) -> None:
    assert set(_found(spec=spec)) - {"NoKeys", "PlainHttp"} == reasons


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"http": {"url": "http://m.example/m.json"}}, "anybody on the way"),
        ({"hf": {"repo": "a/b"}}, "main is a branch"),
        ({"hf": {"repo": "a/b", "revision": "a" * 40}}, ""),
        ({"oci": {"image": "registry.example/m:1"}}, "by a tag"),
        ({"oci": {"image": f"registry.example/m@{DIGEST}"}}, ""),
        ({"s3": {"bucket": "abc", "prefix": "m/"}}, "not pinned"),
        ({"file": {"path": "/m", "files": [{"path": "a", "size": 1, "sha256": "0" * 64}]}}, ""),
    ],
)
def test_sources_that_are_pinned_or_not(source: Body, words: str) -> None:
    spec = _spec()
    spec["variants"][0]["source"] = source
    finding = _found(spec=spec).get("SourceNotPinned")
    assert (finding is None) is (not words)
    assert finding is None or words in finding.message


def test_a_signature_that_does_not_hold() -> None:
    status = build_status()
    status["conditions"].append(
        condition("SignatureVerified", "False", "SignatureInvalid", "variant int4: other files")
    )
    signed = _spec(signature={"publicKeys": [KEY]})
    view = read_deployment(build_body(status, spec=signed))
    observed = build_observed(view, pods=[], revisions=(), services=[], policies=[], nodes=[], unread=[])
    found = {f.reason: f for f in assess_findings(build_audit(observed))}
    assert found["SignatureInvalid"].severity == "high" and "other files" in found["SignatureInvalid"].message
    assert found["NothingServes"].severity == "medium"
    status["conditions"].pop()
    unknown = read_deployment(build_body(status, spec=signed))
    observed = build_observed(
        unknown, pods=[build_pods()], revisions=(), services=[], policies=[], nodes=[], unread=[]
    )
    found = {f.reason: f for f in assess_findings(build_audit(observed))}
    assert found["SignatureUnknown"].severity == "medium" and found["UnknownRevision"].severity == "medium"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"type": "LoadBalancer"}, "ExposedOutside"),
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}, "ExposedOutside"),
        ({"externalIPs": ["192.0.2.1"]}, "ExposedOutside"),
        ({"internalTrafficPolicy": "Cluster"}, "TrafficLeavesNode"),
    ],
)
def test_ways_in(more: Body, reason: str) -> None:
    assert reason in _found(services=[_service(**more)])
    # A Service that leads elsewhere is nobody's business here.
    assert reason not in _found(services=[_service(**more, selector={"app": "shop"})])


def test_without_policies_everything_may_leave() -> None:
    found = _found(policies=[])
    assert found["EgressOpen"].severity == "high" and "everything may leave" in found["EgressOpen"].message
    assert found["IngressOpen"].severity == "medium"


def test_the_policies_of_the_examples() -> None:
    bodies = [b for b in yaml.safe_load_all(POLICIES.read_text()) if b]
    tags = {"slmops.dev/role": "serve"}
    reach = assess_reach(bodies, tags, "Egress")
    assert reach.policies == ("slm-fetch", "slm-pods")
    assert reach.allowed == (
        "pods k8s-app=kube-dns in namespaces kubernetes.io/metadata.name=kube-system on UDP 53, TCP 53",
        "192.0.2.10/32 on TCP 443",
        "198.51.100.0/24 on TCP 8491",
    )
    assert reach.anywhere == ()
    released = assess_reach(bodies, {"slmops.dev/role": "release"}, "Egress")
    assert released.describe("Egress") == "egress denied"
    found = _found(policies=bodies)
    assert "EgressOpen" not in found and found["EgressByName"].severity == "low"
    assert "IngressOpen" not in found


def _policy(direction: str, rules: list[Body], **spec: Any) -> Body:
    body: Body = {"podSelector": {}, "policyTypes": [direction], direction.lower(): rules}
    return {"metadata": {"name": "p"}, "spec": body | spec}


@pytest.mark.parametrize(
    "rules",
    [
        [{}],
        [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}],
        [{"to": [{"ipBlock": {"cidr": "::/0"}}]}],
        [{"ports": [{"port": 443}]}],
    ],
)
def test_rules_that_name_everybody(rules: list[Body]) -> None:
    assert _found(policies=[_policy("Egress", rules)])["EgressAnywhere"].severity == "high"


def test_policies_of_one_direction_leave_the_other_open() -> None:
    ingress_only = [_policy("Ingress", [{"from": [{"podSelector": {}}]}])]
    assert not assess_reach(ingress_only, {}, "Egress").is_restricted
    assert assess_reach(ingress_only, {}, "Ingress").allowed == ("all pods of this namespace",)
    implied = {"metadata": {"name": "p"}, "spec": {"podSelector": {}, "egress": [{}]}}
    assert assess_reach([implied], {}, "Egress").anywhere == ("anything",)
    assert assess_reach([implied], {}, "Ingress").describe("Ingress") == "ingress denied"
    elsewhere = [_policy("Egress", [], podSelector={"matchLabels": {"a": "b"}})]
    assert not assess_reach(elsewhere, {}, "Egress").is_restricted
    strange = [_policy("Egress", [], podSelector={"matchExpressions": [{"key": "a", "operator": "Gt"}]})]
    assert assess_reach(strange, {}, "Egress").not_understood == ("p",)


_RULES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "to": st.lists(
                st.sampled_from(
                    [
                        {"ipBlock": {"cidr": "0.0.0.0/0"}},
                        {"ipBlock": {"cidr": "192.0.2.0/24"}},
                        {"podSelector": {}},
                        {"namespaceSelector": {}},
                    ]
                ),
                max_size=2,
            ),
            "ports": st.lists(st.sampled_from([{"port": 53, "protocol": "UDP"}, {"port": 443}]), max_size=2),
        },
    ),
    max_size=3,
)


@given(_RULES, _RULES)
def test_another_policy_never_takes_away_what_one_allows(one: list[Body], other: list[Body]) -> None:
    alone = assess_reach([_policy("Egress", one)], {}, "Egress")
    both = assess_reach([_policy("Egress", one), _policy("Egress", other)], {}, "Egress")
    assert set(alone.allowed) <= set(both.allowed) and set(alone.anywhere) <= set(both.anywhere)
    assert set(both.anywhere) <= set(both.allowed)


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status(), spec=_spec()))
    found.stored = [build_revision(1, STABLE, "v1")]
    found.running = [build_pods(), build_pods(role=1)]
    found.exposed = [_service()]
    found.policies = _closed()
    found.fleet = [build_node("n1")]
    return found


def test_the_report(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(cluster, "audit", "orders", capsys=capsys)
    assert ran.code == 0
    for words in ("n1", "berlin", "signature: unsigned", "out, serve: egress denied (by closed)", DIGEST,
                  "service account token: in no pod", "not root: yes", "medium Unsigned",
                  "fetch has folder /var/lib/slmops of the node, writable", "no prompt"):  # fmt: skip
        assert words in ran.out
    assert max(map(len, run_cli(cluster, "audit", "orders", capsys=capsys, width=80).out.splitlines())) <= 80
    document = json.loads(run_cli(cluster, "audit", "orders", "-o", "json", capsys=capsys).out)
    assert document["kind"] == "AuditReport" and document["egress"][0]["restricted"] is True
    assert document["pods"][1]["containers"][1]["imageDigest"] == DIGEST
    as_yaml = yaml.safe_load(run_cli(cluster, "audit", "orders", "-o", "yaml", capsys=capsys).out)
    assert as_yaml == document


def test_the_exit_code_can_follow_the_findings(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(cluster, "audit", "orders", "--fail-on", "high", capsys=capsys).code == 0
    assert run_cli(cluster, "audit", "orders", "--fail-on", "medium", capsys=capsys).code == 1
    cluster.policies = []
    assert run_cli(cluster, "audit", "orders", "--fail-on", "high", capsys=capsys).code == 1
    assert run_cli(cluster, "audit", "orders", "--fail-on", "some", capsys=capsys).code == 2
    assert not reaches_level([], "low")


def test_what_may_not_be_read_is_said_and_is_no_clean_report(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> list[Body]:
        raise ForbiddenError("no")

    for name in ("services", "network_policies", "nodes"):
        monkeypatch.setattr(cluster, name, forbidden)
    ran = run_cli(cluster, "audit", "orders", "-o", "json", "--fail-on", "medium", capsys=capsys)
    document = json.loads(ran.out)
    assert ran.code == 1
    assert (
        document["egress"]
        is document["ingress"]
        is document["services"]
        is document["pods"][0]["site"]
        is None
    )
    assert [f["subject"] for f in document["findings"] if f["reason"] == "NotObserved"] == [
        "networkpolicies", "services", "nodes",
    ]  # fmt: skip
    assert "could not be read" in run_cli(cluster, "audit", "orders", capsys=capsys).out


def test_nothing_of_it_acts_on_a_terminal(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = build_pods()
    pod["spec"]["containers"].append({"name": EVIL, "image": EVIL})
    cluster.running = [pod]
    cluster.policies = [{"metadata": {"name": EVIL}, "spec": {"podSelector": {}, "egress": [{"to": [
        {"ipBlock": {"cidr": EVIL}}]}]}}]  # fmt: skip
    cluster.exposed = [_service(type=EVIL, externalIPs=[EVIL])]
    out = run_cli(cluster, "audit", "orders", capsys=capsys).out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


def test_where_it_is_read(tmp_path: Path) -> None:
    paths: Mapping[str, str] = {
        "/api/v1/namespaces/shop/services": "services",
        "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies": "network_policies",
    }
    with serve(ScriptedApi()) as api:
        cluster = connect(kubeconfig=str(write_kubeconfig(tmp_path / "c", api.url)), context=None).cluster
        for path, method in paths.items():
            api.script(path, (200, {"items": [{"path": path}]}), (403, {"message": "no"}))
            assert getattr(cluster, method)("shop") == [{"path": path}]
            with pytest.raises(CliError):
                getattr(cluster, method)("shop")


def _managed(**privacy: Any) -> tuple[Body, list[Body]]:
    """A spec with a signature, and the policies that the operator makes for a source by name."""
    body = _spec(signature={"publicKeys": [KEY]}) | {"privacy": privacy}
    spec = SLMDeploymentSpec.model_validate(body)
    config = OperatorConfig(runtime_image="r")
    revision = revision_of("https://models.example.com/m")
    return body, list(build_policies(Names("shop", "orders"), spec, config, revisions=[revision], nodes=[]))


def test_policies_of_the_operator_are_known_and_their_cure_is_in_spec() -> None:
    body, policies = _managed()
    found = _found(spec=body, policies=policies)
    assert "spec.privacy.egress: Denied" in found["EgressAnywhere"].cure
    assert "spec.privacy.clients" in found["IngressOpen"].cure
    body, policies = _managed(egress="Denied", clients=[{}])
    audit = build_audit(_observe(spec=body, policies=policies))
    assert audit.egress["serve"].describe("Egress") == "egress denied"
    (finding,) = [f for f in assess_findings(audit) if f.reason == "EgressAnywhere"]
    assert finding.subject == "pods of the role prefetch" and "by address" in finding.cure
    assert "IngressOpen" not in {f.reason for f in assess_findings(audit)}
    document = audit_document(audit, [], now=0.0)
    assert document["managedPolicies"] == ["orders-confine", "orders-fetch"]


def test_a_pod_outside_the_allowed_sites() -> None:
    node = build_node("n1")
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = "berlin"
    body = _spec(signature={"publicKeys": [KEY]}) | {"privacy": {"allowedSites": ["paris"]}}
    found = _found(spec=body, nodes=[node])["OutsideAllowedSites"]
    assert found.severity == "high" and "berlin" in found.message and "paris" in found.message
    assert _found(spec=body)["OutsideAllowedSites"], "a node without a site is outside, too"
    inside = _spec(signature={"publicKeys": [KEY]}) | {"privacy": {"allowedSites": ["berlin"]}}
    assert "OutsideAllowedSites" not in _found(spec=inside, nodes=[node])
    audit = build_audit(_observe(spec=inside, nodes=[node]))
    assert residency_text(audit).startswith("residency: sites berlin only")
    assert audit_document(audit, [], now=0.0)["allowedSites"] == ["berlin"]
    assert "not set" in residency_text(build_audit(_observe()))


def test_every_finding_is_documented() -> None:
    root = Path(__file__).parents[3]
    text = (root / "docs/audit.md").read_text()
    source = (root / "operator/slmcli/audit/findings.py").read_text()
    words = set(re.findall(r'"([A-Z][a-z]+[A-Za-z]*)"', source))
    reasons = words - {"Egress", "Ingress", "RuntimeDefault", "Localhost", "Warn", "Local", "True"}
    assert len(reasons) > 25
    assert not {reason for reason in reasons if f"`{reason}`" not in text}


def _adapting(**collect: Any) -> Body:
    return _spec(signature={"publicKeys": [KEY]}) | {"adaptation": {"sites": ["berlin"], "collect": collect}}


def test_what_a_site_keeps_is_told_and_its_folder_is_no_foreign_mount() -> None:
    pods = [build_pods(site="berlin"), build_pods(site="berlin", role=1)]
    found = _found(pods=pods, spec=_adapting(retention="24h"))
    assert {reason: f.severity for reason, f in found.items()} == {
        "NoKeys": "low", "PlainHttp": "low", "ExamplesKept": "low",
    }  # fmt: skip
    assert "24h" in found["ExamplesKept"].message and found["ExamplesKept"].subject == "sites berlin"
    kept = build_audit(_observe(pods=pods, spec=_adapting())).kept
    assert kept is not None and kept.nodes == ("n1",) and not kept.not_redacted


def test_kinds_that_are_left_in_are_a_finding() -> None:
    found = _found(spec=_adapting(redact=["Email"]))["ExamplesNotRedacted"]
    assert found.severity == "medium" and found.message.startswith("Phone, CardNumber, Iban, IpAddress, Url")


@pytest.mark.parametrize("spec", [None, _adapting()])
def test_a_folder_at_a_site_that_is_not_named_is_a_finding(spec: Body | None) -> None:
    fleet = [build_node("n1", site="wien")]
    more: Body = {"spec": spec} if spec is not None else {}
    found = _found(pods=[build_pods(site="berlin")], nodes=fleet, **more)["ExamplesOutsideSites"]
    assert found.severity == "high" and "wien" in found.message and "n1" in found.subject
    assert "ExamplesOutsideSites" not in _found(pods=[build_pods()], nodes=fleet, **more)


@pytest.mark.parametrize(
    "change",
    [
        lambda mount: mount.update(mountPath="/elsewhere"),
        lambda mount: mount.pop("subPath"),
        lambda mount: mount.update(subPath="blobs"),
    ],
)
def test_another_writable_folder_stays_one(change: Callable[[Body], object]) -> None:
    pod = build_pods(site="berlin")
    (mount,) = (m for m in _server(pod["spec"])["volumeMounts"] if m["mountPath"] == "/examples")
    change(mount)
    assert _found(pods=[pod], spec=_adapting())["HostPathWritable"].severity == "high"


def _training(**container: Any) -> Body:
    hardened = deepcopy(_server(build_pods()["spec"])["securityContext"])
    names = ("prepare", "train", "judge")
    inner = [{"name": name, "image": IMAGE, "securityContext": hardened} for name in names]
    inner[0]["volumeMounts"] = [
        {"name": "store", "mountPath": "/examples", "subPath": "examples/shop/orders", "readOnly": True}
    ]
    keep = {
        "name": "keep",
        "image": IMAGE,
        "securityContext": hardened | {"runAsUser": 0, "runAsNonRoot": False},
        "volumeMounts": [{"name": "store", "mountPath": "/store"}],
    }
    return {
        "metadata": {
            "name": "orders-train-1",
            "namespace": "shop",
            "labels": {"slmops.dev/adaptation": "orders", "slmops.dev/work": "train"},
        },
        "spec": {
            "nodeName": "n1",
            "automountServiceAccountToken": False,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": inner,
            "containers": [keep | container],
            "volumes": [{"name": "store", "hostPath": {"path": "/var/lib/slmops"}}],
        },
    }


def test_the_pod_of_a_training_is_looked_at_as_the_others() -> None:
    pods = [build_pods(site="berlin"), build_pods(site="berlin", role=1)]
    plain, found = (_found(pods=own, spec=_adapting()) for own in (pods, [*pods, _training()]))
    assert found == plain
    audit = build_audit(_observe(pods=[*pods, _training()], spec=_adapting()))
    assert audit.egress["train"].describe("Egress") == "egress denied"
    open_ = _found(pods=[_training()], policies=[], spec=_adapting())["EgressOpen"]
    assert open_.severity == "high"
    foreign = _found(pods=[*pods, _training(name="sidecar")], spec=_adapting())
    assert {"ForeignContainer", "HostPathWritable"} <= set(foreign)


def _learnt(**site: Any) -> list[dict[str, Any]]:
    """`trained` of an audit whose stable revision has the adapter at one variant."""
    adapter = ADAPTER | {"baseDigest": DIGEST, "trainedAt": ago(50)}
    status = build_status(
        adaptation={"sites": [{"site": "berlin", "examples": 80, "adapter": adapter} | site]}
    )
    view = read_deployment(build_body(status, spec=_adapting()))
    stored = build_revision(1, STABLE, "v1")
    row = {"path": "adapters/local.onnx_adapter", "url": STORE_URL, "sha256": "d" * 64, "size": 4096}
    stored["data"]["variants"][0]["adapters"] = [row]
    observed = build_observed(
        view, pods=[build_pods(site="berlin")], revisions=read_revisions(view, [stored]), services=[],
        policies=[], nodes=[build_node("n1")], unread=[],
    )  # fmt: skip
    audit = build_audit(observed)
    trained: list[dict[str, Any]] = audit_document(audit, [], now=0)["trained"]
    return trained


def test_where_an_adapter_of_a_site_runs_and_what_it_came_from() -> None:
    (found,) = _learnt()
    assert found == {
        "site": "berlin", "name": "local", "sha256": "d" * 64, "sizeBytes": 4096, "baseDigest": DIGEST,
        "trainedAt": ago(50), "examples": 80, "revision": STABLE, "variant": "int4", "nodes": ["n1"],
    }  # fmt: skip


def test_an_adapter_that_status_knows_no_more_is_shown_by_what_the_revision_says() -> None:
    newer = ADAPTER | {"sha256": "e" * 64, "baseDigest": DIGEST, "trainedAt": ago(5)}
    running, waiting = _learnt(adapter=None, waiting=newer)
    assert (running["sha256"], running["name"], running["site"]) == ("d" * 64, "local", None)
    assert (waiting["sha256"], waiting["revision"], waiting["nodes"]) == ("e" * 64, None, [])


def test_a_report_of_what_was_learnt(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = ADAPTER | {"baseDigest": DIGEST, "trainedAt": ago(50)}
    status = build_status(adaptation={"sites": [{"site": "berlin", "examples": 80, "adapter": adapter}]})
    cluster.put(build_body(status, spec=_adapting(patterns=["T-[0-9]+"])))
    cluster.running, cluster.training = [build_pods(site="berlin")], [_training()]
    said = " ".join(run_cli(cluster, "audit", "orders", capsys=capsys).out.split())
    for words in (
        "at sites berlin: what users correct, for 168h, at most 1000 on a node",
        "on nodes n1", "redacted before it is written: Email, Phone, CardNumber, Iban, IpAddress, Url, and "
        "what matches 1 pattern(s) of spec",
        "adapter local (4KiB), trained at site berlin from 80 examples",
        "d" * 64, "out, train: egress denied", "into a folder of the node at the sites of spec.adaptation",
        "keep has folder /var/lib/slmops of the node, writable",
    ):  # fmt: skip
        assert words in said, words
    assert "texts are neither stored" not in said
