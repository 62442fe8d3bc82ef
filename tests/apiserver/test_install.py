# SPDX-License-Identifier: Apache-2.0
"""What users apply, on a real API server: the rendered chart, the examples, the permissions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.checks.helm import render_chart
from e2e.lib.account import MERGE_PATCH, account_of, token_of
from e2e.rig import ControlPlane, RigError
from e2e.rig.paths import CHECKOUT
from e2e.rig.progress import wait_until
from tests.apiserver.account import ACCOUNT, POLICY
from tests.apiserver.namespaces import create_namespaces

MANIFESTS = CHECKOUT / "manifests"
EXAMPLES = sorted((MANIFESTS / "examples").glob("*.yaml"))
NODE = "policy-node"


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, operator_kubeconfig: Path) -> Iterator[ControlPlane]:
    """manifests/install.yaml applied as its head says, and the namespace of the examples."""
    kubectl = control_plane.kubectl
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(MANIFESTS / "install.yaml"))
    create_namespaces(control_plane, "slm")
    yield control_plane
    # The account stays: other tests act by it.
    kubectl(
        "delete", "--wait=false", "deployment/slmops", "daemonset/slmops-store-agent", "-n", "slmops-system"
    )
    kubectl("delete", "--wait=false", "namespace", "slm")


def test_the_chart_is_taken_with_strict_validation(installed: ControlPlane) -> None:
    """Server-side dry run of all forms that need no foreign CRD."""
    for values in (
        {},
        {"watchNamespaces": ["slm"]},
        {"rbac": {"readSecrets": False}},
        {"crds": {"keep": False}},
        {"storeAgent": {"enabled": False}},
        {"prometheus": {"install": {"enabled": True}}, "networkPolicy": {"enabled": True}},
        {
            "prometheus": {"install": {"enabled": True, "storage": {"persistent": True}}},
            "watchNamespaces": ["slm"],
        },
    ):
        installed.kubectl(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-",
            stdin=render_chart(values),
        )  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_taken(installed: ControlPlane, example: Path) -> None:
    installed.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(example))


def may(control_plane: ControlPlane, verb: str, resource: str, *, namespace: str = "") -> bool:
    """Whether the operator's account may do it (`kubectl auth can-i`); `resource` is plural[:subresource]."""
    where = ["-n", namespace] if namespace else ["--all-namespaces"]
    resource, _, subresource = resource.partition(":")
    answer = control_plane.kubectl(
        "auth",
        "can-i",
        verb,
        resource,
        f"--subresource={subresource}",
        f"--as={ACCOUNT}",
        *where,
        check=False,
    )
    assert answer.strip() in ("yes", "no")
    return answer.strip() == "yes"


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("watch", "slmdeployments.slmops.dev", ""),
        ("patch", "slmdeployments.slmops.dev", ""),
        ("update", "slmdeployments.slmops.dev:status", ""),
        ("watch", "nodes", ""),
        ("patch", "nodes", ""),
        ("watch", "pods", ""),
        ("create", "daemonsets.apps", ""),
        ("patch", "deployments.apps", ""),
        ("patch", "controllerrevisions.apps", ""),
        ("delete", "services", ""),
        ("create", "configmaps", ""),
        ("patch", "networkpolicies.networking.k8s.io", ""),
        ("delete", "networkpolicies.networking.k8s.io", ""),
        ("create", "events.events.k8s.io", ""),
        ("get", "secrets", ""),
        ("create", "leases.coordination.k8s.io", "slmops-system"),
        ("update", "leases.coordination.k8s.io/slmops", "slmops-system"),
        ("watch", "customresourcedefinitions.apiextensions.k8s.io", ""),
    ],
)
def test_the_operator_may(installed: ControlPlane, verb: str, resource: str, namespace: str) -> None:
    assert may(installed, verb, resource, namespace=namespace)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("update", "slmdeployments.slmops.dev:finalizers", ""),  # no owner reference blocks deletion
        ("list", "secrets", ""),
        ("create", "secrets", ""),
        ("update", "nodes", ""),
        ("delete", "nodes", ""),
        ("patch", "nodes:status", ""),
        ("create", "ingresses.networking.k8s.io", ""),
        ("update", "networkpolicies.networking.k8s.io", ""),
        ("create", "pods", ""),
        ("delete", "pods", ""),
        ("create", "pods:exec", ""),
        ("get", "pods:log", ""),
        ("get", "pods:proxy", ""),  # stores are read by people, not by the operator
        ("create", "slmdeployments.slmops.dev", ""),
        ("delete", "slmdeployments.slmops.dev", ""),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io", ""),
        ("create", "serviceaccounts:token", ""),
        ("patch", "validatingadmissionpolicies.admissionregistration.k8s.io", ""),
        ("update", "leases.coordination.k8s.io/other", "slmops-system"),
        ("create", "leases.coordination.k8s.io", "kube-node-lease"),
    ],
)
def test_the_operator_may_not(installed: ControlPlane, verb: str, resource: str, namespace: str) -> None:
    assert not may(installed, verb, resource, namespace=namespace)


def test_only_who_is_bound_to_the_role_may_read_stores(installed: ControlPlane) -> None:
    bound = ("rolebinding", "store-reader", "-n", "slmops-system")
    installed.kubectl("create", *bound, "--role=slmops-store-reader", "--user=reader")

    def can(user: str, verb: str, resource: str, namespace: str = "slmops-system") -> bool:
        words = ["auth", "can-i", verb, *resource.split(" "), f"--as={user}", "-n", namespace]
        return installed.kubectl(*words, check=False).strip() == "yes"

    try:
        wait_until(
            "the binding being in force",
            lambda: can("reader", "get", "pods --subresource=proxy"),
            timeout_seconds=120,
            interval_seconds=0.2,
        )
        assert can("reader", "list", "pods")
        assert not can("reader", "create", "pods --subresource=proxy"), "nothing is written through it"
        assert not can("reader", "get", "pods --subresource=proxy", "default")
        assert not can("somebody", "get", "pods --subresource=proxy")
    finally:
        installed.kubectl("delete", *bound)


def test_tenant_roles_reach_view_edit_and_admin(installed: ControlPlane) -> None:
    def rules(role: str) -> set[tuple[str, str]]:
        body = installed.kubectl.get("clusterrole", role)
        return {
            (resource, verb)
            for rule in body["rules"] or []
            if "slmops.dev" in rule.get("apiGroups", [])
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    # A controller gathers the rules a moment after a role is stored.
    wait_until(
        "the roles being gathered",
        lambda: all(("slmdeployments", "watch") in rules(role) for role in ("view", "edit", "admin")),
        timeout_seconds=120,
    )
    assert ("slmdeployments", "create") not in rules("view")
    assert ("slmdeployments", "create") in rules("edit")
    assert ("slmdeployments", "delete") in rules("admin")


@pytest.fixture(scope="module")
def policy_node(installed: ControlPlane) -> Iterator[ControlPlane]:
    """A node for the operator to try its hands on."""
    installed.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": NODE,
                "labels": {"zone": "a", "old.slm.slmops.dev/0123456789": "int4"},
                "annotations": {"note": "x"},
            },
        }
    )
    yield installed
    installed.kubectl("delete", "node", NODE)


def patch(kubeconfig: Path, body: str) -> None:
    """As the operator; not by `kubectl patch`, which reads the node first. RigError when it is refused."""
    path = f"/api/v1/nodes/{NODE}"
    account = account_of(kubeconfig, token_of(kubeconfig))
    status, words = account.ask("PATCH", path, json.loads(body), form=MERGE_PATCH)
    if status != 200:
        raise RigError(words)


@pytest.mark.parametrize(
    "body",
    [
        '{"metadata": {"labels": {"orders.slm.slmops.dev/7c1f0e93ab": "int4"}}}',
        '{"metadata": {"labels": {"orders.slm.slmops.dev/7c1f0e93ab": "fp32"}}}',
        '{"metadata": {"labels": {"orders.slm.slmops.dev/7c1f0e93ab.prefetch": "int4"}}}',
        '{"metadata": {"labels": {"old.slm.slmops.dev/0123456789": null}}}',
    ],
)
def test_labels_of_ours_may_change(policy_node: ControlPlane, operator_kubeconfig: Path, body: str) -> None:
    patch(operator_kubeconfig, body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"metadata": {"labels": {"zone": "b"}}}', "not zone"),
        ('{"metadata": {"labels": {"zone": null}}}', "not zone"),
        ('{"metadata": {"labels": {"new": "x"}}}', "not new"),
        ('{"metadata": {"labels": {"slmops.dev/edge": "true"}}}', "not slmops.dev/edge"),
        ('{"metadata": {"labels": {"evilslmops.dev/a": "x"}}}', "not evilslmops.dev/a"),
        ('{"metadata": {"labels": {"a.slmops.dev.evil.io/a": "x"}}}', "not a.slmops.dev.evil.io/a"),
        ('{"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}', "not node-role"),
        (
            '{"metadata": {"labels": {"orders.slm.slmops.dev/7c1f0e93ab": "int4", "zone": "c"}}}',
            "not zone",
        ),
        ('{"metadata": {"annotations": {"a": "b"}}}', "annotations"),
        ('{"metadata": {"annotations": {"note": null}}}', "annotations"),
        ('{"metadata": {"finalizers": ["slmops.dev/x"]}}', "finalizers"),
        ('{"spec": {"unschedulable": true}}', "spec of a node"),
        ('{"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}', "spec of a node"),
    ],
)
def test_nothing_else_may_change(
    policy_node: ControlPlane, operator_kubeconfig: Path, body: str, words: str
) -> None:
    with pytest.raises(RigError) as caught:
        patch(operator_kubeconfig, body)
    assert POLICY in str(caught.value)
    assert words in str(caught.value)


def test_others_are_not_concerned(policy_node: ControlPlane) -> None:
    policy_node.kubectl("annotate", "node", NODE, "by=administrator")
