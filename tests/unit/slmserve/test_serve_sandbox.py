# SPDX-License-Identifier: Apache-2.0
"""The sandbox, enforced by this machine's kernel, in processes of their own: nothing takes it off again."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from slmserve import sandbox
from slmserve.config import ConfigError, parse_config
from slmserve.errors import StartError
from slmserve.sandbox import Confinement, SandboxError, SandboxMode, confine
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmserve.process import ROOT, ServerProcess

_REFUSING = """
import os, sys
from slmserve.sandbox import install, own_architecture
from slmserve.sandbox_rules import ALLOW, DENY, JUMP_EQUAL, LOAD, RETURN, Instruction
own = own_architecture()
install(own, (
    Instruction(code=LOAD, value=0),
    Instruction(code=JUMP_EQUAL, value=own.numbers["seccomp"], if_false=1),
    Instruction(code=RETURN, value=DENY),
    Instruction(code=RETURN, value=ALLOW),
))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python under a filter that refuses further filters, as some container runtimes do."""


def _try_ways_out(mode: SandboxMode) -> tuple[str, dict[str, Any], bytes]:
    """Confinement, outcomes of `confined`, and what its server answered us."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.2)
        environ = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "operator"), str(ROOT)))}
        command = [sys.executable, "-m", "tests.unit.slmserve.confined", mode, str(bait.getsockname()[1])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            first = json.loads(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", first["port"]), 10) as connection:
                connection.sendall(b"hello")
                answer = connection.recv(100)
            outcomes = json.loads(process.stdout.readline())
        assert process.returncode == 0
        if mode is not SandboxMode.OFF:
            with pytest.raises(TimeoutError):
                bait.accept()
        return first["confinement"], outcomes, answer


@pytest.fixture(scope="module")
def confined() -> tuple[str, dict[str, Any], bytes]:
    return _try_ways_out(SandboxMode.REQUIRED)


def test_every_way_out_is_closed(confined: tuple[str, dict[str, Any], bytes]) -> None:
    confinement, outcomes, _ = confined
    assert confinement == "confined"
    assert outcomes["out"].pop("resolve a name") == "gaierror"
    if "32-bit socket" in outcomes["out"]:
        assert outcomes["out"].pop("32-bit socket") in {"EPERM", "no such calls"}
    assert {name: code for name, code in outcomes["out"].items() if code != "EPERM"} == {}
    assert len(outcomes["out"]) >= 39


def test_what_a_server_needs_goes_on(confined: tuple[str, dict[str, Any], bytes]) -> None:
    _, outcomes, answer = confined
    assert set(outcomes["needed"].values()) == {"ok"}
    assert answer == b"got hello"


def test_memory_is_never_dumped(confined: tuple[str, dict[str, Any], bytes], server: ServerProcess) -> None:
    assert confined[1]["dumps"] == 0
    [line] = [
        line
        for line in Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    ]
    assert line.split()[-3:-1] == ["0", "0"]


def test_the_process_that_reads_a_schema_is_never_dumped() -> None:
    """It ends by a signal when its time is up, and `execve` makes a process that may be dumped of it again.

    A limit of 0 keeps the kernel from writing a file, not from handing the memory to a service of the node.
    """
    code = (
        "import ctypes; from slmserve import grammar_check as g; g.main(); print(ctypes.CDLL(None).prctl(3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "5"],
        input="start: /a/",
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
    )
    assert done.stdout == "0\n"


def test_without_the_sandbox_the_ways_are_open() -> None:
    """Else the tests above would show nothing."""
    confinement, outcomes, _ = _try_ways_out(SandboxMode.OFF)
    assert confinement == "open"
    for name in ("connect v4", "connect v6", "create_connection", "thread from before", "child process"):
        assert outcomes["out"][name] == "ok", name
    # Nobody listens where these go, which they are told after they have been sent.
    for name in ("sendto v4", "sendto v6", "sendmsg", "sendmmsg", "unix sendto", "new udp", "new netlink"):
        assert outcomes["out"][name] in {"ok", "ECONNREFUSED"}, name
    assert "EPERM" not in {outcomes["out"][name] for name in outcomes["out"] if name.startswith("fast open")}


@pytest.fixture(scope="module")
def server(orders_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--model", "orders", "--sandbox", "required")
    with ServerProcess(orders_dir, tmp_path_factory.mktemp("sandbox"), *flags) as process:
        process.wait_ready()
        yield process


def test_every_thread_of_the_server_is_confined(server: ServerProcess) -> None:
    statuses = [path.read_text() for path in Path(f"/proc/{server.process.pid}/task").glob("*/status")]
    assert len(statuses) > 1
    for status in statuses:
        assert "\nSeccomp:\t2\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
    assert server.metrics()["slmserve_sandbox"] == 1
    assert server.log_lines()[0]["message"] == "sandbox on: this server opens no connection"


def test_a_confined_server_answers(server: ServerProcess) -> None:
    ask: dict[str, Any] = {"model": "orders", "messages": [{"role": "user", "content": "one tea"}]}
    whole = httpx.post(f"{server.url}/v1/chat/completions", json=ask, timeout=30).json()
    assert whole["choices"][0]["message"]["content"]
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ask | {"stream": True}) as answer:
        assert list(answer.iter_lines())[-2] == "data: [DONE]"


def test_a_confined_server_starts_the_process_that_checks_a_grammar(server: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[ab]{1,3}$"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask = {"model": "orders", "messages": [{"role": "user", "content": "hi"}], "response_format": form}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=ask, timeout=30)
    assert answer.status_code == 200, answer.text


def test_the_sandbox_can_be_switched_off(orders_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(orders_dir, tmp_path, environ={"SLM_SANDBOX": "off"}) as server:
        server.wait_ready()
        assert server.metrics()["slmserve_sandbox"] == 0
        assert "off" in server.log_lines()[0]["message"]
        assert "\nSeccomp:\t2" not in Path(f"/proc/{server.process.pid}/status").read_text()


def test_where_the_kernel_refuses_the_server_warns_or_ends(orders_dir: Path, tmp_path: Path) -> None:
    under = (sys.executable, "-c", _REFUSING)
    with ServerProcess(orders_dir, tmp_path, under=under) as server:
        server.wait_ready()
        assert server.metrics()["slmserve_sandbox"] == 0
        line = server.log_lines()[0]
        assert line["level"] == "warning"
        assert "seccomp is refused: Operation not permitted" in line["message"]
    with ServerProcess(orders_dir, tmp_path, "--sandbox", "required", under=under) as server:
        assert server.wait_end() == 1
        termination = parse_termination(server.termination_log.read_text())
    assert termination is not None
    assert termination.reason == Reason.UNFIT
    assert "--sandbox auto" in termination.message


def test_a_machine_without_rules_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert confine(SandboxMode.AUTO) is Confinement.OPEN
    assert "riscv64" in caplog.text
    with pytest.raises(StartError, match="riscv64"):
        confine(SandboxMode.REQUIRED)


def test_a_filter_that_does_nothing_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "install", lambda *_: None)
    assert confine(SandboxMode.AUTO) is Confinement.OPEN
    assert "does not enforce" in caplog.text
    with pytest.raises(SandboxError):
        sandbox.verify()


def test_the_setting() -> None:
    assert parse_config([], {}).sandbox is SandboxMode.AUTO
    assert parse_config([], {"SLM_SANDBOX": "required"}).sandbox is SandboxMode.REQUIRED
    assert parse_config(["--sandbox", "off"], {"SLM_SANDBOX": "required"}).sandbox is SandboxMode.OFF
    with pytest.raises(ConfigError, match="auto, required, off"):
        parse_config([], {"SLM_SANDBOX": "true"})


@pytest.mark.parametrize("command", [["slmserve", "choose"], ["slmserve.evaluate"]])
def test_commands_that_read_a_model_are_confined_too(tmp_path: Path, command: list[str]) -> None:
    """Under a kernel that refuses, which they say before they look at the model."""
    arguments = ["-m", *command, "--model-dir", str(tmp_path / "none"), "--sandbox", "required"]
    environ = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
    done = subprocess.run(
        [sys.executable, "-c", _REFUSING, *arguments],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert done.returncode == 1
    assert "the sandbox is required" in done.stdout + done.stderr
