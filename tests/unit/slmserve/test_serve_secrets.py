# SPDX-License-Identifier: Apache-2.0
"""Words planted in everything that users send are in nothing that the server writes, or answers to others.

But for the folder of examples, where the server keeps some: what users corrected, and nothing else, is there.

And it tries to reach nobody meanwhile: telemetry, update checks and name look-ups of the engines' libraries
are off. The server runs under the watch of `netwatch`, without its sandbox, which would deny before that.
"""

import base64
import json
import re
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from slmwire.examples import ExampleSettings
from tests.unit.netwatch.watch import Attempt, read_report
from tests.unit.slmserve.conformance.engines import ENGINES_UNDER_TEST, EngineUnderTest
from tests.unit.slmserve.encoder_model import build_encoder
from tests.unit.slmserve.loud import Failure
from tests.unit.slmserve.process import ROOT, ServerProcess

_LOUD = "tests.unit.slmserve.loud"
_FRAGMENT = 12
"""Letters of a planted word that tell it: names of threads, among others, are cut off."""
_GOOD_KEY = "sk-" + secrets.token_hex(12)
_ENCODER = EngineUnderTest(engine="encoder", build=build_encoder)
_KEEPS = ExampleSettings(retention_seconds=3600, max_examples=1000, redact=("Email",), patterns=(r"own-\w+",))
"""A planted word may have the digits of a phone number."""


@dataclass(slots=True)
class _Planter:
    """Makes words and remembers them with the place that each was planted in."""

    words: dict[str, str] = field(default_factory=dict)

    def word(self, place: str) -> str:
        """A word that is nowhere else."""
        word = f"zq{secrets.token_hex(8)}"
        self.words[word] = place
        return word

    def found_in(self, text: str, model_dir: Path) -> dict[str, str]:
        """Places whose words a text has: as they are or in part, as hex, as base64, as token ids."""
        codec = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        plain = text.lower()
        numbers = f" {' '.join(re.findall(r'[0-9]+', text))} "
        fragments = set(re.findall(rf"(?=([0-9a-fzq]{{{_FRAGMENT}}}))", plain))
        found = {}
        for word, place in self.words.items():
            parts = {word[at : at + _FRAGMENT] for at in range(len(word) - _FRAGMENT + 1)}
            ids = " ".join(str(token) for token in codec.encode(word, add_special_tokens=False).ids[1:-1])
            # A third of the texts around it shift base64 so that these characters are seen.
            forms = [word, word.encode().hex()] + [
                base64.b64encode(b"\0" * shift + word.encode())[4:-4].decode().lower() for shift in range(3)
            ]
            if parts & fragments or f" {ids} " in numbers or any(form in plain for form in forms):
                found[word] = place
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    server: ServerProcess
    model_dir: Path
    folder: Path
    planter: _Planter
    examples: Path
    """Outside of `folder`."""
    corrected: set[str] = field(default_factory=set)
    """Words that were sent with corrections, or in the prompts of answers that were corrected."""
    redacted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Over:
    """What a server has left behind that had all of it sent and ended."""

    running: _Running
    emitted: dict[str, str]
    """Its metrics, and what the system shows of its process."""
    attempts: list[Attempt]
    code: int


@pytest.fixture(
    scope="module",
    params=[(entry, False) for entry in (*ENGINES_UNDER_TEST, _ENCODER)] + [(ENGINES_UNDER_TEST[0], True)],
    ids=lambda given: f"{given[0].engine}{'-keeps-examples' * given[1]}",
)
def over(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Over:
    entry: EngineUnderTest
    entry, keeps = request.param
    folder, apart = tmp_path_factory.mktemp("secrets"), tmp_path_factory.mktemp("apart")
    (apart / "model").mkdir()
    (apart / "examples").mkdir()
    model_dir = entry.build(apart / "model")
    (apart / "keys").write_text(f"{_GOOD_KEY}\n")
    environ = {
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}",
        "TMPDIR": str(folder),
        "HOME": str(folder),
        "SLM_API_KEYS_FILE": str(apart / "keys"),
        "SLM_SANDBOX": "off",
    }
    if keeps:
        environ |= {"SLM_EXAMPLES_DIR": str(apart / "examples"), "SLM_EXAMPLES": _KEEPS.to_json()}
    under = (sys.executable, "-m", "tests.unit.netwatch.watch", str(apart / "report"), "-m", _LOUD)
    flags = ("--model", "m", "--engine", entry.engine, "--slots", "2")
    with ServerProcess(model_dir, folder, *flags, environ=environ, under=under) as server:
        server.wait_ready(120)
        running = _Running(
            server=server,
            model_dir=model_dir,
            folder=folder,
            planter=_Planter(),
            examples=apart / "examples",
        )
        running.planter.words[_GOOD_KEY] = "a good key"
        _send_all(running)
        emitted = {"/metrics": httpx.get(f"{server.url}/metrics").text}
        process = _child_of(server.process.pid)
        for name in ("cmdline", "environ", "comm"):
            emitted[f"/proc/PID/{name}"] = _read(process / name)
        for path in process.glob("task/*/comm"):
            emitted[str(path)] = _read(path)
        server.terminate()
        code = server.wait_end()
    attempts = read_report(apart / "report")
    return _Over(running=running, emitted=emitted, attempts=attempts, code=code)


def _child_of(process: int) -> Path:
    """What the watch started."""
    [found] = [
        path.parent
        for path in Path("/proc").glob("[0-9]*/stat")
        if _read(path).rpartition(")")[2].split()[1:2] == [str(process)]
    ]
    return found


def _bodies(planter: _Planter) -> list[tuple[str, dict[str, Any] | bytes]]:
    """Requests with something planted in each part, some good and most bad."""
    word = planter.word

    def chat(place: str, **more: Any) -> tuple[str, dict[str, Any]]:
        messages = [
            {"role": "system", "content": f"you are {word(f'system prompt, {place}')}"},
            {"role": "user", "content": f"two teas {word(f'prompt, {place}')}"},
        ]
        return "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 8} | more

    def tool(place: str) -> dict[str, Any]:
        properties = {word(f"parameter, {place}"): {"type": "string", "description": word(f"text, {place}")}}
        return {
            "type": "function",
            "function": {
                "name": word(f"tool, {place}"),
                "description": word(f"description, {place}"),
                "parameters": {"type": "object", "properties": properties},
            },
        }

    def form(schema: dict[str, Any]) -> dict[str, Any]:
        wrapped = {"name": word("name of a schema"), "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": wrapped}}

    good = {"type": "object", "properties": {word("schema"): {"enum": [word("enum"), "b"]}}}
    risky = {"type": "object", "properties": {"a": {"type": "string", "pattern": word("pattern") + "{1,2}"}}}
    wrong = {
        "type": word("type of a schema"),
        "pattern": f"({word('broken pattern')}",
        "$ref": word("reference"),
    }
    call = {"id": word("call"), "type": "function", "function": {"name": "f", "arguments": word("arguments")}}
    long = word("long prompt")
    completion = "/v1/completions"
    plain = chat("raw")[1]["messages"]
    return [
        chat("plain", user=word("user"), stop=[word("stop")]),
        chat("streamed", stream=True),
        chat("tools", tools=[tool("offered")]),
        chat("forced", tools=[tool("forced")], tool_choice="required"),
        chat("twice", tools=[tool("twice")] * 2),
        chat("good schema", **form(good)),
        chat("risky schema", **form(risky)),
        chat("wrong schema", **form(wrong)),
        chat("unknown parameter", **{word("parameter"): word("value of a parameter")}),
        chat("wrong type", temperature=word("temperature")),
        chat("bad logit", logit_bias={word("bias"): 1}),
        chat("adapter", model=f"m:{word('adapter')}"),
        chat("model", model=word("model")),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": word("role"), "content": "x"}]}),
        ("/v1/chat/completions", json.dumps(plain).encode()[:-9]),
        ("/v1/chat/completions", b'{"model": "m", "messages": [' + word("no json").encode()),
        chat("long", messages=[{"role": "user", "content": f"{long} " * 4000}]),
        ("/v1/chat/completions", b" " * (2 << 20) + word("too large").encode()),
        (completion, {"model": "m", "prompt": [word("prompt 1"), word("prompt 2")], "max_tokens": 4}),
        (completion, {"model": "m", "prompt": f"{long} " * 4000, "suffix": word("suffix")}),
        ("/v1/embeddings", {"model": "m", "input": [word("text to embed"), f"{long} " * 4000]}),
        ("/v1/embeddings", {"model": "m", "input": word("one text to embed")}),
        ("/v1/feedback", {"id": word("feedback"), "rating": "up", "labels": [word("label")]}),
        ("/v1/feedback", {"id": "x", "rating": word("rating"), "comment": word("comment")}),
        (f"/v1/{word('path')}?key={word('query')}", {"model": word("body of no path")}),
        *(chat(f"fails: {f}", user=f) for f in Failure),
        *(chat(f"fails in a stream: {f}", user=f, stream=True) for f in Failure),
    ]  # fmt: skip


def _send_all(running: _Running) -> None:
    """All of it, each with planted headers, and what is no request at all."""
    planter, url = running.planter, running.server.url
    authorised = {"Authorization": f"Bearer {_GOOD_KEY}"}
    with httpx.Client(base_url=url, timeout=60) as client:
        for count, (path, body) in enumerate(_bodies(planter)):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = authorised | {
                "User-Agent": planter.word("user agent"),
                "X-Request-Id": planter.word("request id"),
                "Cookie": f"a={planter.word('cookie')}",
                "Content-Type": "application/json",
            }
            answer = client.post(path, content=content, headers=headers)
            if '"chatcmpl-' in answer.text and '"stream"' not in content.decode():
                judged = {
                    "id": answer.json()["id"],
                    "rating": "down",
                    "labels": [planter.word("counted label")],
                }
                told = client.post("/v1/feedback", json=judged, headers=authorised)
                assert told.status_code == 200, told.text
                _correct(running, client, authorised)
            if count % 4 == 0:
                _ask_as_another(running, client)
        for headers in (
            {"Authorization": f"Bearer {planter.word('wrong key')}"},
            {"api-key": planter.word("another wrong key")},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 401
        client.get(f"/v1/models/{planter.word('model in a path')}", headers=authorised)
        client.request(planter.word("method").upper(), "/v1/models", headers=authorised)
        if client.get("/metrics").text.count('engine="encoder'):
            return
        stream = {"model": "m", "prompt": planter.word("cancelled stream"), "max_tokens": 90, "stream": True}
        with client.stream("POST", "/v1/completions", json=stream, headers=authorised) as answer:
            next(answer.iter_bytes())
    for garbage in (b"\x16\x03\x01 ", b"GET /healthz HTTP/1.1\r\nHost: x\r\nA b c ", b"POST / HTTP/9.9\r\n"):
        with socket.create_connection(("127.0.0.1", running.server.port), timeout=20) as connection:
            connection.sendall(garbage + planter.word("no HTTP").encode() + b"\r\n\r\n")
            connection.recv(4096)


def _correct(running: _Running, client: httpx.Client, headers: dict[str, str]) -> None:
    """Ask, and say what the answer should have been."""
    planter = running.planter
    asked, wanted = planter.word("corrected prompt"), planter.word("correction")
    mail, own = planter.word("address in a correction"), planter.word("hidden by a pattern")
    messages = [{"role": "user", "content": f"tea {asked} own-{own}"}]
    body = {"model": "m", "messages": messages, "max_tokens": 4}
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    judged = {"id": answer.json()["id"], "correction": f"{wanted}, {mail}@example.de own-{own}"}
    for more in ({}, {}, {"correction": planter.word("conflicting correction")}):
        told = client.post("/v1/feedback", json=judged | more, headers=headers)
        assert told.status_code == (409 if more else 200)
        assert running.planter.found_in(told.text, running.model_dir) == {}
    running.corrected.update((asked, wanted))
    running.redacted.update((mail, own))


def _ask_as_another(running: _Running, client: httpx.Client) -> None:
    """Answers and errors that other clients get have nothing of anybody else's."""
    authorised = {"Authorization": f"Bearer {_GOOD_KEY}"}
    tail = {"model": "m", "messages": [{"role": "user", "content": "one tea"}], "max_tokens": 4}
    wrong = tail | {"temperature": "hot"}
    for answer in (
        client.get("/healthz"),
        client.get("/v1/models", headers=authorised),
        client.post("/v1/chat/completions", json=tail, headers=authorised),
        client.post("/v1/chat/completions", json=wrong, headers=authorised),
        client.post("/v1/chat/completions", json=tail | {"model": "other"}, headers=authorised),
        client.post("/v1/feedback", json={"id": "nobody's", "score": 0}, headers=authorised),
    ):
        told = f"{answer.text}\n{answer.headers}"
        assert running.planter.found_in(told, running.model_dir) == {}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\0", " ")
    except OSError:  # gone, or of a process that lets nobody look
        return ""


def test_nothing_that_is_planted_comes_up(over: _Over) -> None:
    running, planter = over.running, over.running.planter
    assert over.code == 0
    log = _read(running.server.log_file)
    files = {str(path): _read(path) for path in running.folder.rglob("*") if path.is_file()}
    assert str(running.server.log_file) in files
    assert "slmserve_sandbox" in over.emitted["/metrics"]
    assert over.emitted["/proc/PID/cmdline"].count("slmserve")
    for source, text in (over.emitted | files).items():
        assert planter.found_in(text, running.model_dir) == {}, source
    # What fails inside is logged all the same, by its place.
    if "encoder" not in over.emitted["/metrics"]:
        for trace in ("RuntimeError at loud.py", "the event loop met a failure", "a thread failed"):
            assert trace in log, trace
        assert 'slmserve_feedback_labels_total{label="other"' in over.emitted["/metrics"]
    assert len(planter.words) > 150


def test_examples_have_what_was_corrected_and_nothing_else(over: _Over) -> None:
    running = over.running
    text = "".join(_read(path) for path in running.examples.iterdir())
    if "slmserve_examples{" not in over.emitted["/metrics"]:
        assert not list(running.examples.iterdir())
        return
    assert set(running.planter.found_in(text, running.model_dir)) == running.corrected
    assert len(running.corrected) > 10
    assert "<Email>" in text
    assert "<Redacted>" in text


def test_a_server_reaches_for_nobody(over: _Over) -> None:
    assert 'code="200"' in over.emitted["/metrics"]
    assert over.attempts == []


def test_the_search_finds_what_is_there(orders_dir: Path) -> None:
    planter = _Planter()
    word = planter.word("here")
    codec = Tokenizer.from_file(str(orders_dir / "tokenizer.json"))
    ids = codec.encode(word, add_special_tokens=False).ids
    for text in (
        f"an error with {word!r}",
        word.upper(),
        f"tokens {ids}",
        base64.b64encode(f"abcde {word} xyz".encode()).decode(),
        word.encode().hex(),
        word[:15],
        f"ends {word[-13:]}!",
        f"array({ids})".replace(",", "\n"),
    ):
        assert planter.found_in(text, orders_dir) == {word: "here"}, text
    assert planter.found_in("zq", orders_dir) == {}


@pytest.mark.parametrize("broken", ["keys", "key of TLS"])
def test_a_start_that_fails_tells_no_secret(orders_dir: Path, tmp_path: Path, broken: str) -> None:
    planter = _Planter()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "keys").write_bytes(f"{planter.word('a key')}\n".encode() + b"\xff\xfe")
    (mounted / "tls.crt").write_text(f"-----BEGIN CERTIFICATE-----\n{planter.word('certificate')}\n")
    (mounted / "tls.key").write_text(f"-----BEGIN PRIVATE KEY-----\n{planter.word('private key')}\n")
    folder = tmp_path / "written"
    folder.mkdir()
    environ = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "TMPDIR": str(folder)}
    under = (sys.executable, "-m", _LOUD)
    if broken == "keys":
        environ["SLM_API_KEYS_FILE"] = str(mounted / "keys")
    else:
        environ["SLM_TLS_CERT_FILE"] = str(mounted / "tls.crt")
        environ["SLM_TLS_KEY_FILE"] = str(mounted / "tls.key")
    with ServerProcess(orders_dir, folder, environ=environ, under=under) as server:
        assert server.wait_end() == 1
        written = [server.termination_log, server.log_file]
    for path in written:
        text = path.read_text()
        assert "mounted" in text  # it is named
        assert planter.found_in(text, orders_dir) == {}
