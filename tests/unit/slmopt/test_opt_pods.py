# SPDX-License-Identifier: Apache-2.0
"""The pods of an SLMModel's Jobs, run from the operator's own bodies: from source to measurement."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from slmops.adapters.signatures import verify_signature
from slmops.adapters.sources import build_resolver
from slmops.adapters.sources.addresses import AddressPolicy
from slmops.api import SLMModelSpec, SLMModelStatus
from slmops.api.source import Source
from slmops.model.config import OperatorConfig
from slmops.model.observed import Resolved
from slmops.model.slmmodel import ModelObject
from slmops.model.source_secret import secret_of
from slmops.planning.slmmodel.build import JobPlace, build_evaluate_job, build_optimise_job
from slmops.planning.slmmodel.sources import publish_target, published_source
from slmwire.jobs import EvaluateReport, PublishReport, parse_report
from slmwire.reasons import parse_termination
from tests.unit.slmopt.kit import ORDERS
from tests.unit.slmopt.pods import Ended, Node
from tests.unit.slmopt.push_servers import serve_push_registry, serve_push_store
from tests.unit.sources.serving import AnsweringHandler, serve

INT4 = {"name": "int4", "steps": [{"slice": {"feedForwardPercent": 12}}, {"quantizeInt4": {}}]}
SCORER = """
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
score = sum(row["answer"] == row["expected"] for row in rows) / len(rows)
open(sys.argv[2], "w").write(json.dumps({"score": score}))
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine between us and loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class _Files(AnsweringHandler):
    folder: Path

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.folder / urlsplit(self.path).path.removeprefix("/")
        found = path.is_file()
        self._answer(200 if found else 404, {}, path.read_bytes() if found else b"")

    do_HEAD = do_GET


@pytest.fixture
def origin() -> Iterator[str]:
    """URL of a folder with the project's own model."""
    with serve(_Files, folder=ORDERS) as port:
        yield f"http://127.0.0.1:{port}/"


def make_key() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()


async def resolve(source: Source, node: Node) -> Resolved:
    secret = secret_of(source)
    given = {}
    if secret is not None:
        held = node.secrets[secret.name]
        given = {path: held[key] for key, path in secret.items.items() if key in held}
    return await build_resolver(AddressPolicy(allow_loopback=True)).resolve(source, secret=given)


def place_of(origin: str, recipe: dict[str, Any], **spec: Any) -> JobPlace:
    source = {"http": {"url": f"{origin}slm-manifest.json"}}
    parsed = SLMModelSpec.model_validate({"source": source, "recipes": [recipe], **spec})
    model = ModelObject(
        name="dataset", namespace="shop", uid="u", generation=1, spec=parsed, status=SLMModelStatus()
    )
    config = OperatorConfig(runtime_image="runtime:1", optimizer_image="optimizer:1")
    [only] = parsed.recipes
    return JobPlace(model=model, spec=parsed, config=config, recipe=only, name="job", version="v1")


async def optimise(place: JobPlace, node: Node) -> tuple[Source, Resolved, PublishReport]:
    """Run the Job; what the operator makes of its report."""
    source = place.spec.source
    ended = node.run(build_optimise_job(place, source=source, resolved=await resolve(source, node)))
    assert [(one.name, one.code) for one in ended] == [
        (name, 0) for name in ("fetch", "step-0", "step-1", "publish")
    ], ended[-1]
    report = parse_report(ended[-1].message)
    assert isinstance(report, PublishReport) and place.spec.publish is not None
    target = publish_target(place.spec.publish, version="v1", variant="int4")
    published = published_source(target, report)
    resolved = await resolve(published, node)
    assert resolved.manifest.digest == report.digest
    return published, resolved, report


async def evaluate(place: JobPlace, node: Node, source: Source, resolved: Resolved) -> list[Ended]:
    assert place.spec.evaluation is not None
    dataset = place.spec.evaluation.dataset
    given = None if dataset is None else (dataset, await resolve(dataset, node))
    body = build_evaluate_job(
        JobPlace(**{name: getattr(place, name) for name in ("model", "spec", "config", "recipe", "version")},
                 name="measuring"),
        source=source, resolved=resolved, dataset=given, profile="", view=None,
    )  # fmt: skip
    return node.run(body)


def report_of(ended: Ended) -> EvaluateReport:
    report = parse_report(ended.message)
    assert isinstance(report, EvaluateReport), ended
    return report


async def test_through_a_registry_signed_and_measured_on_a_dataset(origin: str, tmp_path: Path) -> None:
    private, public = make_key()
    with serve_push_registry() as registry:
        registry.auth = "basic"
        login = {"auths": {registry.host: {"auth": base64.b64encode(b"edge:pass").decode()}}}
        node = Node(
            folder=tmp_path,
            secrets={"push": {".dockerconfigjson": json.dumps(login)}, "key": {"private.pem": private}},
        )
        place = place_of(
            origin,
            INT4,
            publish={
                "oci": {
                    "image": f"{registry.host}/team/orders",
                    "plainHttp": True,
                    "pushSecretRef": {"name": "push"},
                    "pullSecretRef": {"name": "push"},
                }
            },
            signing={"keySecretRef": {"name": "key", "key": "private.pem"}},
            evaluation={
                "dataset": {"http": {"url": f"{origin}slm-manifest.json"}},
                "scorer": {
                    "image": "scorer:1",
                    "command": ["python3", "-c", SCORER],
                    "args": ["/workspace/answers.jsonl", "/dev/termination-log"],
                },
            },
        )
        published, resolved, report = await optimise(place, node)
        assert report.signed and published.oci is not None
        entry = next(file for file in resolved.manifest.files if file.path == "model.sig")
        text = registry.blobs[f"sha256:{entry.sha256}"].decode()
        verify_signature(text, manifest=resolved.manifest, file="model.sig", public_keys=[public])
        ended = await evaluate(place, node, published, resolved)
    names = ["fetch", "fetch-dataset", "evaluate", "score"]
    assert [(one.name, one.code) for one in ended] == [(name, 0) for name in names], ended[-1]
    measured = report_of(ended[2])
    assert (measured.engine, measured.samples) == ("onnxruntime", 60)
    assert measured.exact_match is not None and measured.exact_match >= 0.95
    assert json.loads(ended[3].message)["score"] == pytest.approx(measured.exact_match, abs=0.05)


async def test_through_a_bucket_and_measured_on_what_the_model_brings(origin: str, tmp_path: Path) -> None:
    keys = {"accessKeyId": "AKEDGE", "secretAccessKey": "shh"}
    with serve_push_store() as store:
        node = Node(folder=tmp_path, secrets={"keys": keys})
        place = place_of(
            origin,
            INT4,
            publish={
                "s3": {
                    "endpoint": store.url,
                    "region": "eu-1",
                    "bucket": "models",
                    "prefix": "stage=edge/",
                    "secretRef": {"name": "keys"},
                    "readSecretRef": {"name": "keys"},
                }
            },
            evaluation={},
        )
        published, resolved, _ = await optimise(place, node)
        ended = await evaluate(place, node, published, resolved)
    assert [(one.name, one.code) for one in ended] == [("fetch", 0), ("evaluate", 0)], ended[-1]
    assert report_of(ended[-1]).samples == 60


async def test_through_a_claim(origin: str, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    node = Node(folder=tmp_path / "node", claims={"models": volume})
    place = place_of(
        origin,
        INT4,
        publish={"pvc": {"claimName": "models", "path": "chat"}},
        evaluation={"deadline": "90s"},
        jobs={"storage": {"size": "1Gi"}},
    )
    published, resolved, _ = await optimise(place, node)
    assert [path.name for path in (volume / "chat").iterdir()] == ["v1-int4"]
    ended = await evaluate(place, node, published, resolved)
    assert [(one.name, one.code) for one in ended] == [("fetch", 0), ("evaluate", 0)], ended[-1]
    assert report_of(ended[-1]).samples == 60


async def test_a_container_that_fails_says_why_to_the_operator(origin: str, tmp_path: Path) -> None:
    node = Node(folder=tmp_path, claims={"models": tmp_path})
    steps = [{"convert": {"to": "LiteRT"}}]
    place = place_of(origin, {"name": "lite", "steps": steps}, publish={"pvc": {"claimName": "models"}})
    source = place.spec.source
    ended = node.run(build_optimise_job(place, source=source, resolved=await resolve(source, node)))
    assert [(one.name, one.code) for one in ended] == [("fetch", 0), ("step-0", 1)]
    said = parse_termination(ended[-1].message)
    assert said is not None and said.reason == "Unfit" and "needs litert_torch" in said.message
