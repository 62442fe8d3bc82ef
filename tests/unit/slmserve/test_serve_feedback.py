# SPDX-License-Identifier: Apache-2.0
"""Judgements of answers: counted once each, as numbers only."""

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from slmserve.feedback import GivenAnswers, Vote
from tests.unit.slmserve.process import ServerProcess

_MESSAGES: Any = [{"role": "user", "content": "one tea to table two"}]


def _send(server: ServerProcess, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/feedback", json=body)


def _grown(before: dict[str, float], after: dict[str, float], series: str) -> float:
    return after.get(series, 0.0) - before.get(series, 0.0)


def test_a_judgement_counts_once(orders_server: ServerProcess, client: OpenAI) -> None:
    before = orders_server.metrics()
    whole = client.chat.completions.create(model="orders", messages=_MESSAGES, max_tokens=3)
    [*_, last] = client.completions.create(model="orders", prompt="tea", max_tokens=3, stream=True)
    first = _send(orders_server, id=whole.id, rating="up", labels=["helpful", "zanzibar-9"])
    assert first.status_code == 200
    assert first.json() == {"id": whole.id, "object": "feedback", "score": 1.0}
    assert _send(orders_server, id=whole.id, score=1).status_code == 200
    other = _send(orders_server, id=whole.id, score=-0.5)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "already_judged")
    assert _send(orders_server, id=last.id, score=-0.5).status_code == 200
    after = orders_server.metrics()
    assert _grown(before, after, "slmserve_feedback_total{rating=up}") == 1
    assert _grown(before, after, "slmserve_feedback_total{rating=down}") == 1
    assert _grown(before, after, "slmserve_feedback_score_count") == 2
    assert _grown(before, after, "slmserve_feedback_score_sum") == pytest.approx(1.25)
    assert _grown(before, after, "slmserve_feedback_labels_total{label=helpful}") == 1
    assert _grown(before, after, "slmserve_feedback_labels_total{label=other}") == 1
    assert "zanzibar" not in httpx.get(f"{orders_server.url}/metrics").text
    assert "zanzibar" not in orders_server.log_file.read_text()


def test_an_answer_is_judged_by_those_who_got_it(orders_server: ServerProcess, client: OpenAI) -> None:
    """Whoever has one identifier cannot tell another's."""
    ids = [client.completions.create(model="orders", prompt="tea", max_tokens=1).id for _ in range(2)]
    number = ids[0].removeprefix("cmpl-")
    others = [f"cmpl-{(int(number, 16) + step) % 16 ** len(number):0{len(number)}x}" for step in (-1, 1)]
    assert ids[1] not in others
    assert {_send(orders_server, id=other, rating="down").status_code for other in others} == {404}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"id": "chatcmpl-1", "rating": "up"}, 404, "id"),
        ({"id": "x", "rating": "up", "score": 1}, 400, "score"),
        ({"id": "x"}, 400, "score"),
        ({"id": "x", "score": 1.5}, 400, "score"),
        ({"id": "x", "score": "nan"}, 400, "score"),
        ({"id": "x", "rating": "great"}, 400, "rating"),
        ({"rating": "up"}, 400, "id"),
        ({"id": "x", "rating": "up", "labels": ["a"] * 6}, 400, "labels"),
        ({"id": "x", "rating": "up", "labels": ["a" * 33]}, 400, "labels"),
        ({"id": "x", "rating": "up", "comment": "it was nice"}, 400, "comment"),
    ],
)
def test_refusals_name_the_field(
    orders_server: ServerProcess, body: dict[str, Any], status: int, param: str
) -> None:
    answer = _send(orders_server, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"].startswith(param)


def test_a_score_is_a_number(orders_server: ServerProcess) -> None:
    answer = httpx.post(f"{orders_server.url}/v1/feedback", content=b'{"id": "x", "score": NaN}')
    assert answer.status_code == 400


def test_the_cache_is_told(orders_server: ServerProcess) -> None:
    metrics = orders_server.metrics()
    assert metrics["slmserve_cache_bytes"] > 0
    assert metrics["slmserve_prompt_cached_tokens_total"] >= 0


@settings(max_examples=100, deadline=None)
@given(
    most=st.integers(1, 5),
    events=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([None, -1.0, 0.0, 1.0])), max_size=40),
)
def test_memory_is_bounded_and_the_first_judgement_stands(
    most: int, events: list[tuple[int, float | None]]
) -> None:
    answers, order, scores = GivenAnswers(most), [], {}
    for number, (which, score) in enumerate(events):
        if score is None:
            order.append(f"a{number}")
            answers.add(order[-1])
            continue
        known = order[-most:]
        identifier = known[which % len(known)] if known else "never"
        vote = answers.judge(identifier, score)
        if not known:
            assert vote is Vote.UNKNOWN
        elif identifier not in scores:
            assert vote is Vote.COUNTED
            scores[identifier] = score
        else:
            assert vote is (Vote.REPEATED if scores[identifier] == score else Vote.CONFLICTING)
        if len(order) > most:
            assert answers.judge(order[-most - 1], 1.0) is Vote.UNKNOWN
