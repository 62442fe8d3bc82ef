# SPDX-License-Identifier: Apache-2.0
"""The API as the openai client sees it, on a real server with the orders model."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.unit.slmserve.process import ServerProcess

ORDER = "two espressos and a still water to table four"


@pytest.fixture(scope="module")
def messages() -> Any:
    return [{"role": "user", "content": ORDER}]


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["orders"]
    assert client.models.retrieve("orders").owned_by == "slmops"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_chat_answers_with_a_command(client: OpenAI, messages: Any) -> None:
    answer = client.chat.completions.create(model="orders", messages=messages)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert isinstance(json.loads(choice.message.content or ""), dict)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 5
    assert answer.system_fingerprint == "abc123"


def test_a_stream_gives_the_same_text(client: OpenAI, messages: Any) -> None:
    whole = client.chat.completions.create(model="orders", messages=messages)
    stream = client.chat.completions.create(
        model="orders", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == "stop"
    assert set(finishes[:-1]) <= {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_content_parts_are_one_text(client: OpenAI, messages: Any) -> None:
    parts: Any = [
        {
            "role": "user",
            "content": [{"type": "text", "text": ORDER[:9]}, {"type": "text", "text": ORDER[9:]}],
        }
    ]
    first = client.chat.completions.create(model="orders", messages=messages)
    second = client.chat.completions.create(model="orders", messages=parts)
    assert first.choices[0].message.content == second.choices[0].message.content


def test_completions_take_text_and_tokens(client: OpenAI, orders_dir: Path) -> None:
    from slmserve.tokenizer import load_codec

    prompt = f"<|user|>{ORDER}<|end|><|assistant|>"
    tokens = load_codec(orders_dir).encode(prompt, add_special_tokens=False)
    by_text = client.completions.create(model="orders", prompt=prompt, max_tokens=100)
    by_tokens = client.completions.create(model="orders", prompt=tokens, max_tokens=100)
    by_list = client.completions.create(model="orders", prompt=[prompt], max_tokens=100)
    assert by_text.choices[0].text == by_tokens.choices[0].text == by_list.choices[0].text
    assert by_text.usage == by_tokens.usage
    streamed = client.completions.create(model="orders", prompt=tokens, max_tokens=100, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == by_text.choices[0].text


def test_limits_end_an_answer(client: OpenAI, messages: Any) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        limit: Any = {name: 3}
        answer = client.chat.completions.create(model="orders", messages=messages, **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stop", ['"items"', ["nothing of that", 'items":[']])
def test_stop_strings_end_and_do_not_show(client: OpenAI, messages: Any, stop: Any) -> None:
    whole = client.chat.completions.create(model="orders", messages=messages).choices[0].message.content
    assert whole is not None
    found = stop if isinstance(stop, str) else stop[1]
    expected = whole[: whole.index(found)]
    answer = client.chat.completions.create(model="orders", messages=messages, stop=stop)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model="orders", messages=messages, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == expected


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    strange: Any = [{"role": "user", "content": "quantum harpsichord? why, never! 8 8 8"}]

    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="orders", messages=strange, temperature=2.0, top_p=0.99, seed=seed, max_tokens=40
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f f"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "x"}},
                }
            },
            "response_format",
        ),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"mirostat": 2}, "mirostat"),
        ({"model": None}, "model"),
    ],
)
def test_refusals_name_the_field(
    orders_server: ServerProcess, messages: Any, change: dict[str, Any], param: str
) -> None:
    body = {"model": "orders", "messages": messages} | change
    answer = httpx.post(f"{orders_server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param)
    assert param.split(".", maxsplit=1)[0] in error["message"]


@pytest.mark.parametrize(
    "harmless",
    [
        {"n": 1, "user": "u1", "metadata": {"a": "b"}, "store": False},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"},
        {"stop": None, "temperature": None, "seed": None, "stream": None, "max_tokens": None},
    ],
)
def test_what_asks_for_nothing_is_accepted(
    orders_server: ServerProcess, messages: Any, harmless: dict[str, Any]
) -> None:
    body = {"model": "orders", "messages": messages, "max_completion_tokens": 2} | harmless
    assert httpx.post(f"{orders_server.url}/v1/chat/completions", json=body).status_code == 200


def test_an_unknown_model(client: OpenAI, messages: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=messages)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(("words", "limit"), [(3, 250), (400, None), (400, 5)])
def test_a_context_that_is_too_small(client: OpenAI, words: int, limit: int | None) -> None:
    long: Any = [{"role": "user", "content": "espresso " * words}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="orders", messages=long, max_tokens=limit)
    assert caught.value.code == "context_length_exceeded"
    assert "256 tokens" in str(caught.value)


def test_token_ids_out_of_range(client: OpenAI) -> None:
    for prompt in ([1, 768], [-1], [], [2**70]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="orders", prompt=prompt)
        assert str(caught.value.param).startswith("prompt")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("PUT", "/readyz", 405),
    ],
)
def test_wrong_paths_and_methods(orders_server: ServerProcess, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{orders_server.url}{path}")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large(orders_server: ServerProcess) -> None:
    body = b'{"model": "' + b"x" * (1 << 20) + b'"}'
    answer = httpx.post(f"{orders_server.url}/v1/completions", content=body)
    assert answer.status_code == 413
    chunked = httpx.post(f"{orders_server.url}/v1/completions", content=iter([body[: 1 << 19]] * 3))
    assert chunked.status_code == 413
    assert chunked.json()["error"]["code"] == "body_too_large"


def test_metrics_count_and_carry_the_identity(
    orders_server: ServerProcess, client: OpenAI, messages: Any
) -> None:
    before = orders_server.metrics()
    answer = client.chat.completions.create(model="orders", messages=messages)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="orders", messages=messages, n=9)
    after = orders_server.metrics()

    def grown(series: str) -> float:
        return after[series] - before.get(series, 0.0)

    assert answer.usage is not None
    assert grown("slmserve_requests_total{code=200,endpoint=chat}") == 1
    assert grown("slmserve_requests_total{code=400,endpoint=chat}") == 1
    assert grown("slmserve_request_duration_seconds_count{endpoint=chat}") == 1
    assert grown("slmserve_time_to_first_token_seconds_count") == 1
    assert grown("slmserve_inter_token_seconds_count") == answer.usage.completion_tokens - 1
    assert grown("slmserve_prompt_tokens_total") == answer.usage.prompt_tokens
    assert grown("slmserve_generated_tokens_total") == answer.usage.completion_tokens
    assert after["slmserve_slots{state=total}"] == 4
    assert after["slmserve_slots{state=busy}"] == after["slmserve_queue_depth"] == 0
    assert after["slmserve_model_load_seconds"] > 0
    assert after["process_resident_memory_bytes"] > 1e6
    text = httpx.get(f"{orders_server.url}/metrics").text
    identity = (
        'slm_deployment="orders",slm_model="orders",slm_namespace="shop",slm_node="edge-1",'
        'slm_revision="abc123",slm_variant="int4"'
    )
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(identity in line for line in samples)


def test_the_golden_set_was_run_and_is_no_traffic(orders_server: ServerProcess, orders_dir: Path) -> None:
    metrics = orders_server.metrics()
    cases = (orders_dir / "golden.jsonl").read_text().splitlines()
    assert metrics["slmserve_evaluation_samples"] == len(cases)
    assert metrics["slmserve_evaluation_score"] >= 0.97
    assert metrics["slmserve_evaluation_duration_seconds"] > 0
    evaluated = next(line for line in orders_server.log_lines() if line["message"] == "evaluated")
    ready = next(line for line in orders_server.log_lines() if line["message"] == "ready")
    assert evaluated["time"] <= ready["time"]


def test_no_prompt_or_answer_is_logged_or_exported(orders_server: ServerProcess, client: OpenAI) -> None:
    secret = "zanzibar-7781"
    for messages in ([{"role": "user", "content": secret}], [{"role": "user", "content": secret * 100}]):
        chat: Any = messages
        try:
            client.chat.completions.create(model="orders", messages=chat)
        except openai.BadRequestError as error:
            assert secret not in str(error)
    httpx.post(f"{orders_server.url}/v1/completions", json={"model": "orders", "prompt": {secret: 1}})
    httpx.post(f"{orders_server.url}/v1/completions", content=b'{"prompt": "' + secret.encode() + b'\xff"}')
    assert secret not in orders_server.log_file.read_text()
    assert secret not in httpx.get(f"{orders_server.url}/metrics").text
    assert "espresso" not in orders_server.log_file.read_text()
