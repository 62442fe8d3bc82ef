# SPDX-License-Identifier: Apache-2.0
"""A site with a wording of its own: corrected there, trained there, judged there, and nowhere else.

The rig's site-b has one node. Its guests call things by names that no version of the model knows.
"""

import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.lib import Cluster, Deployment, NodeClient, OperatorImages, install_operator
from e2e.lib.artifacts import Repository
from e2e.lib.customer import Case, Customer, Heard, Talk, share_right
from e2e.lib.manifests import API_VERSION, MODEL, golden_cases, model_dir
from e2e.lib.observe import condition, is_true
from e2e.lib.release import image_values, operator_log
from e2e.models.recipe.data import build_examples
from e2e.models.recipe.dialect import shifted_cases
from e2e.rig.images import build_images
from e2e.rig.topology import REGISTRY
from e2e.suite.conftest import OPERATOR_VALUES, Make, need_rig
from slmwire.paths import examples_subpath

SITE_LABEL: Final = "slmops.dev/site"
SITE, OTHER_SITE = "site-b", "site-a"
SOURCE, MADE = "e2e-models/orders-plain", "e2e-models/orders-adaptable"
MODEL_KIND: Final = "slmmodels.slmops.dev"
ADAPTER: Final = "local"
MIN_EXAMPLES: Final = 150
LOCAL, USUAL, HELD_OUT = 300, 250, 100
"""How much is said in the wording of the site and in the usual one before the training, and asked after."""
GUEST: Final = "Quillfeather"
"""A name, which redaction does not know: it may be in the folder of examples, and nowhere else."""
MAIL, ACCOUNT = "zelda.hart@example.org", "DE89370400440532013000"
CASES: Final = shifted_cases(LOCAL + HELD_OUT + 150, 17)
"""In the site's wording. No two of them stand for the same command."""
ASKED: Final = CASES[LOCAL : LOCAL + HELD_OUT]
"""What nobody says before or during the training."""
NODE_FOLDERS: Final = ("/var/lib/slmops", "/var/lib/kubelet", "/var/log/pods")
KINDS: Final = (
    "slmdeployments.slmops.dev,slmmodels.slmops.dev,pods,jobs,configmaps,secrets,services,daemonsets,"
    "controllerrevisions.apps,networkpolicies,events"
)
QUALITY: Final = {"name": "quality", "preset": "EvaluationScore", "maxDegradation": "0.08"}
SCORE: Final = {"name": "score", "preset": "FeedbackScore", "min": "0.7", "minSamples": 30}
WAVES: Final = (
    {"name": "site", "nodeSelector": {"matchLabels": {SITE_LABEL: SITE}}},
    {"name": "all", "percent": 100},
)

Json = dict[str, Any]


@dataclass(slots=True)
class Shop:
    """A chain of cafés with one SLMDeployment, and what the tests have seen of it."""

    cluster: Cluster
    orders: Deployment
    store: str
    """Folder of its store on the nodes."""
    node: str
    """Of the site that adapts."""
    others: tuple[str, ...]
    before: list[Heard] = field(default_factory=list)
    """Answers to the held-out cases of the model as it was made."""
    stable: str = ""
    """Revision without an adapter."""

    def customer(self, node: str = "") -> Customer:
        """Somebody at a node's site."""
        return Customer(self.cluster.rig, node or self.node, self.orders.service_address())

    def examples(self, node: str) -> Path:
        """The folder of examples on a node."""
        own = examples_subpath(self.orders.namespace, self.orders.name)
        return self.cluster.rig.node_path(node, f"{self.store}/{own}")

    def manifest(self, *, adaptation: Json | None, metrics: tuple[Json, ...]) -> Json:
        """The SLMDeployment with or without `spec.adaptation`."""
        body = self.orders.manifest(
            "v1",
            rollout={
                "waves": list(WAVES),
                "soak": "2s",
                "analysis": {"interval": "2s", "passes": 2, "metrics": list(metrics)},
            },
        )
        spec = body["spec"]
        del spec["variants"]
        spec["model"] = {"name": MODEL, "from": {"name": MODEL}}
        spec["placement"]["siteLabel"] = SITE_LABEL
        if adaptation is not None:
            spec["adaptation"] = adaptation
            spec["feedback"] = {"interval": "10s", "rules": [RULE]}
        return body

    def training(self) -> Json:
        """What status says of the site; empty before there is anything."""
        sites = (self.orders.status().get("adaptation") or {}).get("sites", [])
        return next((dict(site) for site in sites if site["site"] == SITE), {})

    def wait_settled(self, what: str, *, after: str, timeout_seconds: float = 240) -> str:
        """Wait until a revision other than `after` is stable everywhere; return it."""
        found = self.orders.wait_status(
            what,
            lambda seen: (
                seen["status"].get("stableRevision") not in ("", after)
                and seen["status"]["stableRevision"] == seen["status"]["updateRevision"]
                and is_true(seen, "RolloutSucceeded")
                and is_true(seen, "Ready")
                and condition(seen, "Progressing").get("reason") == "Complete"
            ),
            timeout_seconds=timeout_seconds,
        )
        return str(found["status"]["stableRevision"])

    def served(self, client: NodeClient) -> set[str]:
        """Names that the node's server answers to."""
        answer = client.request(f"{self.orders.service_address()}/v1/models", None)
        assert answer.ok, answer
        return {entry["id"] for entry in answer.body["data"]}


RULE: Final[Json] = {
    "name": "score",
    "metric": {"preset": "FeedbackScore"},
    "min": "0.7",
    # Most has been said then: a training that comes too early would find too little, and wait for a day.
    "minSamples": 350,
    "window": "5m",
    "for": "0s",
    "action": "TrainAdapter",
}
ADAPT: Final[Json] = {
    "name": ADAPTER,
    "sites": [SITE],
    "collect": {"retention": "1h", "maxExamples": 1000},
    "training": {"minExamples": MIN_EXAMPLES, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "gates": {"minGain": "0.2", "maxQualityLoss": "0.08"},
}


def slm_model(namespace: str) -> Json:
    """v1 as int4, with inputs for adapters."""
    return {
        "apiVersion": API_VERSION,
        "kind": "SLMModel",
        "metadata": {"name": MODEL, "namespace": namespace},
        "spec": {
            "source": {"oci": {"image": f"{REGISTRY}/{SOURCE}:v1", "plainHttp": True}},
            "recipes": [{"name": "int4", "steps": [{"loraInputs": {"rank": 8}}]}],
            "publish": {"oci": {"image": f"{REGISTRY}/{MADE}", "plainHttp": True}},
            "jobs": {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
        },
    }


@pytest.fixture(scope="module")
def shop(cluster: Cluster, make_deployment: Make, operator: OperatorImages) -> Iterator[Shop]:
    """The model is being made, and one site of the deployment adapts."""
    need_rig(cluster)
    (optimizer,) = build_images(("slmops-optimizer",))
    at_sites: dict[str, list[str]] = {}
    for node in cluster.find_all("nodes", selector="slmops.dev/edge=true"):
        at_sites.setdefault(node["metadata"]["labels"][SITE_LABEL], []).append(node["metadata"]["name"])
    (own,) = at_sites[SITE]
    trains = OPERATOR_VALUES | {"optimizerImage": image_values(optimizer.reference)}
    install_operator(cluster, images=operator, values=trains)
    orders = make_deployment()
    Repository(REGISTRY, SOURCE).push_files(model_dir("v1"), "v1")
    cluster.apply(slm_model(orders.namespace))
    found = Shop(
        cluster=cluster,
        orders=orders,
        store=orders.options["cache"]["hostPath"],
        node=own,
        others=tuple(at_sites[OTHER_SITE]),
    )
    cluster.apply(found.manifest(adaptation=ADAPT, metrics=(QUALITY, SCORE)))
    yield found
    cluster.delete(MODEL_KIND, MODEL, namespace=orders.namespace)
    install_operator(cluster, images=operator, values=OPERATOR_VALUES)


def usual_cases(count: int) -> list[Case]:
    """In the usual wording; no two of them stand for the same command."""
    found: dict[str, str] = {}
    for example in build_examples(5150, "train"):
        found.setdefault(example.target, example.text)
        if len(found) == count:
            break
    return [(text, target) for target, text in found.items()]


def mixed(local: Sequence[Case], usual: Sequence[Case]) -> list[Case]:
    """Both, in an order of chance that is always the same."""
    cases = [*local, *usual]
    random.Random(17).shuffle(cases)
    return cases


def be_counted(shop: Shop, cases: Sequence[Case]) -> None:
    """Judge answers until Prometheus counts that: what was said before it knew the pod is lost to it."""
    left = list(cases)

    def counts() -> bool:
        shop.customer().speak([left.pop()], judging="corrects")
        rules = (shop.orders.status().get("feedback") or {}).get("rules", [])
        return any(rule["samples"] for rule in rules)

    shop.orders.wait("judgements being counted", counts, timeout_seconds=240, interval_seconds=3)


def find_texts(folder: Path, *texts: str) -> list[str]:
    """Files below `folder` that hold one of the texts."""
    patterns = [part for text in texts for part in ("-e", text)]
    done = subprocess.run(
        ["grep", "-rlF", *patterns, str(folder)], check=False, capture_output=True, text=True, timeout=120
    )
    return done.stdout.splitlines()


def identity(path: Path) -> tuple[int, int]:
    """Device and inode."""
    found = path.stat()
    return found.st_dev, found.st_ino


def all_that_is_told(shop: Shop) -> str:
    """Objects and Events of the namespace, all logs there, and the operator's."""
    cluster, namespace = shop.cluster, shop.orders.namespace
    parts = [cluster.kubectl("get", KINDS, "-n", namespace, "-o", "json")]
    parts += [
        cluster.logs(namespace, pod["metadata"]["name"])
        for pod in cluster.find_all("pods", namespace=namespace)
    ]
    return "\n".join([*parts, operator_log(cluster, lines=100_000)])


def test_the_model_is_made_for_adapters_and_does_not_know_the_sites_wording(shop: Shop) -> None:
    shop.stable = shop.wait_settled(
        "the model that takes adapters being served", after="", timeout_seconds=420
    )
    labels = {pod["spec"]["nodeName"]: pod["metadata"]["labels"] for pod in shop.orders.pods()}
    assert labels[shop.node]["slmops.dev/variant"] == f"int4-{SITE}"
    assert {labels[node]["slmops.dev/variant"] for node in shop.others} == {"int4"}
    shop.before = shop.customer().speak(ASKED)
    assert all(one.status == 200 for one in shop.before), shop.before
    assert share_right(shop.before) < 0.4


def test_corrections_train_an_adapter_on_the_node_and_it_goes_out_as_a_canary(shop: Shop) -> None:
    orders = shop.orders
    said, expected = CASES[0]
    private: list[Case] = [
        (f"{said} for {GUEST}", expected),
        (f"{said} and the bill to {MAIL}", f'{{"intent":"bill","mail":"{MAIL}","iban":"{ACCOUNT}"}}'),
    ]
    usual = usual_cases(USUAL + 200)
    be_counted(shop, usual[USUAL + 100 :])
    spoken = mixed(CASES[1:LOCAL], usual[:USUAL])
    heard = shop.customer().speak([*private, *spoken], judging="corrects")
    assert {one.judged for one in heard} == {200}, [one for one in heard if one.judged != 200][:3]
    assert share_right(heard) < float(RULE["min"])
    kept = find_texts(shop.examples(shop.node), GUEST)
    assert kept, "the corrected answers are kept on the node"

    jobs = orders.wait("a training", orders.training_pods, timeout_seconds=120)
    assert {pod["spec"].get("nodeName", shop.node) for pod in jobs} == {shop.node}
    with Talk(shop.customer(), mixed(CASES[LOCAL + HELD_OUT :], usual[USUAL : USUAL + 100])):
        orders.wait(
            "the training being over",
            lambda: shop.training().get("phase") not in ("Collecting", "Training"),
            timeout_seconds=300,
            interval_seconds=1,
        )
        assert shop.training()["phase"] == "Accepted", shop.training()
        adapted = shop.wait_settled("the adapter being promoted", after=shop.stable)
    site = shop.training()
    assert (site["phase"], site["lastOutcome"]) == ("Accepted", "Accepted"), site
    assert site["examples"] >= MIN_EXAMPLES and site["node"] == shop.node, site
    assert float(site["after"]) >= float(site["before"]) + 0.2, site
    status = orders.status()
    assert [wave["verdict"] for wave in status["rollout"]["waves"]] == ["Pass", "Pass"]
    judged = [
        m
        for m in status["rollout"]["measurements"]
        if m["metric"] == "score" and m["verdict"] == "Pass" and m.get("variant") == f"int4-{SITE}"
    ]
    assert judged and all(float(m["canary"]) >= 0.7 for m in judged), status["rollout"]["measurements"]
    assert condition({"status": status}, "FeedbackHealthy")["status"] != "False"
    assert adapted == status["stableRevision"]


def test_the_site_is_understood_and_knows_what_it_knew(shop: Shop, clients: dict[str, NodeClient]) -> None:
    after = shop.customer().speak(ASKED)
    assert share_right(after) >= max(0.75, share_right(shop.before) + 0.3), [
        (case, one.text) for case, one in zip(ASKED, after, strict=True) if not one.right
    ]
    golden = [(case["messages"][0]["content"], case["expected"]) for case in golden_cases()]
    assert share_right(shop.customer().speak(golden)) >= 0.9
    assert shop.served(clients[shop.node]) >= {MODEL, f"{MODEL}:{ADAPTER}"}
    plain = shop.customer().speak(ASKED, model=f"{MODEL}:base")
    assert [one.text for one in plain] == [one.text for one in shop.before]


def test_the_other_site_answers_as_before_and_has_nothing_of_it(
    shop: Shop, clients: dict[str, NodeClient]
) -> None:
    sha256 = shop.training()["adapter"]["sha256"]
    own = shop.cluster.rig.node_path(shop.node, shop.store)
    assert [path for path in own.rglob(f"*{sha256}*") if path.is_file()]
    for node in shop.others:
        answers = shop.customer(node).speak(ASKED)
        assert [one.text for one in answers] == [one.text for one in shop.before]
        assert shop.served(clients[node]) == {MODEL}
        assert not shop.examples(node).exists()
        store = shop.cluster.rig.node_path(node, shop.store)
        assert not list(store.rglob(f"*{sha256}*")) and not list(store.rglob("*.onnx_adapter"))


def test_nothing_that_was_said_left_the_folder(shop: Shop) -> None:
    rig, words = shop.cluster.rig, (GUEST, CASES[1][0], CASES[2][0])
    told = all_that_is_told(shop)
    assert [text for text in (*words, MAIL, ACCOUNT) if text in told] == []
    # By identity: a mount of the folder into a pod may show the same files under another path.
    own = {identity(path) for path in shop.examples(shop.node).iterdir()}
    for node in (shop.node, *shop.others):
        for folder in NODE_FOLDERS:
            # Redacted before it is written: in no folder at all.
            assert find_texts(rig.node_path(node, folder), MAIL, ACCOUNT) == []
            found = find_texts(rig.node_path(node, folder), *words)
            assert [path for path in found if identity(Path(path)) not in own] == []
    assert find_texts(shop.examples(shop.node), "<Email>") and find_texts(shop.examples(shop.node), "<Iban>")


def test_a_site_that_is_taken_out_forgets(shop: Shop, clients: dict[str, NodeClient]) -> None:
    adapted = shop.orders.status()["stableRevision"]
    assert shop.examples(shop.node).is_dir()
    shop.cluster.apply(shop.manifest(adaptation=None, metrics=(QUALITY,)))
    shop.wait_settled("the site being as the others", after=adapted)
    assert not shop.examples(shop.node).exists()
    assert shop.served(clients[shop.node]) == {MODEL}
    answers = shop.customer().speak(ASKED)
    assert [one.text for one in answers] == [one.text for one in shop.before]
    assert not (shop.orders.status().get("adaptation") or {}).get("sites")
