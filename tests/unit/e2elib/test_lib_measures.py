# SPDX-License-Identifier: Apache-2.0
"""The shared helpers measure and read what they say: a wrong gap would hide an outage."""

import io
import json
from typing import Any

import pytest

from e2e.bench.rollout_steps import durations
from e2e.lib.chat import is_expected
from e2e.lib.observe import assignments
from e2e.lib.release import image_values
from e2e.lib.traffic import Sent, TrafficReport
from e2e.lib.watch import read_documents


def sent(at: float, *, status: int = 200, node: str = "a", error: str = "") -> Sent:
    return Sent(node=node, at=at, status=status, seconds=0.1, error=error, case=0, text="")


def test_a_gap_ends_only_with_a_good_answer_of_that_node() -> None:
    answers = (sent(1), sent(2), sent(4, status=503), sent(5, node="b"), sent(7), sent(8, error="cut off"))
    report = TrafficReport(sent=answers, begin=0.5, end=9.5)
    assert report.longest_gap_seconds("a") == 5
    assert report.longest_gap_seconds("b") == 4.5
    assert report.longest_gap_seconds("never asked") == 9
    assert (report.ok, len(report.failures)) == (4, 2)


def test_the_gap_before_the_first_and_after_the_last_answer_counts() -> None:
    report = TrafficReport(sent=(sent(10), sent(11)), begin=3, end=12)
    assert report.longest_gap_seconds("a") == 7


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_documents_of_a_watch_are_told_apart(indent: int | None) -> None:
    documents = [{"type": "ADDED", "object": {"text": "}\n{"}}, {"type": "DELETED", "object": {}}]
    stream = io.StringIO("".join(json.dumps(one, indent=indent) + "\n" for one in documents))
    assert list(read_documents(stream)) == documents


def test_steps_seen_together_take_no_time_and_none_is_negative() -> None:
    # The kubelet reported "scheduled" and "image" late, together with "fetched".
    times = {"pod created": 2.0, "scheduled": 6.0, "image": 6.0, "fetched": 5.0, "ready": 9.0}
    found = durations(times, begin=1.0)
    assert found == {"pod created": 1.0, "scheduled": 3.0, "image": 0.0, "fetched": 0.0, "ready": 4.0}
    assert sum(found.values()) == times["ready"] - 1.0


def test_labels_of_other_deployments_are_left_out() -> None:
    labels = {"x.ns.slmops.dev/abc": "int4", "xx.ns.slmops.dev/abc": "int4", "slmops.dev/edge": "true"}
    nodes: list[dict[str, Any]] = [
        {"metadata": {"name": "n", "labels": labels}},
        {"metadata": {"name": "m"}},
    ]
    assert assignments(nodes, prefix="x.ns.slmops.dev/") == {"n": {"abc": "int4"}}


def test_image_values_keep_the_registrys_port() -> None:
    values = {"registry": "host:5000", "repository": "team/image", "tag": "1"}
    assert image_values("host:5000/team/image:1") == values


@pytest.mark.parametrize(
    ("match", "text", "right"),
    [
        ("json", '{"b": 1, "a": 2}', True),
        ("json", '{"a":2}', False),
        ("json", "no JSON", False),
        ("exact", '{"a":2,"b":1}', True),
        ("exact", '{"b": 1, "a": 2}', False),
    ],
)
def test_expected_answers(match: str, text: str, right: bool) -> None:
    assert is_expected({"match": match, "expected": '{"a":2,"b":1}'}, text) is right
