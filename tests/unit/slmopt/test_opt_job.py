# SPDX-License-Identifier: Apache-2.0
"""Job files: what is understood, and how what is not is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmopt.errors import JobError
from slmopt.job import (
    Convert,
    OciTarget,
    Prune,
    PvcTarget,
    QuantizeInt4,
    QuantizeInt8,
    S3Target,
    Slice,
    parse_job,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def refusal(body: Any) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(json.dumps(body))
    return str(caught.value)


def test_every_step_with_its_defaults() -> None:
    job = parse_job(
        json.dumps(
            {
                "steps": [
                    {"quantizeInt8": {}},
                    {"quantizeInt4": None},
                    {"prune": {"method": "nm", "pattern": "1:8"}},
                    {"slice": {"feedForwardPercent": 12, "headsPercent": 0}},
                    {"convert": {"to": "gguf", "type": "Q4_0"}},
                    {"convert": {"to": "litert"}},
                ]
            }
        )
    )
    assert job.steps == (
        QuantizeInt8(),
        QuantizeInt4(),
        Prune(method="nm", kept=1, group=8),
        Slice(feed_forward_percent=12),
        Convert(to="gguf", type="Q4_0"),
        Convert(to="litert", type="dynamic_wi8_afp32"),
    )
    assert (job.target, job.sign) == (None, False)


@pytest.mark.parametrize(
    ("publish", "target"),
    [
        (
            {"oci": {"image": "reg.example:5000/team/orders:v1", "plainHttp": True}},
            OciTarget(host="reg.example:5000", repository="team/orders", tag="v1", plain_http=True),
        ),
        (
            {
                "s3": {
                    "endpoint": "https://s3.example/",
                    "region": "eu-1",
                    "bucket": "models",
                    "prefix": "a/b",
                }
            },
            S3Target(endpoint="https://s3.example", region="eu-1", bucket="models", prefix="a/b/"),
        ),
        (
            {"s3": {"region": "eu-1", "bucket": "models"}},
            S3Target(endpoint="https://s3.eu-1.amazonaws.com", region="eu-1", bucket="models"),
        ),
        (
            {"pvc": {"claim": "models", "path": "orders/v1"}},
            PvcTarget(claim="models", path="orders/v1"),
        ),
    ],
)
def test_targets(publish: dict[str, Any], target: object) -> None:
    assert parse_job(json.dumps({"steps": [], "publish": publish, "sign": True})).target == target


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "must be an object"),
        ({}, "steps: must be a list"),
        ({"steps": [{}]}, "steps[0] is {}; it must have exactly one of quantizeInt8"),
        ({"steps": [{"quantizeInt8": {}, "prune": {}}]}, "exactly one of"),
        ({"steps": [{"shrink": {}}]}, "exactly one of"),
        (
            {"steps": [{"quantizeInt4": {"blockSize": 33}}]},
            "steps[0].quantizeInt4.blockSize is 33; use one of",
        ),
        ({"steps": [{"quantizeInt4": {"symmetric": 1}}]}, "symmetric is 1; use true or false"),
        ({"steps": [{"quantizeInt4": {"blocksize": 32}}]}, "unknown field blocksize"),
        ({"steps": [{"prune": {}}]}, "steps[0].prune.method is missing; use one of magnitude, nm"),
        ({"steps": [{"prune": {"method": "nm", "pattern": "4:4"}}]}, "N must be less than M"),
        ({"steps": [{"prune": {"method": "nm", "pattern": "half"}}]}, "use N:M"),
        ({"steps": [{"prune": {"method": "magnitude", "sparsityPercent": 99}}]}, "from 1 to 95"),
        ({"steps": [{"slice": {}}]}, "set it or headsPercent above 0"),
        ({"steps": [{"loraInputs": {"rank": 0}}]}, "rank is 0; use a whole number from 1 to 256"),
        ({"steps": [{"loraInputs": {"targets": "q_proj"}}]}, "use a list of parts of node names"),
        ({"steps": [{"convert": {"to": "gguf", "type": "Q5_K"}}]}, "use one of F32, F16, Q8_0, Q4_0"),
        ({"steps": [{"quantizeInt8": {"exclude": "lm_head"}}]}, "use a list"),
        ({"steps": [], "sign": "yes"}, "sign is 'yes'; use true or false"),
        ({"steps": [], "publish": {"oci": {"image": "orders:v1"}}}, "publish.oci.image"),
        ({"steps": [], "publish": {"oci": {"image": "reg/orders"}}}, "HOST/REPOSITORY:TAG"),
        ({"steps": [], "publish": {"pvc": {"path": "../up"}}}, "publish.pvc.path"),
        ({"steps": [], "publish": {"s3": {"bucket": "models", "prefix": "/a"}}}, "publish.s3.prefix"),
        ({"steps": [], "publish": {"s3": {"bucket": "models", "prefix": "a/../b/"}}}, "publish.s3.prefix"),
        (
            {"steps": [], "publish": {"s3": {"bucket": "models", "endpoint": "ftp://x"}}},
            "publish.s3.endpoint",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(body: Any, words: str) -> None:
    assert words in refusal(body)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(JobError, match="not JSON"):
        parse_job("steps: []")


@given(st.fixed_dictionaries({"steps": st.lists(JSON, max_size=2)}, optional={"publish": JSON, "sign": JSON}))
def test_no_other_error_leaves_the_parser(body: Any) -> None:
    try:
        parse_job(json.dumps(body))
    except JobError as error:
        assert len(str(error)) < 1000
