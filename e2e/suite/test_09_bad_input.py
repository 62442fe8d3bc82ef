# SPDX-License-Identifier: Apache-2.0
"""Bad input: refused where it is wrong, with the field or the reason, and what runs is not touched."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.lib import Cluster, Deployment, NodeClient
from e2e.lib.chat import CHAT_PATH
from e2e.lib.manifests import FOLDER, PILOT_WAVE
from e2e.lib.observe import condition, rollout_of
from e2e.rig import Rig, RigError
from e2e.suite.conftest import Make

Spec = dict[str, Any]
ROLLOUT = {"waves": [PILOT_WAVE, {"name": "all", "percent": 100}]}
HELLO = [{"role": "user", "content": "one cola for table 3"}]


@pytest.fixture(scope="module")
def orders(make_deployment: Make) -> Iterator[Deployment]:
    """v1 on all edge nodes."""
    deployment = make_deployment(rollout=ROLLOUT)
    deployment.apply("v1")
    deployment.wait_installed()
    yield deployment


@pytest.fixture
def untouched(orders: Deployment) -> Iterator[None]:
    """Whatever the test does, the pods are the same before and after, and v1 serves in the end."""
    before = {pod["metadata"]["uid"] for pod in orders.pods()}
    yield
    assert {pod["metadata"]["uid"] for pod in orders.pods()} == before
    orders.apply("v1")
    orders.wait_promoted("v1", timeout_seconds=180)
    assert {pod["metadata"]["uid"] for pod in orders.pods()} == before


def _two_sources(spec: Spec) -> None:
    spec["variants"][0]["source"]["hf"] = {"repo": "a/b"}


def _wave_of_nothing(spec: Spec) -> None:
    spec["rollout"]["waves"] = [{"name": "some", "percent": 50}]


def _bad_memory(spec: Spec) -> None:
    spec["variants"][0]["resources"]["requests"]["memory"] = "plenty"


def _bad_metric(spec: Spec) -> None:
    spec["rollout"]["analysis"]["metrics"] = [{"name": "x", "preset": "Vibes", "max": "1"}]


def _bad_soak(spec: Spec) -> None:
    spec["rollout"]["soak"] = "a while"


def _no_variants(spec: Spec) -> None:
    spec["variants"] = []


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (_two_sources, "spec.variants[0].source"),
        (_wave_of_nothing, "spec.rollout"),
        (_bad_memory, "spec.variants[0].resources.requests.memory"),
        (_bad_metric, "spec.rollout.analysis.metrics[0].preset"),
        (_bad_soak, "spec.rollout.soak"),
        (_no_variants, "spec.variants"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_fields_path(
    orders: Deployment, cluster: Cluster, spoil: Callable[[Spec], None], path: str
) -> None:
    generation = orders.read()["metadata"]["generation"]
    body = copy.deepcopy(orders.manifest("v1"))
    spoil(body["spec"])
    with pytest.raises(RigError) as refused:
        cluster.apply(body)
    assert path in str(refused.value)
    assert orders.read()["metadata"]["generation"] == generation


def test_what_only_the_operator_can_know_gives_accepted_false(
    orders: Deployment, cluster: Cluster, untouched: None
) -> None:
    body = copy.deepcopy(orders.manifest("v2"))
    body["spec"]["cache"]["hostPath"] = "/etc/kubernetes"
    cluster.apply(body)
    found = orders.wait_status(
        "being refused",
        lambda found: condition(found, "Accepted").get("status") == "False",
        timeout_seconds=60,
    )
    accepted = condition(found, "Accepted")
    assert accepted["reason"] == "HostPathNotAllowed"
    assert "spec.cache.hostPath" in accepted["message"]
    assert "allowedHostPaths" in accepted["message"]
    assert "HostPathNotAllowed" in orders.event_reasons()


@pytest.mark.parametrize(
    ("url", "sha256", "reason"),
    [
        ("http://10.99.0.1:1/slm-manifest.json", None, "SourceUnavailable"),
        ("{models}/nothing/slm-manifest.json", None, "SourceUnavailable"),
        ("{models}/v2-int4/slm-manifest.json", "0" * 64, "IntegrityMismatch"),
        ("http://169.254.169.254/latest/meta-data", None, "AccessDenied"),
    ],
)
def test_a_source_that_does_not_resolve_leaves_serving_alone(
    orders: Deployment, cluster: Cluster, untouched: None, url: str, sha256: str | None, reason: str
) -> None:
    body = copy.deepcopy(orders.manifest("v2"))
    source: Spec = {"url": url.format(models=f"{cluster.models_url}/{FOLDER}")} | (
        {"sha256": sha256} if sha256 else {}
    )
    body["spec"]["variants"][0]["source"] = {"http": source}
    cluster.apply(body)
    found = orders.wait_status(
        "ModelResolved being False",
        lambda found: condition(found, "ModelResolved").get("status") == "False",
        timeout_seconds=120,
    )
    assert condition(found, "ModelResolved")["reason"] == reason
    assert "int4" in condition(found, "ModelResolved")["message"]
    assert condition(found, "Ready")["status"] == "True"
    assert reason in orders.event_reasons()


def test_corrupt_bytes_never_serve_and_the_node_says_so(
    orders: Deployment, cluster: Cluster, rig: Rig, untouched: None
) -> None:
    rig.set_model_faults({f"/{FOLDER}/v2-int4/model.onnx.data": {"corrupt": True}})
    orders.apply("v2")

    def reported() -> bool:
        reasons = {entry["reason"] for entry in orders.status().get("reasons", [])}
        return "IntegrityMismatch" in reasons

    orders.wait("the node reporting IntegrityMismatch", reported, timeout_seconds=180)
    found = orders.read()
    assert rollout_of(found)["step"] == "Prefetching", "no wave begins before the model is verified"
    worst = {entry["node"]: entry for entry in found["status"]["worstNodes"]}
    assert "model.onnx.data" in next(iter(worst.values()))["message"]
    assert condition(found, "Ready")["status"] == "True"
    rig.set_model_faults({})


REQUESTS: dict[str, tuple[Any, int]] = {
    "not an object": (["x"], 400),
    "no messages": ({"model": "orders"}, 400),
    "no message at all": ({"model": "orders", "messages": []}, 400),
    "wrong role": ({"model": "orders", "messages": [{"role": "robot", "content": "x"}]}, 400),
    "content of a wrong type": ({"model": "orders", "messages": [{"role": "user", "content": 5}]}, 400),
    "unknown model": ({"model": "gpt-9", "messages": HELLO}, 404),
    "too many choices": ({"model": "orders", "messages": HELLO, "n": 50}, 400),
    "temperature out of range": ({"model": "orders", "messages": HELLO, "temperature": 99}, 400),
    "no tokens wanted": ({"model": "orders", "messages": HELLO, "max_tokens": -1}, 400),
    "longer than the context": (
        {"model": "orders", "messages": [{"role": "user", "content": "cola " * 3000}]},
        400,
    ),
}


@pytest.mark.parametrize("case", list(REQUESTS))
def test_a_malformed_request_gets_an_openai_error(
    orders: Deployment, clients: dict[str, NodeClient], case: str
) -> None:
    body, status = REQUESTS[case]
    client = next(iter(clients.values()))
    answer = client.request(orders.service_address() + CHAT_PATH, body)
    assert answer.status == status, answer
    error = answer.body["error"]
    assert error["message"]
    assert error["type"]
    assert set(error) >= {"message", "type", "param", "code"}
    good = client.chat(orders.service_address(), HELLO, max_tokens=5)
    assert good.ok, good
