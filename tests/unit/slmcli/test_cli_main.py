# SPDX-License-Identifier: Apache-2.0
"""The command line itself: flags, exit codes, errors in one line, output for pipes."""

import io
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from slmcli.commands import COMMANDS
from slmcli.errors import ForbiddenError, UnreachableError
from slmcli.lines import cut, table
from slmcli.terminal import PIPE_WIDTH, find_terminal
from slmcli.times import age_text, span_text
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import NOW, ago, build_body, build_status

ON_A_DEPLOYMENT = sorted(set(COMMANDS) - {"list", "get", "version", "simulate", "fit", "models", "try"})


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status()))
    found.put(build_body(name="new", namespace="lab"))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_found_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(COMMANDS[name].module)
    assert callable(module.run) and callable(module.add_arguments)
    ran = run_cli(ScriptedCluster(), name, "--help", capsys=capsys)
    assert ran.code == 0
    assert "--kubeconfig" in ran.out


@pytest.mark.parametrize("name", ON_A_DEPLOYMENT)
@pytest.mark.parametrize("error", [ForbiddenError("no"), UnreachableError("no route; check the link")])
def test_trouble_with_the_cluster_is_three_and_one_line(
    name: str, error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ScriptedCluster(broken=error)
    ran = run_cli(cluster, name, "orders", capsys=capsys)
    assert (ran.code, ran.out, ran.err) == (3, "", f"error: {error}\n")


@pytest.mark.parametrize("name", ON_A_DEPLOYMENT)
def test_a_deployment_that_is_not_there_is_three(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(ScriptedCluster(), name, "nobody", capsys=capsys)
    assert ran.code == 3
    assert '"nobody" not found' in ran.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["status"],
        ["status", "a", "b"],
        ["status", "a", "-o", "xml"],
        ["promote", "a", "--all", "--wave", "b"],
    ],
)
def test_wrong_usage_is_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(ScriptedCluster(), *argv, capsys=capsys)
    assert ran.code == 2
    assert "usage: kubectl slm" in ran.err


def test_list_shows_a_namespace_or_all(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_cli(cluster, "list", capsys=capsys, width=80)
    assert [line.split()[0] for line in ran.out.splitlines()] == ["NAME", "orders"]
    assert max(map(len, ran.out.splitlines())) <= 80
    ran = run_cli(cluster, "get", "-A", capsys=capsys)
    assert [line.split()[:2] for line in ran.out.splitlines()] == [
        ["NAMESPACE", "NAME"], ["lab", "new"], ["shop", "orders"],
    ]  # fmt: skip
    ran = run_cli(cluster, "list", "-n", "nowhere", capsys=capsys)
    assert (ran.code, ran.out) == (0, "")
    assert "no SLMDeployment in namespace nowhere" in ran.err
    assert run_cli(cluster, "get", "nobody", capsys=capsys).code == 3


@pytest.mark.parametrize("argv", [["-n", "lab", "status", "new"], ["status", "new", "--namespace", "lab"]])
def test_flags_may_stand_on_both_sides(
    cluster: ScriptedCluster, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_cli(cluster, *argv, capsys=capsys)
    assert ran.code == 0
    assert "lab/new" in ran.out


def test_a_reader_that_goes_away_is_no_error(tmp_path: Any) -> None:
    script = "import sys; from slmcli.__main__ import main; sys.argv[1:] = ['version']; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_that_wants_it_gets_control_codes() -> None:
    color = {"TERM": "xterm"}
    assert find_terminal(_Tty(), color).live
    assert not find_terminal(_Tty(), color, wanted="plain").live
    assert not find_terminal(_Tty(), color | {"NO_COLOR": "1"}).live
    assert not find_terminal(_Tty(), {"TERM": "dumb"}).live
    pipe = find_terminal(io.StringIO(), color)
    assert not pipe.live
    assert pipe.width == PIPE_WIDTH


def test_spans_read_like_those_of_kubectl() -> None:
    spans = {
        **{0: "0s", 119: "119s", 120: "2m", 200: "3m20s", 1500: "25m", 7500: "125m"},
        **{11000: "3h3m", 100000: "27h", 300000: "3d11h", 10**7: "115d"},
    }
    assert {seconds: span_text(seconds) for seconds in spans} == spans
    assert age_text(ago(-60), NOW) == "0s"
    assert age_text(None, NOW) == age_text("soon", NOW) == "-"


def test_tables_give_way_where_they_may() -> None:
    lines = table(["A", "B"], [["x" * 90, "y" * 20], ["模" * 40, "z"]], width=40, flexible=0)
    assert all(line.cell_len <= 40 for line in lines)
    assert "y" * 20 in lines[1].plain
    assert cut("[red]not markup[/red]", 80).plain == "[red]not markup[/red]"
