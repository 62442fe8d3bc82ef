# SPDX-License-Identifier: Apache-2.0
"""What every engine has to do behind the API, with the real openai client on a real server."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion

from slmserve.backend import Capability
from tests.unit.slmserve.conformance.engines import SLOTS, Served

_MESSAGES: Any = [{"role": "user", "content": "two espressos and a still water to table four"}]
_PROMPT = "two espressos and"
_SCHEMA: Any = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["mood", "stars", "tags"],
    "additionalProperties": False,
}
_FORM: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": _SCHEMA, "strict": True}}


def _chat(served: Served, **more: Any) -> ChatCompletion:
    ask: dict[str, Any] = {"model": "m", "messages": _MESSAGES, "max_tokens": 24} | more
    answer: ChatCompletion = served.client.chat.completions.create(**ask)
    return answer


def _stream(served: Served, **more: Any) -> list[Any]:
    ask: dict[str, Any] = {"model": "m", "messages": _MESSAGES, "max_tokens": 24, "stream": True} | more
    return list(served.client.chat.completions.create(**ask))


def _text(answer: ChatCompletion) -> str:
    text = answer.choices[0].message.content
    assert text is not None
    return text


def _needs(served: Served, capability: Capability, param: str, **more: Any) -> bool:
    """Whether the engine can; where it cannot, the request is refused by the field's name."""
    if capability not in served.lacks:
        return True
    with pytest.raises(openai.BadRequestError) as caught:
        _chat(served, **more)
    assert caught.value.param == param
    return False


def test_the_model_is_listed(served: Served) -> None:
    assert [model.id for model in served.client.models.list().data] == ["m"]
    assert served.client.models.retrieve("m").owned_by == "slmops"


def test_chat(served: Served) -> None:
    answer = _chat(served)
    assert answer.object == "chat.completion"
    assert answer.model == "m"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert _text(answer)
    assert _text(_chat(served, temperature=0)) == _text(_chat(served, temperature=0))


def test_usage(served: Served) -> None:
    short, long = _chat(served, max_tokens=2), _chat(served, max_tokens=4)
    for answer, most in ((short, 2), (long, 4)):
        usage = answer.usage
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens <= most
        assert usage.prompt_tokens > 5
        if answer.choices[0].finish_reason == "length":
            assert usage.completion_tokens == most
        assert usage.prompt_tokens_details is not None
        assert 0 <= (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens


def test_a_stream_gives_the_same_text(served: Served) -> None:
    whole = _chat(served, temperature=0)
    chunks = _stream(served, temperature=0, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == _text(whole)
    finishes = [c.choices[0].finish_reason for c in chunks[:-1]]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert set(finishes[:-1]) <= {None}
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions(served: Served) -> None:
    ask: Any = {"model": "m", "prompt": _PROMPT, "max_tokens": 12, "temperature": 0}
    whole = served.client.completions.create(**ask)
    assert whole.object == "text_completion"
    streamed = served.client.completions.create(**ask, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    several = served.client.completions.create(**ask | {"prompt": [_PROMPT, "one tea"]})
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == whole.choices[0].text


def test_a_stop_string_ends_and_does_not_show(served: Served) -> None:
    whole = _text(_chat(served, temperature=0))
    stop = whole[len(whole) // 2 :][:2]
    expected = whole[: whole.index(stop)]
    answer = _chat(served, temperature=0, stop=stop)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    chunks = _stream(served, temperature=0, stop=[stop, "never in there"])
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected


def test_a_seed_repeats_an_answer(served: Served) -> None:
    if not _needs(served, Capability.SEED, "seed", seed=1):
        return

    def ask(seed: int) -> str:
        return _text(_chat(served, temperature=2.0, top_p=0.99, seed=seed))

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize("top", [0, 5])
def test_logprobs(served: Served, top: int) -> None:
    if not _needs(served, Capability.LOGPROBS, "logprobs", logprobs=True):
        return
    answer = _chat(served, temperature=0, logprobs=True, top_logprobs=top)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    assert (
        b"".join(bytes(entry.bytes or []) for entry in entries).decode("utf-8", "replace").strip()
        == _text(answer).strip()
    )
    for entry in entries:
        assert entry.logprob <= 1e-6
        assert len(entry.top_logprobs) == top
        assert sum(math.exp(t.logprob) for t in entry.top_logprobs) <= 1 + 1e-4
        if top:
            # Greedy: the chosen token is the likeliest.
            assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-4)


def test_an_answer_follows_a_schema(served: Served) -> None:
    if not _needs(served, Capability.CONSTRAINT, "response_format", response_format=_FORM):
        return
    for number in range(3):
        more: Any = {} if number == 0 or Capability.SEED in served.lacks else {"seed": number}
        answer = _chat(
            served, response_format=_FORM, max_tokens=served.context // 2, temperature=float(number), **more
        )
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(_text(answer)), _SCHEMA)
    chunks = _stream(served, response_format=_FORM, max_tokens=served.context // 2)
    jsonschema.validate(json.loads("".join(c.choices[0].delta.content or "" for c in chunks)), _SCHEMA)


def test_a_context_that_is_too_small(served: Served) -> None:
    long: Any = [{"role": "user", "content": "one tea and " * served.context}]
    for more in ({"messages": long}, {"max_tokens": served.context}):
        with pytest.raises(openai.BadRequestError) as caught:
            _chat(served, **more)
        assert caught.value.code == "context_length_exceeded"
        assert str(served.context) in str(caught.value)


def test_a_client_that_leaves_frees_the_slot(served: Served) -> None:
    def leave() -> None:
        stream = served.client.completions.create(model="m", prompt=_PROMPT, max_tokens=90, stream=True)
        next(iter(stream))
        stream.close()

    with ThreadPoolExecutor(SLOTS) as pool:
        for leaving in [pool.submit(leave) for _ in range(SLOTS * 2)]:
            leaving.result(60)
    served.server.wait_until(lambda: served.server.metrics()["slmserve_slots{state=busy}"] == 0)
    assert served.server.metrics()["slmserve_queue_depth"] == 0
    assert _text(_chat(served))


def test_an_unknown_model(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        _chat(served, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_requests_at_once_do_not_mix(served: Served) -> None:
    texts = [f"{drink} to table {table}" for drink in ("one tea", "two colas") for table in ("one", "six")]
    asks: list[Any] = [[{"role": "user", "content": text}] for text in texts]

    def ask(messages: Any) -> str:
        return _text(_chat(served, messages=messages, temperature=0))

    alone = [ask(messages) for messages in asks]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, asks * 3))
    assert together == alone * 3


def test_a_shared_beginning_changes_no_answer(served: Served) -> None:
    shared = "two espressos and a still water to table four, " * 3
    tails = ("the second one decaf", "no ice", "one more latte")

    def ask(tail: str) -> tuple[str | None, int]:
        answer = served.client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": shared + tail}],
            max_tokens=16,
            temperature=0,
        )
        usage = answer.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return answer.choices[0].message.content, usage.prompt_tokens_details.cached_tokens or 0

    alone = [ask(tail)[0] for tail in tails]
    with ThreadPoolExecutor(len(tails)) as pool:
        again = list(pool.map(ask, tails))
    assert [text for text, _ in again] == alone
    if served.engine != "openvino":  # what its library can reuse is not sound
        assert max(cached for _, cached in again) > 20


def test_several_choices(served: Served) -> None:
    answer = _chat(served, n=3, temperature=1.5, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 3


def test_the_server_is_still_well(served: Served) -> None:
    assert httpx.get(f"{served.server.url}/readyz").status_code == 200
    metrics = served.server.metrics()
    assert metrics["slmserve_requests_total{code=500,endpoint=chat}"] == 0
    assert metrics["slmserve_requests_total{code=500,endpoint=completions}"] == 0
    assert metrics["slmserve_sandbox"] == 1
    assert not [line for line in served.server.log_lines() if line["level"] == "error"]
