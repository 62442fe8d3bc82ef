# SPDX-License-Identifier: Apache-2.0
"""What a pod says at /metrics, from the real server's metrics to noise."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.adapters.exposition import (
    BUCKETS_AT,
    MAX_BUCKETS,
    MAX_LINES,
    MAX_TEXT_LINES,
    Exposition,
    ExpositionError,
    parse_exposition,
)
from slmserve.config import Identity
from slmserve.metrics import Metrics

HIT = 'slmserve_requests_total{endpoint="chat",code="200"} 1\n'


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_reads_what_the_inference_server_writes(name: str, good: int, refused: int, broken: int) -> None:
    server = Metrics(
        Identity(namespace="shop", deployment=name, revision="r", variant="int4", model=name, node="n")
    )
    for code, count in ((200, good), (429, refused), (503, broken)):
        for _ in range(count):
            server.count_request("chat", code)
    for seconds in (0.2, 3.0, 1000.0):
        server.observe_request("chat", seconds)
        server.observe_first_token(seconds / 10, 7)
    server.observe_request("completions", 0.2)
    server.count_generated(99)
    server.record_evaluation(score=0.9, samples=40, seconds=3)
    server.count_feedback(1.0, ["slow"])
    server.count_feedback(0.0, [])
    seen = parse_exposition(server.render(queue_depth=0, busy=0).decode())
    assert list(seen.counters[:BUCKETS_AT]) == [
        *(good + broken, broken, 99, pytest.approx(1003.4)),
        *(1.5, 2, 0, 0),
    ]
    latency = dict(zip(seen.layout.latency, seen.counters[BUCKETS_AT:], strict=False))
    assert (latency[0.14], latency[0.27], latency[5.0], latency[math.inf]) == (0, 2, 3, 4)
    first = dict(zip(seen.layout.first_token, seen.counters[BUCKETS_AT + len(latency) :], strict=True))
    assert (first[0.02], first[0.37], first[math.inf]) == (1, 2, 3)
    assert (seen.score, seen.cases) == (0.9, 40)
    assert seen.process_started_at is not None and seen.process_started_at > 1e9


def test_forms_of_the_format() -> None:
    text = (
        "# HELP slmserve_requests_total x\n\n"
        'slmserve_requests_total { code = "200" , x="}\\" 7" , } 3 1700000000000\r\n'
        'slmserve_requests_total{code="5xx"} 1e0\n'
        'other_total{code="200"} nonsense here\n'
        "slmserve_generated_tokens_total\t8"
    )
    assert list(parse_exposition(text).counters[:4]) == [4, 1, 8, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no series of an inference server"),
        ("<html>hello</html>", "no series of an inference server"),
        ("process_start_time_seconds 1", "no series of an inference server"),
        ("slmserve_requests_total 1", "line 1 has no label code"),
        ("\nslmserve_requests_total{code=200} 1", "line 2 has malformed labels"),
        ('slmserve_requests_total{code="200" 1', "line 1 has malformed labels"),
        ('slmserve_requests_total{code="200"x="y"} 1', "line 1 has malformed labels"),
        ('slmserve_requests_total{code="200"}', "line 1 is no sample"),
        ('slmserve_requests_total{code="200"} 1 2 3', "line 1 is no sample"),
        ("slmserve_requests_total{" + "}" * 5000 + " ! x !", "line 1 is no sample"),
        ("slmserve_requests_total{" + "}" * 500_000 + " ! x !", "longer than 8192 letters"),
        ('slmserve_requests_total{code="200"} 1_0', "for a number"),
        ('slmserve_requests_total{code="200"} x', "for a number"),
        ('slmserve_requests_total{code="200"} NaN', "for a number"),
        ('slmserve_requests_total{code="200"} +Inf', "is no count"),
        ('slmserve_requests_total{code="200"} -1', "is no count"),
        ('slmserve_request_duration_seconds_bucket{le="1"} 1', "has no bucket"),
        ('slmserve_request_duration_seconds_bucket{le="x"} 1', "for a number"),
        (HIT * (MAX_LINES + 1), "more than 2000 series"),
        (
            "".join(
                f'slmserve_request_duration_seconds_bucket{{le="{i}"}} 1\n' for i in range(MAX_BUCKETS + 1)
            ),
            "more than 100 buckets",
        ),
    ],
)
def test_what_is_no_exposition_is_refused_by_line(text: str, words: str) -> None:
    with pytest.raises(ExpositionError, match=words):
        parse_exposition(text)


def test_lines_of_no_interest_are_bounded_as_well() -> None:
    assert parse_exposition(HIT + "\n" * (MAX_TEXT_LINES - 1)).counters[0] == 1
    with pytest.raises(ExpositionError, match="more than 20000 lines"):
        parse_exposition(HIT + "\n" * MAX_TEXT_LINES)


@settings(deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            ["slmserve_requests_total", "{", "}", 'code="', '"', "\\", ",", "=", " ", "\n", "1", "NaN", "200"]
        ),
        max_size=30,
    ).map("".join)
)
def test_noise_never_breaks_the_reader(text: str) -> None:
    try:
        seen = parse_exposition(text)
    except ExpositionError:
        return
    assert isinstance(seen, Exposition)
    assert all(value >= 0 and math.isfinite(value) for value in seen.counters)
