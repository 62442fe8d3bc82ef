# SPDX-License-Identifier: Apache-2.0
"""Install: helm, apply, and every edge node answers, confined as promised."""

import json
from collections.abc import Iterator

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.account import MERGE_PATCH, account_of
from e2e.lib.chat import is_expected, need_ok
from e2e.lib.manifests import golden_cases
from e2e.lib.release import NAMESPACE, operator_pod
from e2e.rig import RigError
from e2e.suite.conftest import Make
from slmwire import metrics

VICTIM_LABEL = "someone.else/label"
GOOD = 0.9
"""Score of a version that is fit for service, with room for the device; its own tests ask for more."""


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment()
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


def test_every_edge_node_serves_and_no_other(orders: Deployment, cluster: Cluster) -> None:
    status = orders.status()
    count = len(cluster.edge_nodes)
    assert status["nodes"]["ready"] == status["nodes"]["total"] == status["nodes"]["stable"] == count
    assert status["modelVersion"] == "v1"
    assert {pod["spec"]["nodeName"] for pod in orders.pods()} == set(cluster.edge_nodes)
    assert orders.assigned() == {node: {status["stableRevision"]} for node in cluster.edge_nodes}
    assert not orders.pods("prefetch")


def test_each_node_streams_a_right_answer_from_its_own_pod(
    orders: Deployment, clients: dict[str, NodeClient]
) -> None:
    service = orders.service_address()
    case = golden_cases()[0]
    for node, client in clients.items():
        answer = need_ok(client.chat(service, case["messages"]), f"chat on {node}")
        assert answer.chunks >= 1, "the answer was not streamed"
        assert answer.first_seconds is not None
        assert is_expected(case, answer.text), answer.text
        # The Service is Local: what answers is the pod of the node that asks.
        text = str(need_ok(client.request(f"{service}/metrics", None), f"metrics on {node}").body)
        assert f'{metrics.LABEL_NODE}="{node}"' in text


def test_the_model_does_its_task(orders: Deployment, clients: dict[str, NodeClient]) -> None:
    service, client = orders.service_address(), next(iter(clients.values()))
    cases = golden_cases()[:25]
    answers = [need_ok(client.chat(service, case["messages"], stream=False), "chat") for case in cases]
    right = sum(is_expected(case, answer.text) for case, answer in zip(cases, answers, strict=True))
    assert right >= 23, [answer.text for answer in answers]
    usage = answers[0].body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10


def test_prometheus_scrapes_every_pod(orders: Deployment, cluster: Cluster) -> None:
    revision = orders.status()["stableRevision"]
    query = (
        f'{metrics.EVALUATION_SCORE}{{{metrics.LABEL_DEPLOYMENT}="{orders.name}",'
        f'{metrics.LABEL_NAMESPACE}="{orders.namespace}",{metrics.LABEL_REVISION}="{revision}"}}'
    )
    if not cluster.access.prometheus_url:
        pytest.skip("set SLMOPS_PROMETHEUS_URL to ask the cluster's Prometheus")
    series = cluster.wait_for(
        "a score of every node in Prometheus",
        lambda: (
            found if len(found := cluster.access.query_prometheus(query)) == len(cluster.edge_nodes) else None
        ),
        timeout_seconds=120,
        describe=lambda: str(cluster.access.query_prometheus(query)),
    )
    assert series is not None
    assert {one["metric"][metrics.LABEL_NODE] for one in series} == set(cluster.edge_nodes)
    assert all(float(one["value"][1]) >= GOOD for one in series), series


def run_in_server(orders: Deployment, code: str) -> str:
    """Run Python in a serving pod's server container."""
    pod = orders.pods()[0]["metadata"]["name"]
    return orders.cluster.kubectl(
        "exec", "-n", orders.namespace, pod, "-c", "server", "--", "python3", "-c", code
    )


def test_pods_hold_no_credential(orders: Deployment) -> None:
    for pod in orders.pods():
        assert pod["spec"]["automountServiceAccountToken"] is False
        mounts = [m["mountPath"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]]
        assert not [path for path in mounts if "serviceaccount" in path]
    found = run_in_server(
        orders,
        "import os,ssl,urllib.request,urllib.error,json\n"
        "r={'token':os.path.exists('/var/run/secrets/kubernetes.io')}\n"
        "c=ssl.create_default_context();c.check_hostname=False;c.verify_mode=ssl.CERT_NONE\n"
        "for path in ('/api/v1/nodes','/apis/slmops.dev/v1alpha1/slmdeployments'):\n"
        "  try: r[path]=urllib.request.urlopen('https://kubernetes.default.svc'+path,context=c,timeout=10).status\n"
        "  except urllib.error.HTTPError as e: r[path]=e.code\n"
        "print(json.dumps(r))",
    )
    answer = json.loads(found)
    assert answer.pop("token") is False
    assert set(answer.values()) <= {401, 403}, answer


def test_server_is_confined(orders: Deployment) -> None:
    code = """
import json, os
def tries(path):
    try:
        open(path, 'w').close()
        return 'written'
    except OSError as error:
        return error.strerror
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
print(json.dumps({
    'uid': os.getuid(), 'capabilities': int(status['CapEff'].strip(), 16),
    'escalation': status['NoNewPrivs'].strip(), 'seccomp': status['Seccomp'].strip(),
    'root': tries('/x'), 'code': tries('/opt/x'), 'model': tries('/model/model.onnx'), 'tmp': tries('/tmp/x'),
}))
"""
    found = json.loads(run_in_server(orders, code))
    assert found["uid"] == 65532
    assert found["capabilities"] == 0
    assert found["escalation"] == "1"
    assert found["seccomp"] == "2"
    assert found["tmp"] == "written"
    assert "written" not in (found["root"], found["code"], found["model"]), found


def test_logs_hold_no_prompt(orders: Deployment, cluster: Cluster, clients: dict[str, NodeClient]) -> None:
    node, client = next(iter(clients.items()))
    marker = "zanzibar marmalade"
    need_ok(client.ask(orders.service_address(), f"two {marker} to table nine"), "chat")
    pod = orders.pod_on(node)["metadata"]["name"]
    log = cluster.logs(orders.namespace, pod)
    assert log.strip(), "the pod logs nothing at all"
    assert "zanzibar" not in log


def test_admission_confines_the_operator_to_its_node_labels(operator: object, cluster: Cluster) -> None:
    node = cluster.edge_nodes[0]
    name = operator_pod(cluster)["spec"]["serviceAccountName"]
    token = cluster.kubectl("create", "token", name, "-n", NAMESPACE).strip()
    account = account_of(cluster.kubectl.kubeconfig, token)

    def patch(body: object) -> None:
        status, words = account.ask("PATCH", f"/api/v1/nodes/{node}", body, form=MERGE_PATCH)
        if status != 200:
            raise RigError(words)

    own = "probe.e2e.slmops.dev/abc"
    patch({"metadata": {"labels": {own: "int4"}}})
    patch({"metadata": {"labels": {own: None}}})
    forbidden: list[object] = [
        {"metadata": {"labels": {VICTIM_LABEL: "x"}}},
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "true"}}},
        {"metadata": {"labels": {"slmops.dev/ring": "stolen"}}},
        {"metadata": {"annotations": {VICTIM_LABEL: "x"}}},
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}},
    ]
    for body in forbidden:
        with pytest.raises(RigError, match=r"(?i)denied|forbidden"):
            patch(body)


def test_operator_may_not_read_secrets_of_the_system(operator: object, cluster: Cluster) -> None:
    account = operator_pod(cluster)["spec"]["serviceAccountName"]
    user = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    refused = {
        verb: cluster.kubectl("auth", "can-i", *verb.split(), user, check=False).strip()
        for verb in (
            "list secrets -A",
            "create pods -A",
            "delete nodes",
            "create clusterroles",
            "update nodes/status",
        )
    }
    assert set(refused.values()) == {"no"}, refused


def test_same_spec_again_changes_nothing(orders: Deployment) -> None:
    before = {pod["metadata"]["uid"] for pod in orders.pods()}
    revision = orders.status()["stableRevision"]
    orders.apply("v1")
    orders.wait_installed()
    orders.cluster.hold_for(
        "the pods being the same",
        lambda: {pod["metadata"]["uid"] for pod in orders.pods()} == before,
        seconds=3,
    )
    assert orders.status()["stableRevision"] == revision
