# SPDX-License-Identifier: Apache-2.0
"""Reports of nodes that have been tampered with: the plan goes on and status can be stored."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.planning.slmmodel.offer import to_offer
from slmwire.jobs import to_message
from tests.unit.fuzz.robot import numbers_in
from tests.unit.planning.model_sim import GOOD, REPOSITORY, ModelSim, digest_of, spec_body

HUGE = 10**400
ODD: list[Any] = [
    HUGE, -HUGE, -1, -0.0, float("nan"), float("inf"), 1e308, True, "12", "x" * 3000, {}, {"a": 1}, [1], [[]],
    None, "\ud800", "\x1b[2J",
]  # fmt: skip


def assert_stored(sim: ModelSim) -> None:
    """The API server would take the status."""
    body = sim.status.to_body()
    json.dumps(body, allow_nan=False).encode()
    assert all(isinstance(number, int) and abs(number) < 2**63 for number in numbers_in(body))
    assert len(json.dumps(body)) < 30_000
    for version in sim.status.versions:
        for variant in version.variants:
            for holder in (variant.source.s3, variant.source.pvc) if variant.source is not None else ():
                paths = [file.path for file in holder.files] if holder is not None else []
                assert len(set(paths)) == len(paths)


def report(kind: str, **fields: Any) -> str:
    honest = json.loads(to_message(GOOD)) if kind == "evaluate" else {
        "report": "PublishReport", "digest": digest_of("x"), "reference": f"oci://{REPOSITORY}@{digest_of('x')}",
        "size_bytes": 1, "files": 1,
    }  # fmt: skip
    return json.dumps(honest | fields)


@given(
    st.dictionaries(
        st.sampled_from(
            ["engine", "samples", "exact_match", "perplexity", "score", "prompt_tokens_per_second",
             "decode_tokens_per_second", "first_token_seconds", "memory_bytes", "cache_bytes_per_token",
             "size_bytes", "details"]
        ),
        st.sampled_from(ODD),
        min_size=1,
    )
)  # fmt: skip
def test_odd_measurements_are_no_measurements(fields: dict[str, Any]) -> None:
    sim = ModelSim(spec=spec_body(recipes=[{"name": "fp16"}], gates={"minTokensPerSecond": "1"}))
    sim.settle()
    [name] = sim.running("evaluate")
    sim.finish(name, evaluate=report("evaluate", **fields))
    sim.settle()
    assert_stored(sim)
    assert sim.newest.reason in ("VersionAccepted", "GateFailed")
    for variant in to_offer("shop", "chat", sim.status).versions[0].variants:
        assert variant.engine in ("", "onnxruntime"), "what no deployment could use is not offered"


@given(
    fields=st.dictionaries(
        st.sampled_from(["digest", "reference", "size_bytes", "files", "signed", "entries"]),
        st.sampled_from(ODD),
    ),
    publish=st.sampled_from(
        [
            {"oci": {"image": REPOSITORY}},
            {"s3": {"bucket": "models"}},
            {"pvc": {"claimName": "models"}},
        ]
    ),
)
def test_odd_publications_are_refused(fields: dict[str, Any], publish: dict[str, Any]) -> None:
    sim = ModelSim(spec=spec_body(publish=publish))
    sim.settle()
    sim.finish(sim.running("optimise")[0], GOOD, publish=report("publish", **fields))
    sim.settle()
    assert_stored(sim)


FILE = {"path": "model.onnx", "sha256": "1" * 64, "size": 7}


@pytest.mark.parametrize(
    "entries",
    [
        5,
        {"a": 1},
        [[]],
        [FILE, FILE],
        [FILE | {"size": HUGE}],
        [FILE | {"size": 2**63}],
        [FILE | {"path": "../../etc/passwd"}],
        [FILE | {"sha256": "x"}],
        [{**FILE, "path": f"{index}.bin"} for index in range(101)],
    ],
)
@pytest.mark.parametrize("publish", [{"s3": {"bucket": "models"}}, {"pvc": {"claimName": "models"}}])
def test_a_list_of_files_that_no_source_may_have_is_refused(entries: Any, publish: dict[str, Any]) -> None:
    sim = ModelSim(spec=spec_body(publish=publish))
    sim.settle()
    sim.finish(sim.running("optimise")[0], GOOD, publish=report("publish", entries=entries))
    sim.settle()
    assert sim.variant("int4").source is None and sim.variant("int4").reason == "NotPublished"
    assert_stored(sim)


@pytest.mark.parametrize(
    "said",
    ["[" * 4096, json.dumps({"reason": [[[]]]}), '{"reason": "Unfit", "message": "\\ud800\\u001b[2J"}'],
)
def test_last_words_can_be_printed(said: str) -> None:
    sim = ModelSim()
    sim.settle()
    sim.fail(sim.running("optimise")[0], "step-0", said)
    sim.settle()
    assert sim.variant("int4").step == "Failed"
    assert sim.variant("int4").message.isprintable()
    assert_stored(sim)


def test_a_pod_that_no_job_owns_reports_nothing() -> None:
    sim = ModelSim()
    sim.settle()
    name = sim.running("evaluate")[0]
    sim.finish(name)
    # A kubelet may make a pod of its own with the labels of a Job's, but not with its owner.
    sim.pods["mirror"] = replace(sim.pods[name], name="mirror", owner_uid="node", created_at=sim.now + 9)
    sim.progress("mirror", lambda containers: tuple(replace(c, message="{}") for c in containers))
    sim.settle()
    variant = sim.variant(sim.labels(name)["variant"])
    assert next(e for e in variant.evaluations if e.profile == sim.labels(name)["profile"]).measured_at


def test_the_engine_of_the_recipe_counts_and_classes_may_differ() -> None:
    def offered(recipe: dict[str, Any], engines: dict[str, str]) -> str:
        sim = ModelSim(
            spec=spec_body(recipes=[{"name": "fp16", "profiles": ["pi5", "nuc"]} | recipe], gates={})
        )
        sim.work_off(lambda name: replace(GOOD, engine=engines[sim.labels(name)["profile"]]))
        return to_offer("shop", "chat", sim.status).versions[0].variants[0].engine

    same = {"pi5": "llama.cpp", "nuc": "llama.cpp"}
    assert offered({}, same) == "llama.cpp"
    assert offered({}, same | {"nuc": "openvino"}) == "", "each class takes what suits its files"
    assert offered({"engine": "onnxruntime"}, same) == "onnxruntime"
    assert offered({}, same | {"nuc": "rm -rf"}) == ""
