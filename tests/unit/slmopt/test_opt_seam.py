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
from slmops.planning.slmmodel.sources import publish_body, publish_target
from slmopt import job as optimizer
from slmopt.job import CONVERT_TYPES, parse_job

NAMES = st.lists(st.text("abc_/.", min_size=1, max_size=8), max_size=3)
BODIES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda names: {"quantizeInt8": {"exclude": names}}, NAMES),
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
    st.sampled_from(
        [{"convert": {"to": to, "type": kind}} for to, kinds in API_TYPES.items() for kind in kinds]
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
