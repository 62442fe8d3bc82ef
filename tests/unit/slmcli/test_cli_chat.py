# SPDX-License-Identifier: Apache-2.0
"""`chat`: which pod is asked, what is sent, how the answer comes, and what goes wrong; then a real server."""

import fcntl
import io
import itertools
import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.rig.pki import Authority
from slmcli.__main__ import run
from slmcli.chat import read_answer, read_events, read_key
from slmcli.cluster import PodAddress
from slmcli.commands.chat import ASKS
from slmcli.errors import (
    BrokenOffError,
    CliError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from slmcli.pod_errors import describe_refusal
from slmcli.safe import clean_lines
from slmcli.serving import read_serving
from tests.unit.slmcli.cli_double import Ran, ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    EVIL,
    STABLE,
    UPDATE,
    Body,
    build_body,
    build_pod,
    build_status,
)
from tests.unit.slmcli.cli_server import ScriptedApi, serve, write_kubeconfig
from tests.unit.slmserve.process import ORDERS, ROOT, ServerProcess

POD = PodAddress(namespace="shop", pod="p", port=8080)


def build_server_pod(node: str, revision: str = STABLE, **more: Any) -> Body:
    """A serving pod with the container that the operator gives it."""
    body = build_pod(node, revision, **more)
    variables = {"SLM_MODEL": "orders", "SLM_MODEL_VERSION": "v1"}
    body["spec"]["containers"] = [
        {
            "name": "server",
            "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": key, "value": value} for key, value in variables.items()],
        }
    ]
    return body


def build_stream(
    *words: str, finish: str = "stop", tokens: int = 3, done: bool = True
) -> list[bytes | BaseException]:
    """The events of an answer."""
    bodies: list[Body] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    bodies += [{"choices": [{"delta": {"content": word}, "finish_reason": None}]} for word in words]
    bodies.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    bodies.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}})
    events: list[bytes | BaseException] = [b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies]
    return [*events, b"data: [DONE]\n\n"] if done else events


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status()))
    found.running = [build_server_pod("n2", UPDATE), build_server_pod("n3"), build_server_pod("n1", UPDATE)]
    return found


def _ask(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str], *more: str, **how: Any) -> Ran:
    return run_cli(cluster, "chat", "orders", *more, capsys=capsys, **how)


def test_one_question_goes_to_a_pod_of_the_stable_revision(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.streams = [build_stream("Hel", "lo\n", "you")]
    ran = _ask(cluster, capsys, "-m", "hi", "--system", "be short", "--temperature", "0.5")
    assert (ran.code, ran.out, ran.err) == (0, "Hello\nyou\n", "")
    address, path, body, key = cluster.posted[0]
    assert (address.pod, address.port, path, key) == (
        f"orders-{STABLE}-n3",
        8080,
        "/v1/chat/completions",
        "",
    )
    assert body["messages"] == [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "hi"},
    ]
    assert (body["model"], body["temperature"], body["stream"]) == ("orders", 0.5, True)


def test_a_question_may_come_through_a_pipe(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.streams = [build_stream("yes")]
    ran = _ask(cluster, capsys, "--node", "n1", "-v", piped="two\nlines\n")
    assert ran.out == "yes\n"
    assert f"orders v1, revision {UPDATE}, node n1, 3 tokens" in ran.err
    assert cluster.posted[0][2]["messages"] == [{"role": "user", "content": "two\nlines\n"}]
    assert "temperature" not in cluster.posted[0][2]
    assert _ask(cluster, capsys, piped=" \n").code == 2


def test_the_whole_answer_as_a_document(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.streams = [build_stream("a\n", "b", finish="length")]
    document = json.loads(_ask(cluster, capsys, "-m", "hi", "-o", "json").out)
    assert document["kind"] == "ChatAnswer" and document["answer"] == "a\nb"
    assert (document["finishReason"], document["promptTokens"], document["generatedTokens"]) == (
        "length",
        7,
        3,
    )
    assert (document["node"], document["revision"], document["modelVersion"]) == ("n3", STABLE, "v1")


def test_a_talk_remembers_and_forgets(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.streams = [build_stream("one"), build_stream("two"), build_stream("three")]
    ran = _ask(cluster, capsys, typed="first\nsecond\n\n^C\n/help\n/reset\nthird\n/exit\nnever\n")
    assert (ran.code, ran.out) == (0, "one\ntwo\nthree\n")
    sent = [[m["content"] for m in body["messages"]] for _, _, body, _ in cluster.posted]
    assert sent == [["first"], ["first", "one", "second"], ["third"]]
    assert ran.err.count("tokens/s") + ran.err.count("3 tokens") >= 3


def test_ctrl_c_ends_an_answer_and_not_the_talk(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.streams = [[*build_stream("par")[:2], KeyboardInterrupt()], build_stream("whole")]
    ran = _ask(cluster, capsys, typed="a\nb\n")
    assert (ran.code, ran.out) == (0, "par\nwhole\n")
    assert [m["content"] for m in cluster.posted[1][2]["messages"]] == ["a", "par", "b"]
    assert "interrupted" in ran.err
    cluster.streams = [[*build_stream("par")[:2], KeyboardInterrupt()]]
    assert _ask(cluster, capsys, "-m", "a").code == 130


def test_a_talk_goes_on_after_an_error_with_a_pod_that_is_ready_then(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.streams = [[UnreachableError("gone")], build_stream("x", done=False), build_stream("yes")]
    ran = _ask(cluster, capsys, typed="a\nb\nc\n")
    assert (ran.code, ran.out) == (0, "x\nyes\n")
    assert "gone" in ran.err and "broke off" in ran.err
    assert [m["content"] for m in cluster.posted[2][2]["messages"]] == ["c"]
    cluster.streams = [[ForbiddenError("no pods/proxy")]]
    assert _ask(cluster, capsys, typed="a\nb\n").code == 3


def test_an_answer_that_breaks_off_before_its_first_word_is_asked_for_again(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = BrokenOffError("the answer of pod p broke off")
    silent: list[bytes | BaseException] = [broken]
    cluster.streams = [[*build_stream()[:1], broken], silent, build_stream("yes")]
    ran = _ask(cluster, capsys, "-m", "a")
    assert (ran.code, ran.out, len(cluster.posted)) == (0, "yes\n", 3)
    cluster.streams = [silent] * ASKS + [build_stream("never")]
    ran = _ask(cluster, capsys, "-m", "a")
    assert ran.code == 3 and "broke off" in ran.err and len(cluster.streams) == 1
    # Words that were shown are not taken back.
    cluster.streams = [[*build_stream("par")[:2], broken], build_stream("never")]
    ran = _ask(cluster, capsys, "-m", "a")
    assert ran.code == 3 and ran.out == "par" and len(cluster.streams) == 1


def test_no_pod_is_a_clear_error(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    ran = _ask(cluster, capsys, "-m", "hi", "--node", "n9")
    assert ran.code == 3 and "kubectl slm nodes orders" in ran.err
    leaving = build_server_pod("n4")
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    prefetch = build_pod("n5", STABLE, role="prefetch")
    cluster.running = [build_server_pod("n3", ready=False), leaving, prefetch]
    ran = _ask(cluster, capsys, "-m", "hi", "--timeout", "0")
    assert ran.code == 1 and "kubectl slm explain orders" in ran.err and ran.slept == 0


@pytest.mark.parametrize(
    "argv", [["--temperature", "3"], ["--temperature", "x"], ["--key-file", "/nowhere"], ["-o", "json"]]
)
def test_wrong_usage(cluster: ScriptedCluster, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _ask(cluster, capsys, *argv, typed="a\n").code == 2


def test_a_key_comes_from_a_file(
    cluster: ScriptedCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("# mine\n\n alpha \nbeta\n")
    cluster.streams = [build_stream("yes")]
    _ask(cluster, capsys, "-m", "hi", "--key-file", str(tmp_path / "key"))
    assert cluster.posted[0][3] == "alpha"
    with pytest.raises(CliError, match="holds no key"):
        read_key("# none\n", "keys")


@pytest.mark.parametrize(
    ("status", "text", "error", "cure"),
    [
        (403, '{"kind": "Status", "message": "cannot create pods/proxy"}', ForbiddenError,
         "create of pods/proxy in namespace shop"),
        (401, '{"kind": "Status", "message": "Unauthorized"}', ForbiddenError, "log in again"),
        (401, '{"error": {"message": "no key"}}', ForbiddenError, "--key-file"),
        (404, '{"kind": "Status", "message": "pods p not found"}', NotFoundError, "run the command again"),
        (503, '{"kind": "Status", "message": "dial tcp: timeout"}', UnreachableError, "NetworkPolicies"),
        (502, "error trying to reach service", UnreachableError, "is its node online"),
        (429, '{"error": {"message": "the queue is full"}}', UnreachableError, "try again"),
        (400, '{"error": {"message": "too long", "code": "context_length_exceeded"}}', RefusedError,
         "/reset"),
        (400, '{"error": {"message": "only embeds"}}', RefusedError, "only embeds"),
        (418, "\x1b[2Jteapot", CliError, "answered 418: .2Jteapot"),
    ],
)  # fmt: skip
def test_each_refusal_names_its_cure(status: int, text: str, error: type[CliError], cure: str) -> None:
    found = describe_refusal(POD, verb="create", status=status, text=text.encode())
    assert type(found) is error
    assert cure.replace(".2J", "[2J") in str(found) and "\x1b" not in str(found)


def _no_time() -> float:
    return 0.0


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_a_stream_may_be_cut_anywhere(noise: bytes, cuts: list[int]) -> None:
    whole = b"".join(piece for piece in build_stream("Hé", "\nllo") if isinstance(piece, bytes))
    places = [0, *itertools.accumulate(cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(places)]
    shown = io.StringIO()
    answer = read_answer(iter(pieces), lambda text: void(shown.write(text)), clock=_no_time)
    assert answer.text == shown.getvalue() == "Hé\nllo"
    assert answer.generated_tokens == 3
    try:
        for event in read_events([noise, b"\n"]):
            assert event is None or isinstance(event, dict)
    except CliError:
        pass


def void(_: object) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: {\n"],
        [b"data: [1]\n"],
        [b'data: {"error": {"message": "out of memory"}}\n'],
        [],
        [b"x" * (1 << 21)],
    ],
)
def test_a_stream_that_is_no_answer_is_an_error(pieces: Iterable[bytes]) -> None:
    with pytest.raises(CliError):
        read_answer(pieces, void, clock=_no_time)


@given(st.text(max_size=20))
def test_an_answer_acts_on_no_terminal(text: str) -> None:
    shown = clean_lines(text + EVIL)
    assert all(letter in "\n\t" or unicodedata.category(letter)[0] != "C" for letter in shown)
    assert clean_lines("a\n\tb ü") == "a\n\tb ü"


def test_pods_of_any_shape_are_read() -> None:
    (pod,) = read_serving([{"metadata": {"name": "p"}, "spec": {}, "status": {}}])
    assert (pod.address.port, pod.model, pod.ready, pod.started_at) == (8080, "", False, None)


def test_a_real_server_behind_an_api_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    pod = f"orders-{STABLE}-n1"
    flags = ("--model", "orders", "--evaluate", "false", "--api-keys-file", str(tmp_path / "keys"))
    with (
        ServerProcess(ORDERS / "v1-int4", tmp_path, *flags) as server,
        serve(ScriptedApi()) as api,
    ):
        server.wait_ready()
        config = str(write_kubeconfig(tmp_path / "config", api.url))
        api.behind[f"{pod}:8080"] = server.url
        api.script(
            "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments/orders",
            (200, build_body(build_status())),
        )
        api.script("/api/v1/namespaces/shop/pods", (200, {"items": [build_server_pod("n1")]}))
        ask = ["chat", "orders", "--kubeconfig", config, "-m", "one coffee please", "-o", "json"]
        assert run(ask) == 3
        assert "--key-file" in capsys.readouterr().err
        assert run([*ask, "--key-file", str(tmp_path / "keys"), "--temperature", "0"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["answer"] and document["generatedTokens"] > 1
        assert document["tokensPerSecond"] > 0 and document["seconds"] >= document["firstTokenSeconds"]
        assert run([*ask[:-2], "--key-file", str(tmp_path / "keys"), "--temperature", "0"]) == 0
        assert capsys.readouterr().out.strip() == document["answer"].strip()
    asked = [entry for entry in api.asked if entry.path.endswith("/proxy/v1/chat/completions")]
    assert asked[-1].headers["authorization"] == "Bearer secret-token"
    assert asked[-1].headers["api-key"] == "alpha"


def test_a_real_server_with_tls_behind_an_api_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    authority = Authority(tmp_path / "pki")
    authority.create()
    pair = authority.issue("orders", common_name="orders", dns_names=["orders.shop.svc"])
    flags: tuple[str, ...] = ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))
    flags += ("--model", "orders", "--evaluate", "false", "--api-keys-file", str(tmp_path / "keys"))
    body = build_server_pod("n1")
    body["spec"]["containers"][0]["ports"] = [{"name": "https", "containerPort": 8080}]
    with ServerProcess(ORDERS / "v1-int4", tmp_path, *flags) as server, serve(ScriptedApi()) as api:
        server.scheme = "https"
        server.wait_ready()
        config = str(write_kubeconfig(tmp_path / "config", api.url))
        api.behind[f"https:orders-{STABLE}-n1:8080"] = server.url
        where = "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments/orders"
        api.script(where, (200, build_body(build_status())))
        api.script("/api/v1/namespaces/shop/pods", (200, {"items": [body]}))
        key = ("--key-file", str(tmp_path / "keys"))
        assert run(["chat", "orders", "--kubeconfig", config, "-m", "one coffee please", *key]) == 0
        assert capsys.readouterr().out.strip()


class _Terminal:
    """The program at a pseudo-terminal."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(ROOT / "operator"), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slmcli", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def expect(self, words: str) -> None:
        """Read until the words have come since the last time."""
        while words not in self.seen:
            assert select.select([self.master], [], [], 30)[0], f"no {words!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen = self.seen.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt_the_prompt(self) -> None:
        """Ctrl-C at the prompt until there is another prompt.

        One that comes between the prompt and the wait for a key is noticed with the next key only: so is
        Python's reading of lines. A person types it again.
        """
        for _ in range(30):
            self.type("\x03")
            while select.select([self.master], [], [], 1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
                if "> " in self.seen:
                    self.seen = self.seen.partition("> ")[2]
                    return
        raise AssertionError(f"no other prompt after Ctrl-C, but {self.seen!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.master)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_talk_at_a_real_terminal(tmp_path: Path) -> None:
    slow = [b"data: " + json.dumps({"choices": [{"delta": {"content": f"w{n} "}}]}).encode() + b"\n\n"
            for n in range(400)]  # fmt: skip
    with serve(ScriptedApi()) as api, serve_slowly(slow) as url:
        config = str(write_kubeconfig(tmp_path / "config", api.url))
        api.behind[f"orders-{STABLE}-n1:8080"] = url
        where = "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments/orders"
        api.script(where, (200, build_body(build_status())))
        api.script("/api/v1/namespaces/shop/pods", (200, {"items": [build_server_pod("n1")]}))
        terminal = _Terminal("chat", "orders", "--kubeconfig", config)
        try:
            terminal.expect("Ctrl-C ends an answer")
            terminal.expect("> ")
            terminal.type("count\r")
            terminal.expect("w3 ")
            terminal.type("\x03")
            terminal.expect("interrupted")
            terminal.expect("> ")
            terminal.interrupt_the_prompt()
            terminal.type("\x04")
            assert terminal.process.wait(30) == 0
        finally:
            terminal.close()
    questions = [a.body["messages"] for a in api.asked if a.verb == "POST"]
    assert questions == [[{"role": "user", "content": "count"}]]


@contextmanager
def serve_slowly(pieces: list[bytes]) -> Iterator[str]:
    """A server that sends the pieces one by one, fifty a second, to whoever posts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with suppress(OSError):
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if stopped.wait(0.02):
                        return

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
