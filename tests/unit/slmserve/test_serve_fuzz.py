# SPDX-License-Identifier: Apache-2.0
"""No body, however wrong, gets a 500 or an answer that is not in OpenAI form."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.slmserve.process import ServerProcess

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/feedback")
_FIELDS = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "n",
    "logprobs",
    "user",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "top_logprobs",
    "max_completion_tokens",
    "frequency_penalty",
    "logit_bias",
    "response_format",
    "echo",
    "suffix",
    "best_of",
    "input",
    "dimensions",
    "encoding_format",
    "id",
    "score",
    "labels",
    "extra",
]
_scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(max_size=12),
    st.sampled_from(["orders", "user", "content", "", "\x00", "<|end|>", "{{ 1 }}"]),
)
_value = st.recursive(
    _scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "function", "x"]), inner
        ),
    ),
    max_leaves=8,
)
_fields = st.dictionaries(st.sampled_from(_FIELDS), _value, max_size=6)
_slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def http(orders_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=orders_server.url, timeout=30) as client:
        yield client


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        text = answer.text
        assert text.endswith("data: [DONE]\n\n") or json.loads(text)["choices"]
        return
    assert answer.status_code in {400, 404, 413}, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


@settings(max_examples=300, deadline=None, suppress_health_check=_slow)
@given(path=st.sampled_from(_PATHS), fields=_fields, base=st.booleans())
def test_any_json(http: httpx.Client, path: str, fields: dict[str, Any], base: bool) -> None:
    body: dict[str, Any] = {}
    if base:
        body = {"model": "orders", "max_tokens": 3}
        body |= {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    _check(http.post(path, content=json.dumps(body | fields).encode("utf-8", "surrogatepass")))


@settings(max_examples=150, deadline=None, suppress_health_check=_slow)
@given(path=st.sampled_from(_PATHS), content=st.binary(max_size=200))
@example(path=_PATHS[0], content=b"[" * 100_000)
@example(path=_PATHS[0], content=b'{"messages":' + b'{"a":' * 50_000)
@example(path=_PATHS[1], content=b'{"model":"orders","prompt":"\\ud800"}')
@example(path=_PATHS[1], content=b'{"model":"orders","prompt":"\xed\xa0\x80"}')
@example(path=_PATHS[1], content=b'{"model":"orders","model":"orders","prompt":"a"}')
@example(path=_PATHS[1], content=b'{"model":"orders","prompt":"a","temperature":NaN}')
@example(path=_PATHS[1], content=b'{"model":"orders","prompt":"a","temperature":1e999}')
@example(path=_PATHS[1], content=b'{"model":"orders","prompt":"a","seed":1' + b"0" * 5000 + b"}")
def test_any_bytes(http: httpx.Client, path: str, content: bytes) -> None:
    _check(http.post(path, content=content))


@settings(max_examples=100, deadline=None, suppress_health_check=_slow)
@given(
    text=st.text(max_size=200),
    stop=st.one_of(st.none(), st.text(min_size=1, max_size=3)),
    stream=st.booleans(),
)
def test_any_text_is_answered(http: httpx.Client, text: str, stop: str | None, stream: bool) -> None:
    body = {"model": "orders", "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    answer = http.post(_PATHS[0], json=body | {"stop": stop, "stream": stream})
    _check(answer)
    assert answer.status_code == 200 or "context_length_exceeded" in answer.text


def test_the_server_is_still_well(http: httpx.Client, orders_server: ServerProcess) -> None:
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
    counted = orders_server.metrics()
    assert counted["slmserve_requests_total{code=500,endpoint=chat}"] == 0
    assert counted["slmserve_requests_total{code=500,endpoint=completions}"] == 0
    assert counted["slmserve_slots{state=busy}"] == 0
    assert not [line for line in orders_server.log_lines() if line["level"] == "error"]
