# SPDX-License-Identifier: Apache-2.0
"""Requests that are meant to exhaust the server: refused early, and nobody else waits for them."""

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from slmserve import protocol
from tests.unit.slmserve.process import ServerProcess

_MIB = 1 << 20


def _receive(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while data := connection.recv(65_536):
            answer += data
    except ConnectionResetError:
        pass  # the server hung up while we were still sending
    return answer


def _error(answer: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return body


def _connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def test_an_endless_header_is_cut_off(orders_server: ServerProcess) -> None:
    with _connect(orders_server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ")
        sent = 0
        try:
            while sent < 64 * _MIB:
                connection.sendall(b"a" * 65_536)
                sent += 65_536
        except OSError:
            pass
        assert sent < 16 * _MIB
    assert httpx.get(f"{orders_server.url}/healthz", timeout=5).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/healthz"])
@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"1\r\n{\r\n0\r\nA: ", b"a" * 65_536),
        (b"1\r\n{\r\n0\r\n", b"A: b\r\n" * 10_000),
        (b"1;", b"a" * 65_536),
    ],
    ids=["a trailer", "trailers", "an extension of a chunk"],
)
def test_what_surrounds_a_body_without_end_is_cut_off(
    orders_server: ServerProcess, path: str, begin: bytes, more: bytes
) -> None:
    """Forty megabytes of trailers took a gigabyte, also from a client without a key."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    sent = 0
    with _connect(orders_server) as connection, suppress(OSError):
        connection.sendall(head + begin)
        while sent < 32 * _MIB:
            connection.sendall(more)
            sent += len(more)
    assert sent < 16 * _MIB
    assert httpx.get(f"{orders_server.url}/healthz", timeout=5).status_code == 200


def test_trailers_are_passed_over(orders_server: ServerProcess) -> None:
    with _connect(orders_server) as connection:
        body = json.dumps({"model": "orders", "prompt": "a", "max_tokens": 2}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        whole = b"%x\r\n%b\r\n0\r\nA: b\r\nC: d\r\n\r\n" % (len(body), body)
        last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall((head + whole) * 2 + last)
        answer = _receive(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 3


def test_a_header_that_is_too_large_is_refused_in_the_form_of_the_api(orders_server: ServerProcess) -> None:
    with _connect(orders_server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 66_000)
        answer = _receive(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert "65536 bytes" in _error(answer)["message"]


def test_what_is_not_http_is_refused_in_the_form_of_the_api_and_not_logged(
    orders_server: ServerProcess,
) -> None:
    logged = len(orders_server.log_lines())
    with _connect(orders_server) as connection:
        connection.sendall(b"\x16\x03\x01\x00\xa5 hello\r\n\r\n")
        answer = _receive(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "HTTP/1.1" in _error(answer)["message"]
    assert len(orders_server.log_lines()) == logged


def test_a_prompt_far_beyond_the_context_costs_no_tokenisation(orders_server: ServerProcess) -> None:
    text = "<|" * 450_000
    body = {"model": "orders", "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{orders_server.url}/v1/chat/completions", json=body, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "at least" in error["message"]
    status = Path(f"/proc/{orders_server.process.pid}/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib < 250 * 1024  # 900,000 tokens with their offsets took 300 MB


def test_pipelined_requests_are_all_answered(orders_server: ServerProcess) -> None:
    body = json.dumps({"model": "orders", "prompt": "a", "max_tokens": 2, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with _connect(orders_server) as connection:
        connection.sendall((head + body) * 3 + last)
        answer = _receive(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.count(b"data: [DONE]") == 3


def test_a_flood_of_pipelined_requests_ends_the_connection(orders_server: ServerProcess) -> None:
    """Each waits in memory, as many as ten thousand for one that is answered."""
    logged = [line for line in orders_server.log_lines() if line["level"] == "error"]
    with _connect(orders_server) as connection:
        with suppress(OSError):  # it may be cut off before it has all of them
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n" * 5_000)
        answer = _receive(connection)
    assert answer.count(b"HTTP/1.1 200 OK") <= protocol.MAX_PIPELINED
    if b"HTTP/1.1 400" in answer:  # not when it would be read as a part of an answer
        assert "more connections" in _error(answer.partition(b"HTTP/1.1 400")[2])["message"]
    assert httpx.get(f"{orders_server.url}/healthz", timeout=5).status_code == 200
    assert [line for line in orders_server.log_lines() if line["level"] == "error"] == logged


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request was complete")


def test_headers_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)

    async def run(sent: bytes) -> bytes:
        config = uvicorn.Config(_nothing, log_config=None)
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol.BoundedProtocol(config=config, server_state=state, app_state={}),
            "127.0.0.1",
            0,
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.close()
        return answer

    for sent in (b"", b"GET /healthz HTTP/1.1\r\nHost:"):
        answer = asyncio.run(run(sent))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert _error(answer)["message"]


def test_what_follows_a_request_and_is_none_ends_the_connection_and_is_no_failure(
    orders_server: ServerProcess,
) -> None:
    """The answer that was under way met a closed connection, which was logged as a failure of ours."""
    logged = [line for line in orders_server.log_lines() if line["level"] == "error"]
    body = json.dumps({"model": "orders", "prompt": "a", "max_tokens": 60, "stream": True}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with _connect(orders_server) as connection:
        connection.sendall(request + b"\x16\x03\x01 hello\r\n\r\n")
        answer = _receive(connection)
    assert answer.startswith(b"HTTP/1.1 400 ") and _error(answer)["message"]
    with _connect(orders_server) as connection:
        connection.sendall(request)
        begun = connection.recv(10)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = begun + _receive(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    # Where the answer had ended before, the rest is refused as a request of its own, and never amid a stream.
    streamed, refused, _ = answer.partition(b"HTTP/1.1 400")
    assert not refused or streamed.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    with _connect(orders_server) as connection:
        connection.sendall(request)
        connection.recv(10)
        connection.shutdown(socket.SHUT_WR)
        _receive(connection)
    assert httpx.get(f"{orders_server.url}/healthz", timeout=5).status_code == 200
    assert [line for line in orders_server.log_lines() if line["level"] == "error"] == logged
