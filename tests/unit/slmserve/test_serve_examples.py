# SPDX-License-Identifier: Apache-2.0
"""The folder of examples: bounded in time and number, whole lines only, for this user only."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmserve.examples import ExampleStore
from slmserve.keeping import MOST_PROMPT_BYTES, RememberedPrompts
from slmserve.schemas import parse_chat
from slmwire.examples import ExampleSettings, expiry_of, file_name

_START = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = _START

    def __call__(self) -> float:
        return self.now


def _store(folder: Path, clock: Clock, *, retention: int = 3600, most: int = 100) -> ExampleStore:
    return ExampleStore(folder, ExampleSettings(retention_seconds=retention, max_examples=most), clock=clock)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """All examples in the order in which they expire."""
    rows = []
    for path in sorted(folder.iterdir()):
        assert expiry_of(path.name) is not None, path
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return rows


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]


def test_a_line_has_what_was_said_redacted(tmp_path: Path) -> None:
    store = _store(tmp_path, Clock())
    store.add(_ask("tea for bob@example.de"), "ask bob@example.de, 10.0.0.1")
    assert _rows(tmp_path) == [
        {"messages": _ask("tea for <Email>"), "expected": "ask <Email>, <IpAddress>", "at": _START}
    ]
    [path] = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert store.count == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    retention=st.integers(60, 100_000),
    most=st.integers(1, 8),
    events=st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=25),
)
def test_nothing_stays_longer_than_it_may(
    tmp_path_factory: pytest.TempPathFactory, retention: int, most: int, events: list[tuple[int, bool]]
) -> None:
    folder, clock = tmp_path_factory.mktemp("examples"), Clock()
    store = _store(folder, clock, retention=retention, most=most)
    for number, (seconds, adds) in enumerate(events):
        clock.now += seconds
        if adds:
            store.add(_ask(str(number)), "x")
        else:
            store.tidy()
        rows = _rows(folder)
        assert store.count == len(rows) <= most
        assert all(row["at"] > clock.now - retention for row in rows)
        # Whoever goes by the names alone removes each in time.
        for path in folder.iterdir():
            expires_at = expiry_of(path.name)
            assert expires_at is not None
            assert all(expires_at <= json.loads(line)["at"] + retention for line in path.open())
    kept = [int(row["messages"][1]["content"]) for row in _rows(folder)]
    added = [number for number, (_, adds) in enumerate(events) if adds]
    assert kept == added[len(added) - len(kept) :]


def test_two_pods_share_a_folder(tmp_path: Path) -> None:
    clock = Clock()
    one, other = (_store(tmp_path, clock, most=3) for _ in range(2))
    for number in range(6):
        (one if number % 2 else other).add(_ask(str(number)), "x")
        clock.now += 100
    assert [row["messages"][1]["content"] for row in _rows(tmp_path)] == ["3", "4", "5"]
    one.tidy()
    assert one.count == other.count == 3


def test_files_that_somebody_else_removes_are_gone(tmp_path: Path) -> None:
    store = _store(tmp_path, Clock())
    store.add(_ask("1"), "x")
    for path in tmp_path.iterdir():
        path.unlink()
    store.add(_ask("2"), "x")
    assert store.count == 1


def test_a_shorter_retention_holds_at_once(tmp_path: Path) -> None:
    clock = Clock()
    long = _store(tmp_path, clock, retention=100_000)
    for _ in range(10):
        long.add(_ask(str(clock.now)), "x")
        clock.now += 1000
    store = _store(tmp_path, clock, retention=5000)
    removed = store.tidy()
    assert removed.expired == 6
    assert store.count == 4
    assert [row["at"] for row in _rows(tmp_path)] == [_START + 1000 * n for n in range(6, 10)]
    assert all((expiry_of(path.name) or 0) <= clock.now + 5000 for path in tmp_path.iterdir())


def test_fewer_examples_are_allowed_from_now_on(tmp_path: Path) -> None:
    clock = Clock()
    store = _store(tmp_path, clock)
    for number in range(6):
        store.add(_ask(str(number)), "x")
    fewer = _store(tmp_path, clock, most=2)
    assert fewer.tidy().over_limit == 4
    assert [row["messages"][1]["content"] for row in _rows(tmp_path)] == ["4", "5"]


def test_a_large_file_is_not_written_anew_for_each_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of corrections lies in one file, and flash wears out."""
    monkeypatch.setattr("slmserve.examples._LARGE_BYTES", 1000)
    store = _store(tmp_path, Clock(), most=64)
    seen, times_written_anew = 0, 0
    for number in range(192):
        store.add(_ask(str(number)), "x")
        [path] = tmp_path.iterdir()
        times_written_anew += path.stat().st_ino != seen
        seen = path.stat().st_ino
        assert store.count <= 64
    assert times_written_anew <= 1 + 128 // 4
    assert [row["messages"][1]["content"] for row in _rows(tmp_path)][-1] == "191"


def test_their_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmserve.examples._MOST_BYTES", 2000)
    clock = Clock()
    store = _store(tmp_path, clock)
    for number in range(12):
        store.add(_ask(f"{number} {'x' * 300}"), "x")
        clock.now += 40
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    kept = [int(row["messages"][1]["content"].split()[0]) for row in _rows(tmp_path)]
    assert kept == list(range(12 - len(kept), 12))
    assert len(kept) >= 3


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    store = _store(tmp_path, Clock())
    store.add(_ask("1"), "x")
    [path] = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'{"messages": [{"ro')
    store.add(_ask("2"), "x")
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["messages"] == _ask("2")
    assert len(lines) == 3


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path, Clock())
    store.add(_ask("1"), "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, calls = os.write, []

    def full(descriptor: int, data: Any) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, bytes(data)[:5])

    monkeypatch.setattr("slmserve.examples.os.write", full)
    with pytest.raises(OSError, match="full"):
        store.add(_ask("2"), "x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "examples", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    clock = Clock()
    store = _store(folder, clock)
    begin = clock.now // (3600 // 48) * (3600 // 48)
    (folder / file_name(begin + 3600)).symlink_to(victim)
    with pytest.raises(OSError):
        store.add(_ask("1"), "x")
    assert victim.read_text() == "mine"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 300)), max_size=40))
def test_what_is_remembered_is_bounded(events: list[tuple[int, int]]) -> None:
    prompts = RememberedPrompts(most=5, most_bytes=1000)
    for identifier, length in events:
        body = {"model": "m", "messages": [{"role": "user", "content": "é" * length}]}
        prompts.add(str(identifier), parse_chat(json.dumps(body).encode()))
        assert len(prompts) <= 5
        assert prompts.size <= 1000
    for number, _ in events:
        prompts.take(str(number))
    assert (len(prompts), prompts.size) == (0, 0)


def test_a_prompt_that_nobody_corrects_is_not_remembered_for_longer_than_examples_are() -> None:
    now = [1000.0]
    prompts = RememberedPrompts(seconds=60.0, clock=lambda: now[0])
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for identifier in ("a", "b"):
        prompts.add(identifier, parse_chat(json.dumps(body).encode()))
        now[0] += 40
    prompts.expire()
    assert len(prompts) == 1 and prompts.take("b") is not None
    prompts.add("c", parse_chat(json.dumps(body).encode()))
    now[0] += 60
    assert prompts.take("c") is None
    assert (len(prompts), prompts.size) == (0, 0)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x" * (MOST_PROMPT_BYTES + 1)}]},
        {"messages": [{"role": "user", "content": "é" * MOST_PROMPT_BYTES}]},
    ],
)
def test_requests_that_no_example_is_made_of(more: dict[str, Any]) -> None:
    prompts = RememberedPrompts()
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | more
    prompts.add("a", parse_chat(json.dumps(body).encode()))
    assert prompts.take("a") is None


def test_parts_and_roles_are_as_the_template_has_them() -> None:
    prompts = RememberedPrompts()
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    body = {"model": "m", "messages": messages, "response_format": {"type": "json_object"}}
    prompts.add("a", parse_chat(json.dumps(body).encode()))
    assert prompts.take("a") == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}]
    assert prompts.take("a") is None
