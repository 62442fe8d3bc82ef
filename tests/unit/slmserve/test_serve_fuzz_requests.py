# SPDX-License-Identifier: Apache-2.0
"""Requests of every route damaged in body, head and framing, and clients that leave in the middle: each gets
a valid answer or an error in the form of the API, soon, and the server goes on."""

import json
import re
import socket
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.fuzz.budget import examples
from tests.unit.fuzz.grammar import damaged
from tests.unit.slmserve.process import ServerProcess

_SAID = [{"role": "user", "content": "two teas"}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_TOOL = {"type": "function", "function": {"name": "order", "parameters": _SCHEMA}}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "orders", "messages": _SAID, "max_tokens": 3},
        {"model": "orders", "messages": _SAID, "max_tokens": 3, "stream": True, "n": 2,
         "stream_options": {"include_usage": True}, "stop": ["x", "y"], "seed": 7, "temperature": 0.5},
        {"model": "orders", "messages": _SAID, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
        {"model": "orders", "max_tokens": 3, "tools": [_TOOL], "tool_choice": "auto", "messages": [
            *_SAID, {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "order", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "1"}]},
        {"model": "orders", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
         "max_tokens": 3, "response_format": {"type": "json_schema", "json_schema": {
             "name": "s", "schema": _SCHEMA}}},
    ],
    "/v1/completions": [
        {"model": "orders", "prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "stop": "z"},
        {"model": "orders", "prompt": [1, 2, 3], "max_tokens": 2, "stream": True},
    ],
    "/v1/embeddings": [{"model": "orders", "input": ["a"], "encoding_format": "float"}],
    "/v1/feedback": [{"id": "chatcmpl-1", "score": 0.5, "labels": ["late"]}, {"id": "x", "rating": "up"}],
}  # fmt: skip
PATHS = [*BODIES, "/v1/models", "/v1/models/orders", "/healthz", "/readyz", "/metrics"]
REFUSALS = {400, 401, 404, 405, 408, 409, 411, 413, 415, 422, 431}


@pytest.fixture(scope="module")
def http(orders_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=orders_server.url, timeout=20) as client:
        yield client


def check_refusal(status: int, body: bytes) -> None:
    assert status in REFUSALS, (status, body)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    path = draw(st.sampled_from(sorted(BODIES)))
    return path, draw(damaged(BODIES[path]))


@examples(120)
@given(request=_requests())
def test_a_damaged_body_is_answered_or_refused(http: httpx.Client, request: tuple[str, Any]) -> None:
    path, body = request
    answer = http.post(path, content=json.dumps(body).encode())
    if answer.status_code != 200:
        return check_refusal(answer.status_code, answer.content)
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert all(json.loads(event)["object"] for event in events[:-1])
    else:
        assert answer.json()["object"]


_methods = st.sampled_from(
    ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get"]
)
_odd_headers = st.sampled_from(
    [
        b"Content-Type: text/plain", b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: ",
        b"Content-Type: application/json; charset=utf-16", b"Content-Encoding: gzip", b"Content-Length: 5",
        b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 0x5",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
        b"Expect: 100-continue", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\nConnection: Upgrade",
        b"Connection: close", b"Connection: keep-alive", b"Authorization: Bearer \xff", b"Authorization: ",
        b"api-key: \xe9", b"Host: ", b"Host: a, b", b"Accept: */*;q=x", b"Cookie: " + b"a=b;" * 2000,
        b"Forwarded: for=x", b"X-Forwarded-For: ::1", b" folded: x", b"no-colon", b": empty", b"N\x00L: x",
        b"A: \x00", b"A: b\rC: d", b"\xff: x", b"traceparent: 00-" + b"f" * 90, b"Range: bytes=0-",
    ]
)  # fmt: skip
_targets = st.one_of(
    st.sampled_from([path.encode() for path in PATHS]),
    st.sampled_from(
        [
            b"*", b"/", b"//", b"/..", b"/v1/../metrics", b"/v1/models/..%2f..%2fetc", b"/v1/models/%00",
            b"/%",
            b"/v1/models/" + b"a" * 5000, b"/v1/chat/completions/", b"/v1/chat/completions?stream=true",
            b"http://other/healthz", b"other:80", b"/\xff", b"/v1/models/\xc3\xa9",
            b"/v1/models/%F0%9F%98%80",
            b"/v1//completions", b"/V1/MODELS", b"/healthz#x", b"/healthz;x",
        ]
    ),
)  # fmt: skip
_versions = st.sampled_from(
    [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 x", b"", b"x"]
)
_contents = st.one_of(
    st.sampled_from([json.dumps(body).encode() for bodies in BODIES.values() for body in bodies]),
    st.binary(max_size=60),
    st.sampled_from(
        [b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\nx", b"-1\r\n\r\n", b"0\r\n\r\n",
         b"5;a=" + b"b" * 9000,
         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    ),
)  # fmt: skip


def _exchange(server: ServerProcess, sent: bytes, *, cut: int | None = None) -> bytes:
    """All that comes back after we have said all that we say."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(sent[:cut])
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65_536):
                answer += data
        except (ConnectionResetError, BrokenPipeError, OSError) as error:
            assert not isinstance(error, TimeoutError), f"it hangs: {sent[:300]!r}"
        return answer


def _check_answers(answer: bytes) -> None:
    """Each answer that came is whole enough to be told: a good one or a refusal of ours."""
    for head in re.finditer(rb"HTTP/1\.[01] (\d{3}) [^\r]*\r\n((?:[^\r\n]+\r\n)*)\r\n", answer):
        status = int(head[1])
        assert status < 500, head[0]
        length = re.search(rb"content-length: (\d+)", head[2])
        if status >= 400 and length is not None and int(length[1]):
            body = answer[head.end() : head.end() + int(length[1])]
            if body:  # none after HEAD
                check_refusal(status, body)


@examples(150)
@given(
    method=_methods,
    target=_targets,
    version=_versions,
    headers=st.lists(_odd_headers, max_size=4),
    content=_contents,
    framing=st.sampled_from(["right", "right", "none", "short", "long", "chunked"]),
    cut=st.one_of(st.none(), st.none(), st.integers(0, 300)),
)
@example(method="GET", target=b"/healthz", version=b"HTTP/1.1", framing="none", content=b"", cut=None,
         headers=[b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                  b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="])  # fmt: skip
def test_damaged_heads_and_frames_are_answered_or_refused(
    orders_server: ServerProcess,
    method: str,
    target: bytes,
    version: bytes,
    headers: list[bytes],
    content: bytes,
    framing: str,
    cut: int | None,
) -> None:
    lines = [method.encode() + b" " + target + b" " + version, b"Host: x", *headers]
    if framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    elif framing != "none":
        off = {"right": 0, "short": -3, "long": 3}[framing]
        lines.append(b"Content-Length: %d" % max(0, len(content) + off))
    _check_answers(_exchange(orders_server, b"\r\n".join(lines) + b"\r\n\r\n" + content, cut=cut))


@examples(60)
@given(sent=st.one_of(st.binary(max_size=300), st.text(max_size=60).map(str.encode)))
def test_any_bytes_are_refused_or_left(orders_server: ServerProcess, sent: bytes) -> None:
    _check_answers(_exchange(orders_server, sent))


@examples(25)
@given(
    body=st.sampled_from([*BODIES["/v1/chat/completions"], *BODIES["/v1/completions"]]),
    read=st.integers(0, 400),
    way=st.sampled_from(["reset", "close", "half", "pipelined"]),
)
def test_clients_that_leave_in_a_stream_hold_nothing_up(
    http: httpx.Client, orders_server: ServerProcess, body: dict[str, Any], read: int, way: str
) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    content = json.dumps(body | {"stream": True, "max_tokens": 60}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", orders_server.port), timeout=20) as connection:
        connection.sendall((head + content) * (3 if way == "pipelined" else 1))
        if read:
            connection.recv(read)
        if way == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif way == "half":
            connection.shutdown(socket.SHUT_WR)
    good = http.post("/v1/completions", json=BODIES["/v1/completions"][0])
    assert good.status_code == 200 and len(good.json()["choices"]) == 2


def test_the_server_is_as_well_as_before(http: httpx.Client, orders_server: ServerProcess) -> None:
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
    orders_server.wait_until(lambda: orders_server.metrics()["slmserve_slots{state=busy}"] == 0)
    counted = orders_server.metrics()
    assert not [name for name, value in counted.items() if "code=5" in name and value]
    failures = [line for line in orders_server.log_lines() if line["level"] == "error"]
    assert failures == []
