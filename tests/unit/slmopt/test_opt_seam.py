# SPDX-License-Identifier: Apache-2.0
"""The operator writes job files, the optimizer reads them: what the API takes, the optimizer understands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api.recipe_steps import CONVERT_TYPES as API_TYPES
from slmops.api.recipe_steps import Step
from slmops.api.slmmodel import Publish
from slmops.planning.slmmodel import job_state
from slmops.planning.slmmodel.sources import PublishError, publish_body, publish_target, published_source
from slmopt import job as optimizer
from slmopt.job import CONVERT_TYPES, parse_job
from slmwire.jobs import PublishReport, parse_report
from slmwire.paths import MODEL_MANIFEST_FILE
from slmwire.reasons import parse_termination

NAMES = st.lists(st.text("abc_/.", min_size=1, max_size=8), max_size=3)
BODIES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {
            "quantizeInt8": st.fixed_dictionaries(
                {}, optional={"blockSize": st.sampled_from([16, 32, 64, 128, 256]), "exclude": NAMES}
            )
        }
    ),
    st.fixed_dictionaries(
        {
            "quantizeInt4": st.fixed_dictionaries(
                {},
                optional={
                    "blockSize": st.sampled_from([16, 32, 64, 128, 256]),
                    "accuracyLevel": st.integers(0, 4),
                    "symmetric": st.booleans(),
                    "algorithm": st.sampled_from(["RTN", "KQuant"]),
                    "embeddings": st.booleans(),
                    "exclude": NAMES,
                },
            )
        }
    ),
    st.builds(
        lambda percent, scope: {"prune": {"sparsityPercent": percent, "scope": scope}},
        st.integers(1, 95),
        st.sampled_from(["Matrix", "Global"]),
    ),
    st.builds(
        lambda group, data: {"prune": {"method": "NM", "pattern": f"{1 + data % min(group - 1, 9)}:{group}"}},
        st.integers(2, 16),
        st.integers(0, 100),
    ),
    st.builds(
        lambda share, heads, by: {
            "slice": {"feedForwardPercent": share, "headsPercent": heads, "importance": by}
        },
        st.integers(1, 90),
        st.integers(0, 90),
        st.sampled_from(["Weights", "Activations"]),
    ),
    st.builds(
        lambda rank, names: {"loraInputs": {"rank": rank, "targets": names}}, st.integers(1, 256), NAMES
    ),
    st.sampled_from(
        [{"loraInputs": {}}]
        + [{"convert": {"to": to, "type": kind}} for to, kinds in API_TYPES.items() for kind in kinds]
        + [{"convert": {"to": to}} for to in API_TYPES]
    ),
)
TARGETS: list[dict[str, Any]] = [
    {
        "oci": {
            "image": "registry.example:5000/models/chat",
            "pushSecretRef": {"name": "p"},
            "plainHttp": True,
        }
    },
    {"s3": {"bucket": "models", "prefix": "chat/", "secretRef": {"name": "p"}}},
    {"s3": {"endpoint": "http://s3.example:9000", "bucket": "models", "readSecretRef": {"name": "r"}}},
    {"s3": {"endpoint": "https://store.example/s3/", "bucket": "models", "prefix": "_stage=edge/a.b/"}},
    {"pvc": {"claimName": "models"}},
    {"pvc": {"claimName": "models", "path": "chat"}},
]


@given(bodies=st.lists(BODIES, min_size=1, max_size=4))
def test_every_step_of_the_api_is_understood(bodies: list[dict[str, Any]]) -> None:
    steps = [Step.model_validate(body) for body in bodies]
    job = parse_job(json.dumps({"steps": [step.to_body() for step in steps], "sign": True}))
    assert len(job.steps) == len(steps) and job.sign
    for written, read in zip(steps, job.steps, strict=True):
        if written.quantize_int4 is not None:
            assert isinstance(read, optimizer.QuantizeInt4)
            assert read.algorithm.lower() == written.quantize_int4.algorithm.lower()
            assert read.block_size == written.quantize_int4.block_size
        if written.prune is not None and written.prune.pattern is not None:
            assert isinstance(read, optimizer.Prune)
            assert (read.method, f"{read.kept}:{read.group}") == ("nm", written.prune.pattern)
        if written.lora_inputs is not None:
            assert isinstance(read, optimizer.LoraInputs)
            assert read.rank == written.lora_inputs.rank
            assert list(read.targets) == (written.lora_inputs.targets or list(optimizer.LORA_TARGETS))
        if written.convert is not None:
            assert isinstance(read, optimizer.Convert)
            assert read.type == (written.convert.type or API_TYPES[written.convert.to][0])


def test_both_know_the_same_types() -> None:
    assert {to.lower(): types for to, types in API_TYPES.items()} == dict(CONVERT_TYPES)


@pytest.mark.parametrize("body", TARGETS)
def test_every_target_of_the_api_is_understood(body: dict[str, Any]) -> None:
    target = publish_target(Publish.model_validate(body), version="1.0", variant="int4")
    text = json.dumps({"steps": [], "publish": publish_body(target)})
    assert parse_job(text).target is not None
    assert "Secret" not in text and "1.0-int4" in text


@pytest.mark.parametrize(
    "entries", [5, None, True, {"path": 1}, [5], [{"path": "../x", "size": 1, "sha256": "0" * 64}]]
)
def test_a_report_that_a_node_made_up_is_refused(entries: Any) -> None:
    target = Publish.model_validate({"pvc": {"claimName": "models", "path": "chat"}})
    fields = {"digest": f"sha256:{'0' * 64}", "reference": "", "size_bytes": 1, "files": 1}
    text = json.dumps({"report": "PublishReport", **fields, "entries": entries})
    report = parse_report(text)
    assert isinstance(report, PublishReport)
    with pytest.raises(PublishError):
        published_source(target, report)


def test_a_bucket_whose_list_is_too_long_for_a_message_is_read_by_its_manifest() -> None:
    target = Publish.model_validate({"s3": {"bucket": "models", "prefix": "chat/"}})
    report = PublishReport(
        digest=f"sha256:{'0' * 64}", reference="s3://models/chat/", size_bytes=1, files=400
    )
    source = published_source(target, report).s3
    assert source is not None and source.manifest == MODEL_MANIFEST_FILE


@pytest.mark.parametrize("text", ["[" * 4000, '{"reason": ' + "[" * 4000])
def test_a_message_that_a_node_made_up_stops_nobody(text: str) -> None:
    assert parse_termination(text) is None and parse_report(text) is None


@pytest.mark.parametrize("score", ["1" * 400, "NaN", "-1", "1.5", "true", '"1"'])
def test_a_score_that_is_no_share_is_none(score: str) -> None:
    assert job_state._score(f'{{"score": {score}}}') is None
