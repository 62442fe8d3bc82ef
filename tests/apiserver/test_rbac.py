# SPDX-License-Identifier: Apache-2.0
"""The operator's account, tried out: what must be forbidden is refused by the API server, what the operator
asks for is permitted, and no permission lies about unused."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.checks.helm import NAMESPACE, objects, render_chart
from e2e.lib.account import MERGE_PATCH, Account, account_of, token_of
from e2e.rig import ControlPlane
from e2e.rig.progress import wait_until
from slmops.adapters import resources
from slmops.adapters.errors import Conflict
from slmops.adapters.kube import load_configuration
from slmops.adapters.resources import DEPLOYMENTS, JOBS, MODELS, NODES, OWNED, SECRETS, SERVICES, Resource
from tests.apiserver.doubles import CountingClient
from tests.apiserver.harness import NAME, Body, Cluster, deployment, until
from tests.apiserver.model_kit import operator
from tests.apiserver.namespaces import create_namespaces
from tests.apiserver.test_models import ModelResolver, model_body

TENANT: Final = "rbac-tenant"
SERVED: Final = "rbac-served"
NODE: Final = "rbac-node"


@pytest.fixture(scope="module")
def prepared(control_plane: ControlPlane, operator_kubeconfig: Path) -> Iterator[ControlPlane]:
    """A tenant's things for the operator to lay hands on."""
    create_namespaces(control_plane, TENANT, SERVED)
    pod = {"containers": [{"name": "c", "image": "x:1"}]}
    control_plane.kubectl.apply(
        # No pod is let in before it, and a controller makes it a moment after the namespace.
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": TENANT}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": TENANT}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": TENANT}, "spec": pod},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"zone": "a"}}},
    )
    yield control_plane
    control_plane.kubectl("delete", "--wait=false", "namespace", TENANT, SERVED)
    control_plane.kubectl("delete", "node", NODE)


@pytest.fixture(scope="module")
def account(prepared: ControlPlane, operator_kubeconfig: Path) -> Account:
    return account_of(operator_kubeconfig, token_of(operator_kubeconfig))


def named(api_version: str, kind: str, name: str = "evil", **rest: Any) -> Body:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **rest}


_IN: Final = f"/namespaces/{TENANT}"
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
_HOOKS: Final = "/apis/admissionregistration.k8s.io/v1"
_POD: Final = {"containers": [{"name": "c", "image": "x:1"}]}
_POLICY: Final = {"validations": [{"expression": "true"}]}
FORBIDDEN: Final[list[tuple[str, str, Any]]] = [
    # Nodes beyond our own labels: by RBAC, or by the node policy (below).
    ("GET", f"/api/v1/nodes/{NODE}", None),
    ("POST", "/api/v1/nodes", named("v1", "Node")),
    ("PUT", f"/api/v1/nodes/{NODE}", named("v1", "Node", NODE)),
    ("DELETE", f"/api/v1/nodes/{NODE}", None),
    ("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"phase": "x"}}),
    ("GET", f"/api/v1/nodes/{NODE}/proxy/pods", None),
    # Secrets but for `get` by name.
    ("GET", "/api/v1/secrets", None),
    ("GET", f"/api/v1{_IN}/secrets", None),
    ("GET", f"/api/v1{_IN}/secrets?watch=true", None),
    ("GET", f"/api/v1{_IN}/secrets?fieldSelector=metadata.name%3Dkey", None),
    ("POST", f"/api/v1{_IN}/secrets", named("v1", "Secret")),
    ("PATCH", f"/api/v1{_IN}/secrets/key", {"stringData": {"a": "b"}}),
    ("PUT", f"/api/v1{_IN}/secrets/key", named("v1", "Secret", "key")),
    ("DELETE", f"/api/v1{_IN}/secrets/key", None),
    ("DELETE", f"/api/v1{_IN}/secrets", None),
    # Pods themselves.
    ("GET", f"/api/v1{_IN}/pods/p", None),
    ("POST", f"/api/v1{_IN}/pods", named("v1", "Pod", spec=_POD)),
    ("PATCH", f"/api/v1{_IN}/pods/p", {"metadata": {"labels": {"a": "b"}}}),
    ("DELETE", f"/api/v1{_IN}/pods/p", None),
    ("POST", f"/api/v1{_IN}/pods/p/exec?command=id&stdout=1", None),
    ("POST", f"/api/v1{_IN}/pods/p/attach", None),
    ("POST", f"/api/v1{_IN}/pods/p/portforward", None),
    ("POST", f"/api/v1{_IN}/pods/p/eviction", {"apiVersion": "policy/v1", "kind": "Eviction",
                                               "metadata": {"name": "p"}}),
    ("POST", f"/api/v1{_IN}/pods/p/binding", named("v1", "Binding", "p", target={"name": NODE})),
    ("PATCH", f"/api/v1{_IN}/pods/p/ephemeralcontainers", {"spec": {}}),
    ("GET", f"/api/v1{_IN}/pods/p/log", None),
    ("GET", f"/api/v1{_IN}/pods/p/proxy/", None),
    # Who may do what.
    ("POST", f"{_RBAC}/clusterroles", named("rbac.authorization.k8s.io/v1", "ClusterRole", rules=[])),
    ("PATCH", f"{_RBAC}/clusterroles/slmops-cluster", {"rules": []}),
    ("POST", f"{_RBAC}{_IN}/roles", named("rbac.authorization.k8s.io/v1", "Role", rules=[])),
    ("POST", f"{_RBAC}{_IN}/rolebindings", named("rbac.authorization.k8s.io/v1", "RoleBinding", roleRef={
        "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"})),
    ("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/slmops/token",
     named("authentication.k8s.io/v1", "TokenRequest", "slmops", spec={"audiences": []})),
    ("POST", f"/api/v1{_IN}/serviceaccounts", named("v1", "ServiceAccount")),
    ("POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests",
     named("certificates.k8s.io/v1", "CertificateSigningRequest", spec={
         "request": "eA==", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]})),
    # What watches over it.
    ("POST", f"{_HOOKS}/validatingwebhookconfigurations",
     named("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", webhooks=[])),
    ("POST", f"{_HOOKS}/mutatingwebhookconfigurations",
     named("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", webhooks=[])),
    ("DELETE", f"{_HOOKS}/validatingadmissionpolicies/slmops-node-labels", None),
    ("DELETE", f"{_HOOKS}/validatingadmissionpolicybindings/slmops-node-labels", None),
    ("POST", f"{_HOOKS}/validatingadmissionpolicies",
     named("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", spec=_POLICY)),
    ("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/slmdeployments.slmops.dev", None),
    ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
     named("apiextensions.k8s.io/v1", "CustomResourceDefinition")),
    ("PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/slmdeployments.slmops.dev",
     {"spec": {}}),
    ("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/slmdeployments.slmops.dev", None),
    ("PATCH", f"/api/v1{_IN}", {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}),
    ("GET", "/api/v1/namespaces", None),
    ("POST", "/api/v1/namespaces", named("v1", "Namespace")),
    ("DELETE", f"/api/v1{_IN}", None),
    # Other people's words, volumes and workloads of other kinds.
    ("GET", f"/apis/events.k8s.io/v1{_IN}/events", None),
    ("DELETE", f"/apis/events.k8s.io/v1{_IN}/events", None),
    ("POST", f"/api/v1{_IN}/persistentvolumeclaims", named("v1", "PersistentVolumeClaim")),
    ("POST", "/api/v1/persistentvolumes", named("v1", "PersistentVolume")),
    ("POST", f"/apis/apps/v1{_IN}/statefulsets", named("apps/v1", "StatefulSet")),
    ("POST", f"/apis/batch/v1{_IN}/cronjobs", named("batch/v1", "CronJob")),
    ("DELETE", f"/apis/apps/v1{_IN}/daemonsets", None),  # all at once
    # Of our own kinds: nothing is made, deleted, or rewritten as a whole.
    ("POST", f"/apis/slmops.dev/v1alpha1{_IN}/slmdeployments", named("slmops.dev/v1alpha1", "SLMDeployment")),
    ("DELETE", f"/apis/slmops.dev/v1alpha1{_IN}/slmdeployments/x", None),
    ("PATCH", f"/apis/slmops.dev/v1alpha1{_IN}/slmmodels/x", {"spec": {}}),
    ("POST", "/apis/slmops.dev/v1alpha1/deviceprofiles", named("slmops.dev/v1alpha1", "DeviceProfile")),
    ("PATCH", "/apis/slmops.dev/v1alpha1/deviceprofiles/x", {"spec": {}}),
    # Leases of others.
    ("PUT", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/other",
     named("coordination.k8s.io/v1", "Lease", "other")),
    ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases", None),
    ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases",
     named("coordination.k8s.io/v1", "Lease")),
    # Acting as somebody else.
    ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews",
     named("authorization.k8s.io/v1", "SubjectAccessReview", spec={"user": "x"})),
    ("GET", "/metrics", None),
    ("GET", "/logs/", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body"), FORBIDDEN, ids=[f"{method} {path}" for method, path, _ in FORBIDDEN]
)
def test_the_request_is_refused(account: Account, method: str, path: str, body: Any) -> None:
    form = MERGE_PATCH if method == "PATCH" else "application/json"
    status, words = account.ask(method, path, body, form=form)
    assert status == 403, words
    assert "system:serviceaccount:slmops-system:slmops" in words, "refused for who asks, and nothing else"


@pytest.mark.parametrize("form", [MERGE_PATCH, "application/strategic-merge-patch+json"])
@pytest.mark.parametrize(
    "patch",
    [
        {"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoExecute"}]}},
        {"spec": {"unschedulable": True}},
        {"spec": {"providerID": "x"}},
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
        {"metadata": {"labels": {"zone": "b"}}},
        {"metadata": {"labels": {"zone": None}}},
        {"metadata": {"annotations": {"a": "b"}}},
        {"metadata": {"finalizers": ["a.b/c"]}},
        {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}},
    ],
)
def test_a_node_keeps_what_is_not_ours(
    account: Account, prepared: ControlPlane, patch: Any, form: str
) -> None:
    def seen() -> Body:
        node = prepared.kubectl.get("node", NODE)
        labels, annotations = node["metadata"]["labels"], node["metadata"].get("annotations", {})
        return {
            "labels": labels,
            # Controllers add theirs whenever they come round to it.
            "annotations": sorted(key for key in annotations if "kubernetes.io/" not in key),
            "spec": node.get("spec", {}).get("taints"),
        }

    before = seen()
    status, words = account.ask("PATCH", f"/api/v1/nodes/{NODE}", patch, form=form)
    assert status in (403, 422) and "slmops-node-labels" in words, words
    assert seen()["labels"] == before["labels"] and seen()["annotations"] == before["annotations"]


def test_impersonation_is_refused(account: Account) -> None:
    request = urllib.request.Request(  # noqa: S310
        f"{account.server}/api/v1/secrets",
        headers={"Authorization": f"Bearer {account.token}", "Impersonate-User": "admin",
                 "Impersonate-Group": "system:masters"},
    )  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, context=account.tls, timeout=60)  # noqa: S310
    assert caught.value.code == 403


@pytest.fixture(scope="module")
def confined(prepared: ControlPlane) -> Account:
    """A second operator, installed with `watchNamespaces: [rbac-served]`."""
    home = "rbac-confined"
    values = {"watchNamespaces": [SERVED], "fullnameOverride": "confined"}
    text = render_chart(values).replace(NAMESPACE, home)
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    bodies = [body for body in objects(text) if body["kind"] in kinds]
    prepared.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}}, *bodies)
    token = prepared.kubectl("create", "token", "confined", "-n", home).strip()
    found = account_of(prepared.kubeconfig, token)
    wait_until(
        "the binding being in force",
        lambda: found.ask("GET", f"/api/v1/namespaces/{SERVED}/pods")[0] == 200,
        timeout_seconds=120,
        interval_seconds=0.2,
    )
    return found


def test_with_watch_namespaces_others_are_out_of_reach(confined: Account) -> None:
    config_map = named("v1", "ConfigMap", "x")
    requests: list[tuple[str, Callable[[str], str], Any]] = [
        ("GET", lambda n: f"/api/v1/namespaces/{n}/secrets/key", None),
        ("GET", lambda n: f"/api/v1/namespaces/{n}/pods", None),
        ("POST", lambda n: f"/api/v1/namespaces/{n}/configmaps?dryRun=All", config_map),
        ("DELETE", lambda n: f"/apis/apps/v1/namespaces/{n}/daemonsets/x", None),
        ("GET", lambda n: f"/apis/slmops.dev/v1alpha1/namespaces/{n}/slmdeployments", None),
        ("DELETE", lambda n: f"/apis/batch/v1/namespaces/{n}/jobs/x", None),
    ]
    for method, path, body in requests:
        assert confined.ask(method, path(SERVED), body)[0] in (200, 201, 404), path(SERVED)
        assert confined.ask(method, path(TENANT), body)[0] == 403, path(TENANT)
        assert confined.ask(method, path("kube-system"), body)[0] == 403, path("kube-system")
    for whole in ("/api/v1/pods", "/apis/slmops.dev/v1alpha1/slmdeployments", "/apis/apps/v1/daemonsets"):
        assert confined.ask("GET", whole)[0] == 403, "not over all namespaces at once"
    assert confined.ask("GET", "/api/v1/nodes")[0] == 200


# What is permitted is what is asked for


Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""

KOPF: Final[set[Right]] = {
    ("apiextensions.k8s.io", "customresourcedefinitions", "list"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "watch"),
}
"""What kopf asks for, over connections of its own: it looks for the kinds that it has handlers of."""
KOPF_CONFINED: Final[set[Right]] = {("", "namespaces", "list"), ("", "namespaces", "watch")}
"""With `watchNamespaces` alone."""
UNFORCED: Final[set[Right]] = {(SERVICES.group, SERVICES.plural, "delete")}
"""Code paths that no test can bring about: a Service of a name that no version of the operator has used."""


def rights(values: dict[str, Any] | None = None) -> set[Right]:
    """All that the chart's roles for the operator permit."""
    roles = [
        body
        for body in objects(render_chart(values))
        if body["kind"] in ("ClusterRole", "Role")
        and body["metadata"]["name"] in ("slmops-cluster", "slmops-namespaced", "slmops-lease")
    ]
    assert len(roles) == 3
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


GROUPS: Final = {
    found.plural: found.group for found in vars(resources).values() if isinstance(found, Resource)
}


class Ledger:
    """What the operator's client asks for."""

    def __init__(self) -> None:
        self.asked: set[Right] = set()
        self.refused: set[Right] = set()

    def note(self, verb: str, plural: str, status: int, _: float) -> None:
        group = GROUPS[plural]
        of_status = verb == "update" and group == DEPLOYMENTS.group
        right = (group, plural + ("/status" if of_status else ""), verb)
        # An apply is a patch, and needs the right to create where there is nothing yet.
        found = {right} if verb != "apply" else {(*right[:2], "patch"), (*right[:2], "create")}
        self.asked |= found
        if status == 403:
            self.refused |= found


class Contested(CountingClient):
    """The first answers to some writes get lost, so that the operator looks what has become of them."""

    lost: set[tuple[str, str]]

    async def _json(self, verb: str, resource: Resource, **options: Any) -> Body:
        answer = await super()._json(verb, resource, **options)
        if (verb, resource.plural) in self.lost:
            self.lost.discard((verb, resource.plural))
            raise Conflict("the answer was lost", status=409)
        return answer


def _replicas(namespace: str, version: str) -> Body:
    body = deployment(namespace, version, waves=[{"name": "all", "percent": 100}])
    body["metadata"]["name"] = "replicas"
    body["spec"]["placement"] |= {"mode": "Replicas", "replicas": 2}
    return body


async def test_every_permission_is_used_and_every_request_permitted(
    cluster: Cluster, kwok: ControlPlane, operator_kubeconfig: Path
) -> None:
    ledger = Ledger()
    cluster.resolver = ModelResolver()
    configuration = await load_configuration(str(operator_kubeconfig))

    def connect() -> CountingClient:
        client = Contested(configuration, on_request=ledger.note)
        client.lost = {("create", "jobs"), ("update", "slmmodels")}
        return client

    cluster.connect = connect
    namespace = cluster.namespace

    async with operator(cluster):
        token = named("v1", "Secret", "token", stringData={"token": "t"})
        await cluster.kube.apply(SECRETS, namespace=namespace, body=token)
        for version in ("v1", "v2", "v3"):
            body = deployment(namespace, version, waves=[{"name": "all", "percent": 100}])
            body["spec"]["variants"][0]["source"]["http"]["secretRef"] = {"name": "token"}
            body["spec"]["revisionHistoryLimit"] = 1
            await cluster.kube.apply(DEPLOYMENTS, namespace=namespace, body=body)
            revision = await cluster.until_promoted(version)
        await cluster.until_settled(revision, 4)
        # Drift that only whole fields take back.
        workload = (await cluster.daemon_sets())[0]
        extra = {"spec": {"template": {"spec": {"hostNetwork": True}}}}
        words = ("patch", "daemonset", workload, "-n", namespace, "--type=merge", "-p", json.dumps(extra))
        kwok.kubectl(*words)
        await train(cluster)
        for version in ("v1", "v2"):
            await cluster.kube.apply(DEPLOYMENTS, namespace=namespace, body=_replicas(namespace, version))
            await until_served(cluster, "replicas", version)
        await cluster.kube.merge_patch(
            DEPLOYMENTS,
            namespace=namespace,
            name="replicas",
            body={"spec": {"privacy": {"networkPolicy": "None"}}},
        )
        model = model_body(namespace)
        model["spec"]["jobs"]["ttl"] = "1s"
        await cluster.kube.apply(MODELS, namespace=namespace, body=model)

        async def jobs() -> bool:
            return bool(await cluster.items(JOBS, namespace=namespace))

        await until("a Job", jobs)
        # A recipe that is taken out: its Jobs are no longer wanted.
        await cluster.kube.merge_patch(
            MODELS, namespace=namespace, name="chat", body={"spec": {"recipes": [{"name": "fp32"}]}}
        )
        wanted = rights() - KOPF - UNFORCED

        async def all_asked() -> bool:
            return not wanted - ledger.asked

        await until("every right being used", all_asked, seen=lambda: sorted(wanted - ledger.asked))
        for name in (NAME, "replicas"):
            await cluster.kube.delete(DEPLOYMENTS, namespace=namespace, name=name)

    assert ledger.refused == set()
    # The feed of this test stands for kopf's and asks for the same.
    assert ledger.asked - rights() == set(), "each of these is needed, and the chart does not give it"


async def train(cluster: Cluster) -> None:
    """A site adapts the model and is asked to train, and then does not take part any more."""
    site = {"metadata": {"labels": {"topology.kubernetes.io/zone": "north"}}}
    await cluster.kube.merge_patch(NODES, name=f"{cluster.namespace}-a", body=site)

    async def set_adaptation(adaptation: Body | None) -> None:
        body: Body = {"spec": {"adaptation": adaptation}}
        await cluster.kube.merge_patch(DEPLOYMENTS, namespace=cluster.namespace, name=NAME, body=body)

    async def count() -> int:
        selector = f"slmops.dev/adaptation={NAME}"
        return len(await cluster.items(JOBS, namespace=cluster.namespace, label_selector=selector))

    async def made() -> bool:
        return await count() > 0

    async def gone() -> bool:
        return await count() == 0

    await set_adaptation({"sites": ["north"]})
    await cluster.annotate(train="1")
    await until("a Job that trains", made)
    await set_adaptation(None)
    await until("no Job that trains", gone)


async def until_served(cluster: Cluster, name: str, version: str) -> None:
    async def holds() -> bool:
        body = await cluster.kube.get(DEPLOYMENTS, namespace=cluster.namespace, name=name)
        return bool((body.get("status") or {}).get("modelVersion") == version)

    await until(f"{name} being served", holds)


def test_namespaces_are_read_only_where_some_are_named() -> None:
    assert rights({"watchNamespaces": ["a"]}) - rights() == KOPF_CONFINED
    assert rights() - rights({"watchNamespaces": ["a"]}) == set()
    assert rights() - rights({"rbac": {"readSecrets": False}}) == {("", "secrets", "get")}
    owned = {(r.group, r.plural, verb) for r in OWNED.values()
             for verb in ("get", "list", "watch", "create", "patch", "delete")}  # fmt: skip
    assert owned <= rights()
