# SPDX-License-Identifier: Apache-2.0
"""Overload, leaving clients, draining, failed starts: on real processes with a slow model."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from slmwire.manifest import ManifestFile, digest_of
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmserve.process import ServerProcess


def _client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def _long_stream(client: OpenAI, tokens: int = 20_000) -> Any:
    return client.completions.create(model="slow", prompt=[5, 6, 7], max_tokens=tokens, stream=True)


def _wait_until(condition: Callable[[], bool], timeout_seconds: float = 10) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def slow_server(slow_dir: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = ("--model", "slow", "--slots", "1", "--max-queue", "1", "--drain-seconds", "60")
    with ServerProcess(slow_dir, tmp_path, *flags) as server:
        server.wait_ready()
        yield server


def test_a_full_queue_answers_429(slow_server: ServerProcess) -> None:
    client = _client(slow_server)
    streams = [_long_stream(client) for _ in range(1)]
    next(iter(streams[0]))
    queued = threading.Thread(target=lambda: _swallow(client), daemon=True)
    queued.start()
    _wait_until(lambda: slow_server.metrics()["slmserve_queue_depth"] == 1)
    with pytest.raises(openai.RateLimitError) as caught:
        _long_stream(client)
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert slow_server.metrics()["slmserve_requests_total{code=429,endpoint=completions}"] == 1
    streams[0].close()
    queued.join(20)
    assert not queued.is_alive()


def _swallow(client: OpenAI) -> None:
    client.completions.create(model="slow", prompt=[9], max_tokens=4)


def test_a_client_that_leaves_a_stream_frees_the_slot(slow_server: ServerProcess) -> None:
    stream = _long_stream(_client(slow_server))
    next(iter(stream))
    assert slow_server.metrics()["slmserve_slots{state=busy}"] == 1
    stream.close()
    _wait_until(lambda: slow_server.metrics()["slmserve_slots{state=busy}"] == 0, 5)
    counted = slow_server.metrics()
    assert counted["slmserve_requests_total{code=499,endpoint=completions}"] == 1
    assert counted["slmserve_generated_tokens_total"] < 15_000


def test_a_client_that_leaves_while_it_waits_frees_the_slot(slow_server: ServerProcess) -> None:
    body = json.dumps({"model": "slow", "prompt": [5], "max_tokens": 20_000}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", slow_server.port)) as connection:
        connection.sendall(head + body)
        _wait_until(lambda: slow_server.metrics()["slmserve_slots{state=busy}"] == 1)
    _wait_until(lambda: slow_server.metrics()["slmserve_slots{state=busy}"] == 0, 5)
    assert slow_server.metrics()["slmserve_requests_total{code=499,endpoint=completions}"] == 1


def test_a_drain_finishes_what_is_in_flight(slow_server: ServerProcess) -> None:
    stream = _long_stream(_client(slow_server), 1500)
    chunks = iter(stream)
    next(chunks)
    slow_server.terminate()
    _wait_until(lambda: _status(slow_server, "/readyz") == 503)
    assert _status(slow_server, "/healthz") == 200
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    assert slow_server.wait_end() == 0
    assert slow_server.log_lines()[-1]["cancelled"] == 0


def test_a_drain_has_a_limit(slow_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(slow_dir, tmp_path, "--model", "slow", "--drain-seconds", "1") as server:
        server.wait_ready()
        stream = _long_stream(_client(server), 30_000)
        chunks = iter(stream)
        next(chunks)
        started = time.monotonic()
        server.terminate()
        with pytest.raises(openai.APIError, match="ended before"):
            list(chunks)
        assert server.wait_end() == 0
        assert time.monotonic() - started < 20


def test_probes_answer_while_the_model_loads(orders_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(orders_dir, model)
    (model / "slm-manifest.json").unlink()
    pipe = model / "genai_config.json"
    pipe.unlink()
    # Reading a named pipe blocks until somebody writes: the load stands still meanwhile.
    os.mkfifo(pipe)
    with ServerProcess(model, tmp_path, "--model", "m") as server:
        server.wait_listening()
        _wait_until(lambda: _status(server, "/healthz") == 200)
        assert httpx.get(f"{server.url}/readyz").json() == {"status": "loading"}
        assert _status(server, "/readyz") == 503
        refused = httpx.post(f"{server.url}/v1/completions", json={"model": "m", "prompt": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert _status(server, "/metrics") == 200
        pipe.write_bytes((orders_dir / "genai_config.json").read_bytes())
        server.wait_ready()


def test_without_a_host_it_listens_on_both_families(orders_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(orders_dir, tmp_path, "--host", "") as server:
        server.wait_listening()
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{server.port}/healthz", trust_env=False).status_code == 200


def test_a_load_does_not_hold_up_the_end(orders_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(orders_dir, model)
    (model / "slm-manifest.json").unlink()
    (model / "genai_config.json").unlink()
    os.mkfifo(model / "genai_config.json")
    with ServerProcess(model, tmp_path, "--drain-seconds", "2") as server:
        server.wait_listening()
        _wait_until(lambda: _status(server, "/healthz") == 200)
        server.terminate()
        assert server.wait_end(8) == 0


def _status(server: ServerProcess, path: str) -> int:
    try:
        return httpx.get(server.url + path, timeout=5).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.parametrize(
    ("damage", "reason", "part"),
    [
        ("nothing there", Reason.UNFIT, "genai_config.json"),
        ("no weights", Reason.UNFIT, "ONNX Runtime"),
        ("not onnx", Reason.UNFIT, "ONNX Runtime"),
        ("wrong digest", Reason.INTEGRITY_MISMATCH, "expected is"),
        ("changed file", Reason.INTEGRITY_MISMATCH, "model.onnx"),
    ],
)
def test_a_start_that_fails_says_why(
    orders_dir: Path, tmp_path: Path, damage: str, reason: Reason, part: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(orders_dir, model)
    flags: list[str] = []
    if damage == "nothing there":
        (model / "genai_config.json").unlink()
        (model / "slm-manifest.json").unlink()
    elif damage == "no weights":
        (model / "model.onnx.data").unlink()
        (model / "slm-manifest.json").unlink()
    elif damage == "not onnx":
        (model / "model.onnx").write_bytes(b"\x00\xff" * 100)
        (model / "slm-manifest.json").unlink()
    elif damage == "wrong digest":
        flags = ["--model-digest", "sha256:" + "0" * 64]
    else:
        rows = json.loads((model / "slm-manifest.json").read_text())["files"]
        flags = ["--model-digest", digest_of(ManifestFile(**row) for row in rows)]
        data = bytearray((model / "model.onnx").read_bytes())
        data[100] ^= 1
        (model / "model.onnx").write_bytes(data)
    with ServerProcess(model, tmp_path, *flags) as server:
        assert server.wait_end() == 1
        termination = parse_termination(server.termination_log.read_text())
    assert termination is not None
    assert termination.reason == reason
    assert part in termination.message


@pytest.mark.parametrize(
    "flags", [["--slots", "0"], ["--port", "99999"], ["--slots", "many"], ["--nonsense"]]
)
def test_bad_settings_end_at_once(orders_dir: Path, tmp_path: Path, flags: list[str]) -> None:
    with ServerProcess(orders_dir, tmp_path, *flags) as server:
        assert server.wait_end() == 2
