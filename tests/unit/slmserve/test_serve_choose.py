# SPDX-License-Identifier: Apache-2.0
"""Engine `auto`: the rule, the measuring in processes that may go wrong, the choice that is kept."""

import json
import logging
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmserve import __main__ as command
from slmserve import choose
from slmserve.choose import GOLDEN_TOLERANCE, choose_engine, decide, pick_engine, read_choice, weigh_speed
from slmserve.config import ServerConfig, available_cpus, parse_config
from slmserve.engines.registry import ENGINES, EngineKind, EngineOptions, find_candidates
from slmserve.measure import Bounds, measure
from slmserve.model import load_model
from slmwire.choice import EngineChoice, EngineMeasurement, parse_choice
from tests.unit.slmserve.process import ORDERS, ROOT, ServerProcess

OPTIONS = EngineOptions(slots=2, context_length=0, threads=1)
BOUNDS = Bounds(seconds=20, memory_bytes=0)


@pytest.fixture(scope="module")
def both_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model directory with the files of two engines."""
    directory = tmp_path_factory.mktemp("both")
    shutil.copytree(ORDERS / "v1-int4", directory, dirs_exist_ok=True)
    shutil.copyfile(ORDERS / "v1-litert/model.tflite", directory / "model.tflite")
    return directory


def _config(model_dir: Path, *flags: str) -> ServerConfig:
    return parse_config(["--model-dir", str(model_dir), "--engine", "auto", "--slots", "2", *flags], {})


def _measured(one: float, four: float, score: float | None = 1.0, error: str = "") -> EngineMeasurement:
    return EngineMeasurement(
        decode_tokens_per_second=one, aggregate_tokens_per_second=four, golden_score=score, error=error
    )


def test_the_fastest_for_one_and_four_streams_together_is_taken() -> None:
    assert weigh_speed(_measured(10, 40)) == pytest.approx(20)
    batched, single = _measured(50, 150), _measured(80, 80)
    assert decide({"single": single, "batched": batched}) == "batched"
    assert decide({"first": single, "second": single}) == "first"
    assert decide({"second": single, "first": single}) == "second"


@pytest.mark.parametrize(
    ("good", "fast", "expected"),
    [
        (1.0, 0.95, "fast"),
        (0.9, 0.85, "fast"),
        (1.0, 0.9375, "good"),
        (0.04, 0.0, "good"),
        (0.0, 0.0, ""),
        (1.0, None, "good"),
        (None, None, "fast"),
    ],
)
def test_speed_does_not_make_up_for_wrong_answers(
    good: float | None, fast: float | None, expected: str
) -> None:
    assert decide({"good": _measured(1, 1, good), "fast": _measured(9, 9, fast)}) == expected


def test_what_failed_does_not_set_the_standard() -> None:
    failed = _measured(90, 90, 1.0, "ended by SIGSEGV")
    assert decide({"failed": failed, "poor": _measured(5, 5, 0.5)}) == "poor"
    assert decide({"failed": failed, "empty": EngineMeasurement()}) == ""
    assert decide({}) == ""


_rates = st.none() | st.floats(0.1, 1e5)
_measurements = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.builds(
        EngineMeasurement,
        decode_tokens_per_second=_rates,
        aggregate_tokens_per_second=_rates,
        golden_score=st.none() | st.integers(0, 16).map(lambda n: n / 16),
        error=st.sampled_from(["", "", "it broke"]),
    ),
)


@settings(deadline=None)
@given(_measurements)
def test_whatever_was_measured_the_rule_holds(measured: dict[str, EngineMeasurement]) -> None:
    sound = {n: m for n, m in measured.items() if not m.error and weigh_speed(m) > 0}
    scores = [m.golden_score for m in sound.values() if m.golden_score is not None]
    chosen = decide(measured)
    if not chosen:
        assert not sound or max(scores, default=1) == 0
        return
    best = max(scores, default=0.0)
    taken = sound[chosen]
    assert not scores or (taken.golden_score or 0) > 0
    assert (taken.golden_score or 0) >= best - GOLDEN_TOLERANCE - 1e-6
    for other in sound.values():
        if weigh_speed(other) > weigh_speed(taken):
            assert (other.golden_score or 0) < best - GOLDEN_TOLERANCE + 1e-6


@settings(deadline=None)
@given(_measurements)
def test_slower_or_worse_never_helps(measured: dict[str, EngineMeasurement]) -> None:
    chosen = decide(measured)
    for name, m in measured.items():
        if name != chosen and m.decode_tokens_per_second:
            slower = replace(m, decode_tokens_per_second=m.decode_tokens_per_second / 2)
            assert decide(measured | {name: slower}) == chosen
    if chosen:
        assert decide({name: m for name, m in measured.items() if name == chosen}) == chosen


@settings(deadline=None)
@given(_measurements, st.sampled_from(["", "a", "b"]), st.text(max_size=9), st.integers(1, 99))
def test_a_choice_survives_its_file(
    measured: dict[str, EngineMeasurement], engine: str, digest: str, cpus: int
) -> None:
    choice = EngineChoice(
        engine=engine, model_digest=digest, versions={"a": "1"}, cpus=cpus, measured=measured
    )
    assert parse_choice(choice.to_json()) == choice
    assert parse_choice(choice.to_json()[:-1]) is None


_GOOD = json.loads(
    EngineChoice(
        engine="a", model_digest="sha256:1", versions={"a": "1"}, cpus=2, measured={"a": _measured(1, 1)}
    ).to_json()
)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": 7},
        {"cpus": "2"},
        {"cpus": True},
        {"versions": {"a": 1}},
        {"versions": []},
        {"measured": []},
        {"measured": {"a": []}},
        {"measured": {"a": {"golden_score": "high"}}},
        {"measured": {"a": {"decode_tokens_per_second": float("inf")}}},
        {"measured": {"a": {"unknown": 1}}},
        {"more": 1},
    ],
)
def test_a_file_that_is_no_choice_is_none(changes: dict[str, object]) -> None:
    assert parse_choice(json.dumps(_GOOD)) is not None
    assert parse_choice(json.dumps(_GOOD | changes)) is None
    for text in ("[]", "7", "", "[" * 100_000):
        assert parse_choice(text) is None


def test_a_choice_holds_for_what_was_measured_only() -> None:
    choice = EngineChoice(engine="a", model_digest="sha256:1", versions={"a": "1", "b": "2"}, cpus=4)
    same = {"model_digest": "sha256:1", "versions": {"b": "2", "a": "1"}, "cpus": 4}
    assert choice.holds_for(**same)  # type: ignore[arg-type]
    for changes in (
        {"model_digest": "sha256:2"},
        {"cpus": 2},
        {"versions": {"a": "1", "b": "3"}},
        {"versions": {"a": "1"}},
        {"versions": {"a": "1", "b": "2", "c": "1"}},
    ):
        assert not choice.holds_for(**same | changes)  # type: ignore[arg-type]
    assert not replace(choice, model_digest="").holds_for(**same | {"model_digest": ""})  # type: ignore[arg-type]
    assert not replace(choice, engine="").holds_for(**same)  # type: ignore[arg-type]


def _unsound(name: str) -> EngineKind:
    module = f"tests.unit.slmserve.unsound.{name}"
    return EngineKind(name=name, patterns=("model.onnx",), library="json", module=module)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The child finds the modules of the tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'operator'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("UNSOUND_DIR", str(tmp_path))
    return tmp_path


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_hang_ends_in_time_with_all_that_it_started(importable: Path) -> None:
    started = time.monotonic()
    found = measure(_unsound("hang"), importable, OPTIONS, Bounds(seconds=3, memory_bytes=0))
    assert time.monotonic() - started < 10
    assert found == EngineMeasurement(error="not done within 3.0 s")
    pids = [int(pid) for pid in (importable / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(_is_running, pids))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("crash", "the engine's process was ended by SIGABRT"),
        ("hungry", "not enough memory"),
        ("absent", "ModuleNotFoundError at .*"),
        ("secretive", r"RuntimeError at secretive\.py.*"),
    ],
)
@pytest.mark.usefixtures("importable")
def test_an_unsound_engine_fails_alone(name: str, error: str, tmp_path: Path) -> None:
    found = measure(_unsound(name), tmp_path, OPTIONS, Bounds(seconds=20, memory_bytes=600 << 20))
    assert found == EngineMeasurement(error=found.error)
    assert re.fullmatch(error, found.error), found.error


def test_what_the_engine_says_of_the_model_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no model")
    shutil.copyfile(ORDERS / "v1-int4/tokenizer_config.json", tmp_path / "tokenizer_config.json")
    shutil.copyfile(ORDERS / "v1-int4/tokenizer.json", tmp_path / "tokenizer.json")
    assert "cannot load model.tflite" in measure(ENGINES["litert"], tmp_path, OPTIONS, BOUNDS).error


def test_a_broken_golden_set_is_no_fault_of_an_engine(tmp_path: Path) -> None:
    shutil.copytree(ORDERS / "v1-int4", tmp_path, dirs_exist_ok=True)
    (tmp_path / "golden.jsonl").write_text("{")
    found = measure(ENGINES["onnxruntime"], tmp_path, OPTIONS, BOUNDS)
    assert (found.error, found.golden_score, found.golden_samples) == ("", None, 0)
    assert weigh_speed(found) > 0


@pytest.mark.usefixtures("importable")
def test_two_real_engines_are_measured_beside_a_crash(both_dir: Path) -> None:
    kinds = [_unsound("crash"), *find_candidates(both_dir, "auto")]
    assert [kind.name for kind in kinds] == ["crash", "onnxruntime", "litert"]
    choice = choose_engine(kinds, _config(both_dir), model_digest="sha256:1", budget_seconds=40)
    assert choice.engine == decide(choice.measured) in ("onnxruntime", "litert")
    assert choice.measured["crash"].error
    for name in ("onnxruntime", "litert"):
        found = choice.measured[name]
        assert (found.error, found.golden_samples) == ("", 16)
        assert (found.golden_score or 0) >= 0.9
        assert (found.memory_bytes or 0) > 20 << 20
        assert min(weigh_speed(found), found.prefill_tokens_per_second or 0) > 10
    assert choice.versions["litert"] == ENGINES["litert"].version != ""
    assert choice.holds_for(model_digest="sha256:1", versions=choice.versions, cpus=available_cpus())


def test_without_time_nothing_is_chosen_and_the_preferred_engine_serves(
    both_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "BUDGET_SECONDS", 0.2)
    config = _config(both_dir, "--engine-choice-file", str(tmp_path / "none.json"))
    with caplog.at_level(logging.INFO):
        assert pick_engine(config, "sha256:1").name == "onnxruntime"
    assert "no engine passed" in caplog.text


def _refuse(*_: object) -> EngineMeasurement:
    raise AssertionError("measured, and there was no need")


def test_one_candidate_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "measure", _refuse)
    for variant, name in (("v1-int4", "onnxruntime"), ("v1-litert", "litert")):
        config = _config(ORDERS / variant, "--engine-choice-file", str(tmp_path / "none.json"))
        assert pick_engine(config, "").name == name
        choice = choose_engine(
            find_candidates(config.model_dir, "auto"), config, model_digest="", budget_seconds=1
        )
        assert (choice.engine, choice.measured) == (name, {})


def test_a_choice_that_fits_is_followed_and_another_is_not(
    both_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "engine.json"
    config = _config(both_dir, "--engine-choice-file", str(file))
    digest = load_model(replace(config, engine="onnxruntime")).digest
    versions = {name: ENGINES[name].version for name in ("onnxruntime", "litert")}
    kept = EngineChoice(engine="litert", model_digest=digest, versions=versions, cpus=available_cpus())
    file.write_text(kept.to_json())
    calls: list[str] = []

    def answer(kind: EngineKind, *_: object) -> EngineMeasurement:
        calls.append(kind.name)
        return _measured(9, 9) if kind.name == "onnxruntime" else _measured(1, 1)

    monkeypatch.setattr(choose, "measure", answer)
    assert load_model(config).engine.name == "litert"
    assert calls == []
    for stale in (replace(kept, cpus=kept.cpus + 1).to_json(), "{", replace(kept, engine="").to_json()):
        file.write_text(stale)
        assert pick_engine(config, digest).name == "onnxruntime"
    assert calls == ["onnxruntime", "litert"] * 3
    assert pick_engine(replace(config, engine=""), digest).name == "onnxruntime"
    assert pick_engine(replace(config, engine="litert"), digest).name == "litert"


def test_the_command_writes_what_the_server_follows(
    both_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "engine.json"
    flags = ["--model-dir", str(both_dir), "--slots", "2"]
    assert command.main(["choose", *flags, "--out", str(file), "--budget-seconds", "60"]) == 0
    choice = read_choice(file)
    assert choice is not None
    assert parse_choice(capsys.readouterr().out) == choice
    assert [path.name for path in file.parent.iterdir()] == ["engine.json"]
    environ = {"SLM_ENGINE": "auto", "SLM_ENGINE_CHOICE_FILE": str(file), "SLM_SLOTS": "2"}
    with ServerProcess(both_dir, tmp_path, environ=environ) as server:
        server.wait_ready()
        (line,) = [line for line in server.log_lines() if line["message"] == "engine chosen"]
        assert (line["engine"], line["origin"]) == (choice.engine, str(file))


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["--budget-seconds", "0"], 2, "--budget-seconds"),
        (["--slots", "0"], 2, "--slots"),
        (["--out", "/proc/none/engine.json"], 2, "/proc/none"),
    ],
)
def test_bad_settings_are_named(
    flags: list[str], code: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["choose", "--model-dir", str(ORDERS / "v1-int4"), *flags]) == code
    assert complaint in capsys.readouterr().err


def test_a_directory_that_no_engine_takes_has_no_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["choose", "--model-dir", str(tmp_path)]) == 1
    assert "no known engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "current", "expected"),
    [("max", "5", 3_072_000), ("2000000", "500000", 1_500_000), ("10", "20", 0), (None, None, 3_072_000)],
)
def test_free_memory_is_the_smaller_of_system_and_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, current: str | None, expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    3000 kB\n")
    if limit is not None and current is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
    monkeypatch.setattr(choose, "_CGROUP", tmp_path)
    monkeypatch.setattr(choose, "_MEMINFO", tmp_path / "meminfo")
    assert choose.free_memory_bytes() == expected
