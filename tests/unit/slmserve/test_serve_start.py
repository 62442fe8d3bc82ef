# SPDX-License-Identifier: Apache-2.0
"""What happens before the first request: settings, verification, the export's description, golden set."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from slmserve import config as config_module
from slmserve.answers import build_deliver
from slmserve.config import ConfigError, available_cpus, parse_config
from slmserve.errors import StartError
from slmserve.export import load_export
from slmserve.golden import GoldenCase, GoldenError, load_cases, run_golden
from slmserve.model import load_model
from slmserve.service import Phase, Service
from slmserve.verify import verify_model
from slmwire.manifest import Manifest, ManifestFile
from slmwire.reasons import Reason


def test_flags_override_the_environment() -> None:
    environ = {"SLM_SLOTS": "6", "SLM_PORT": "9000", "SLM_MODEL": "m", "SLM_EVALUATE": "false"}
    config = parse_config(["--port", "9001"], environ)
    assert (config.slots, config.port, config.identity.model, config.evaluate) == (6, 9001, "m", False)
    assert parse_config([], {}).evaluate is True
    assert parse_config([], {"SLM_EVALUATE": "true", "SLM_SLOTS": ""}).slots == 4


def test_the_model_is_named_after_what_is_known() -> None:
    assert parse_config([], {"SLM_DEPLOYMENT": "d"}).identity.model == "d"
    assert parse_config(["--model-dir", "/models/orders"], {}).identity.model == "orders"


@pytest.mark.parametrize("flags", [["--slots", "0"], ["--max-queue", "-1"], ["--drain-seconds", "-1"]])
def test_settings_out_of_range_are_named(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=flags[0]):
        parse_config(flags, {})


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("", 4)]
)
def test_the_cpu_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(config_module, "_QUOTA_FILE", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cpus() == expected


def _manifest(directory: Path, *names: str) -> Manifest:
    files = []
    for name in names:
        data = (directory / name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        files.append(ManifestFile(path=name, size=len(data), sha256=sha256, url="https://models.example/x"))
    return Manifest(files=tuple(sorted(files, key=lambda f: f.path)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    (directory / "a.onnx").write_bytes(b"weights")
    (directory / "b.json").write_bytes(b"{}")
    return directory


def test_a_tree_that_fits_its_manifest(tree: Path, tmp_path: Path) -> None:
    manifest = _manifest(tree, "a.onnx", "b.json")
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    for expected in ("", manifest.digest):
        digest = verify_model(tree, expected_digest=expected, manifest_file=tmp_path / "manifest.json")
        assert digest == manifest.digest


@pytest.mark.parametrize("damage", ["missing", "size", "digest", "manifest"])
def test_a_tree_that_does_not_fit(tree: Path, tmp_path: Path, damage: str) -> None:
    manifest = _manifest(tree, "a.onnx", "b.json")
    (tmp_path / "manifest.json").write_text("{" if damage == "manifest" else manifest.to_json())
    if damage == "missing":
        (tree / "a.onnx").unlink()
    elif damage == "size":
        (tree / "a.onnx").write_bytes(b"weights and more")
    expected = "sha256:" + "1" * 64 if damage == "digest" else manifest.digest
    with pytest.raises(StartError) as caught:
        verify_model(tree, expected_digest=expected, manifest_file=tmp_path / "manifest.json")
    assert caught.value.reason is Reason.INTEGRITY_MISMATCH


def test_a_directory_given_by_hand_is_hashed(tree: Path, tmp_path: Path) -> None:
    manifest = _manifest(tree, "a.onnx")
    absent = tmp_path / "absent.json"
    assert verify_model(tree, expected_digest="", manifest_file=absent) == ""
    with pytest.raises(StartError, match="no manifest"):
        verify_model(tree, expected_digest=manifest.digest, manifest_file=absent)
    (tree / "slm-manifest.json").write_text(manifest.to_json())
    assert verify_model(tree, expected_digest=manifest.digest, manifest_file=absent) == manifest.digest
    (tree / "a.onnx").write_bytes(b"WEIGHTS")
    with pytest.raises(StartError, match="sha256"):
        verify_model(tree, expected_digest=manifest.digest, manifest_file=absent)


def _export_body(**changes: Any) -> dict[str, Any]:
    decoder = {
        "filename": "model.onnx",
        "head_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "inputs": {
            "input_ids": "ids",
            "attention_mask": "mask",
            "position_ids": "positions",
            "past_key_names": "past.%d.key",
            "past_value_names": "past.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model: dict[str, Any] = {
        "context_length": 64,
        "vocab_size": 100,
        "eos_token_id": [1, 2],
        "decoder": decoder,
    }
    for path, value in changes.items():
        (decoder if path in decoder else model)[path] = value
    return {"model": model, "search": {"do_sample": True, "temperature": 0.7, "top_p": 0.9}}


def _load(directory: Path, body: Any) -> Any:
    (directory / "genai_config.json").write_text(body if isinstance(body, str) else json.dumps(body))
    (directory / "model.onnx").touch()
    return load_export(directory)


def test_an_export_says_what_it_needs(tmp_path: Path) -> None:
    export = _load(tmp_path, _export_body())
    assert export.past_names == ("past.0.key", "past.0.value", "past.1.key", "past.1.value")
    assert export.end_tokens == {1, 2}
    assert (export.temperature, export.top_p, export.position_ids) == (0.7, 0.9, "positions")
    greedy = _export_body(eos_token_id=5) | {"search": {"do_sample": False, "temperature": 0.7}}
    export = _load(tmp_path, greedy)
    assert (export.temperature, export.top_p, export.end_tokens) == (0.0, 1.0, {5})


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"model": None}),
        _export_body(vocab_size=0),
        _export_body(vocab_size="many"),
        _export_body(context_length=-5),
        _export_body(num_hidden_layers=10**9),
        _export_body(eos_token_id=None),
        _export_body(filename="../model.onnx"),
        _export_body(filename="other.onnx"),
        _export_body(inputs={}),
        _export_body(head_size=float("inf")),
    ],
)
def test_a_wrong_description_is_unfit(tmp_path: Path, body: Any) -> None:
    with pytest.raises(StartError, match=r"genai_config\.json") as caught:
        _load(tmp_path, body)
    assert caught.value.reason is Reason.UNFIT


@pytest.mark.parametrize(
    ("match", "expected", "answer", "accepted"),
    [
        ("exact", "yes", "yes", True),
        ("exact", "yes", " yes\n", True),
        ("exact", "yes", "Yes", False),
        ("exact", '{"a":1}', '{"a": 1}', False),
        ("json", '{"a":1,"b":[2]}', '{ "b": [2], "a": 1 }', True),
        ("json", '{"a":1}', '{"a":2}', False),
        ("json", '{"a":1}', '{"a":1', False),
        ("json", "[1,2]", "[2,1]", False),
        ("json", "{}", "[" * 100_000, False),
    ],
)
def test_golden_answers_are_judged(match: Any, expected: str, answer: str, accepted: bool) -> None:
    message: Any = {"role": "user", "content": "x"}
    assert GoldenCase(messages=[message], expected=expected, match=match).accepts(answer) is accepted


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"expected": "x"}',
        '{"messages": [], "expected": "x"}',
        '{"messages": [{"role": "user"}], "expected": "x"}',
        "\xff",
    ],
)
def test_a_wrong_golden_line_is_named(tmp_path: Path, line: str) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "x"}], "expected": "y"})
    (tmp_path / "golden.jsonl").write_bytes(f"{good}\n\n".encode() + line.encode("latin-1"))
    with pytest.raises(GoldenError, match="line 3"):
        load_cases(tmp_path)


def test_the_score_is_the_share_of_right_answers(orders_dir: Path) -> None:
    async def run() -> None:
        model = load_model(parse_config(["--model-dir", str(orders_dir), "--slots", "3"], {}))
        assert model.build_backend is not None
        scheduler = model.build_backend(8, build_deliver(asyncio.get_running_loop()))
        scheduler.start()
        cases = load_cases(orders_dir)
        whole = await run_golden(cases, model, scheduler)
        wrong = [case.model_copy(update={"expected": '{"intent":"none of these"}'}) for case in cases[:20]]
        mixed = await run_golden([*wrong, *cases[20:]], model, scheduler)
        first = await run_golden(cases[:20], model, scheduler)
        scheduler.close()
        assert whole.samples == mixed.samples == len(cases)
        assert mixed.score == pytest.approx(whole.score - first.score * 20 / len(cases))
        assert whole.seconds > 0

    asyncio.run(run())


def test_a_short_queue_does_not_cost_the_evaluation(orders_dir: Path) -> None:
    async def run() -> None:
        service = Service(parse_config(["--model-dir", str(orders_dir), "--max-queue", "0"], {}))
        await service.start_up()
        assert b"slmserve_evaluation_score" in service.render_metrics()
        service.scheduler.close()

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["bad line", "switched off", "absent"])
def test_the_golden_set_never_keeps_a_server_from_serving(
    orders_dir: Path, tmp_path: Path, damage: str
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(orders_dir, model_dir)
    (model_dir / "slm-manifest.json").unlink()
    flags = ["--model-dir", str(model_dir), "--manifest-file", str(tmp_path / "none")]
    if damage == "bad line":
        (model_dir / "golden.jsonl").write_text("{")
    elif damage == "switched off":
        flags += ["--evaluate", "false"]
    else:
        (model_dir / "golden.jsonl").unlink()

    async def run() -> None:
        service = Service(parse_config(flags, {}))
        await service.start_up()
        assert service.phase is Phase.READY
        assert b"slmserve_evaluation_score" not in service.render_metrics()
        service.scheduler.close()

    asyncio.run(run())
