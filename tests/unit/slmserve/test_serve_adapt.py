# SPDX-License-Identifier: Apache-2.0
"""From kept corrections to a verdict on an adapter, with the real engine; and the adapter as the default."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmserve.adapt import main
from slmserve.adapt_judge import Shares, assess
from slmserve.adapt_prepare import Example, ExampleMessage, Renderer, build_renderer, collect, share_of, split
from slmserve.answers import build_deliver
from slmserve.config import parse_config
from slmserve.errors import StartError
from slmserve.examples import ExampleStore
from slmserve.export import load_export
from slmserve.golden import GoldenCase, answer_case, load_cases
from slmserve.model import load_model
from slmserve.parts import Message
from slmserve.template import build_template
from slmserve.tokenizer import load_codec
from slmwire.examples import ExampleSettings, file_name
from slmwire.jobs import AdapterReport, TrainOrder, TrainOutcome, parse_report
from slmwire.manifest import ManifestFile, digest_of
from slmwire.reasons import Reason, parse_termination
from tests.unit.slmserve.lora_orders import build_lora_orders, questions, write_lora
from tests.unit.slmserve.process import ORDERS, ROOT, ServerProcess

_SCALE = 0.32
_COUNT = 120


def _order(**more: Any) -> TrainOrder:
    order = TrainOrder(name="local", retention_seconds=3600, min_examples=50, max_quality_loss=1.0)
    return replace(order, **more)


def _answers(model_dir: Path, asked: Sequence[list[dict[str, str]]], adapter: str) -> list[str]:
    async def answer() -> list[str]:
        model = load_model(parse_config(["--model-dir", str(model_dir), "--threads", "1"], {}))
        assert model.build_backend is not None
        backend = model.build_backend(len(asked), build_deliver(asyncio.get_running_loop()))
        backend.start()
        cases = [
            GoldenCase(messages=[Message.model_validate(m) for m in messages], expected="x" * 200)
            for messages in asked
        ]
        found = [await answer_case(case, model, backend, adapter=adapter) for case in cases]
        backend.close()
        return [text or "" for text in found]

    return asyncio.run(answer())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lora_orders(tmp_path_factory.mktemp("lora") / "model")


@pytest.fixture(scope="module")
def wanted(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What users want: what the model says with the adapter that a training would find."""
    adapted = tmp_path_factory.mktemp("adapted") / "model"
    shutil.copytree(model_dir, adapted)
    write_lora(adapted / "adapters" / "found.onnx_adapter", scale=_SCALE)
    answers = _answers(adapted, questions(_COUNT), "found")
    plain = _answers(adapted, questions(_COUNT), "")
    assert sum(a != b for a, b in zip(answers, plain, strict=True)) > 15
    return answers


class Job:
    """The volumes of one training."""

    def __init__(self, directory: Path, model_dir: Path) -> None:
        self.directory, self.model_dir = directory, model_dir
        self.examples, self.work = directory / "examples", directory / "work"
        self.held_out = directory / "held-out"
        for folder in (self.examples, self.work, self.held_out):
            folder.mkdir()
        self.termination_log = directory / "termination"

    def keep(self, answers: Sequence[str]) -> None:
        """As the server keeps corrections."""
        settings = ExampleSettings(retention_seconds=3600, max_examples=1000)
        store = ExampleStore(self.examples, settings)
        for messages, answer in zip(questions(len(answers)), answers, strict=True):
            store.add(messages, answer)

    def run(self, task: str, order: TrainOrder, *more: str) -> int:
        job = self.directory / "job.json"
        job.write_text(order.to_json())
        return main(
            [
                task,
                *("--model-dir", str(self.model_dir), "--examples", str(self.examples)),
                *("--work", str(self.work), "--held-out", str(self.held_out)),
                *("--job", str(job), "--threads", "1"),
                *("--termination-log", str(self.termination_log), *more),
            ]
        )

    @property
    def report(self) -> AdapterReport:
        report = parse_report(self.termination_log.read_text())
        assert isinstance(report, AdapterReport), self.termination_log.read_text()
        return report

    @property
    def tokens(self) -> list[dict[str, Any]]:
        return _rows(self.work / "tokens.jsonl")

    @property
    def cases(self) -> list[dict[str, Any]]:
        return _rows(self.held_out / "golden.jsonl")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def job(tmp_path: Path, model_dir: Path) -> Job:
    return Job(tmp_path, model_dir)


@pytest.fixture
def prepared(job: Job, wanted: list[str]) -> Job:
    job.keep(wanted)
    assert job.run("prepare", _order()) == 0
    return job


def _own_digest(model_dir: Path) -> str:
    files = [path for path in model_dir.rglob("*") if path.is_file() and "local" not in path.name]
    return digest_of(
        ManifestFile(
            path=path.relative_to(model_dir).as_posix(),
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in files
    )


def test_examples_become_tokens_and_cases(prepared: Job, wanted: list[str]) -> None:
    train, held = prepared.tokens, prepared.cases
    assert [path.name for path in prepared.work.iterdir()] == ["tokens.jsonl"], "all that `train` sees"
    assert len(train) + len(held) == _COUNT
    assert len(held) >= 10
    codec = load_codec(prepared.model_dir)
    asked = {
        messages[0]["content"]: answer for messages, answer in zip(questions(_COUNT), wanted, strict=True)
    }
    seen = set()
    for row in train:
        assert row.keys() == {"prompt", "answer"}
        assert row["answer"][-1] == 1
        prompt, answer = codec.decode(row["prompt"]), codec.decode(row["answer"][:-1])
        [question] = [q for q in asked if q == prompt]
        assert asked[question] == answer
        seen.add(question)
    for row in held:
        assert row["match"] == "json"
        assert asked[row["messages"][0]["content"]] == row["expected"]
        assert row["messages"][0]["content"] not in seen
    assert not prepared.termination_log.exists()


def test_a_better_adapter_is_accepted(prepared: Job) -> None:
    adapter = write_lora(prepared.work / "adapter.onnx_adapter", scale=_SCALE)
    assert prepared.run("judge", _order()) == 0
    report = prepared.report
    assert report.outcome == TrainOutcome.ACCEPTED
    assert report.after is not None and report.before is not None
    assert report.after > 0.95
    assert report.before < report.after - 0.05
    assert report.sha256 == hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert report.size_bytes == adapter.stat().st_size
    assert report.base_digest == _own_digest(prepared.model_dir)
    assert (report.examples, report.held_out) == (
        len(prepared.tokens),
        len(prepared.cases),
    )
    assert report.golden_samples == 60
    assert report.golden_before == 1.0
    assert report.golden_after is not None and report.golden_after < 0.98


_FAILING = """
import asyncio, sys, threading
from slmserve import adapt

def fail(*_args):
    raise ValueError("one muffin")

async def judge(*_args, **_more):
    threading.Thread(target=fail).start()
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
    fail()

adapt.judge = judge
sys.exit(adapt.run())
"""


def test_what_fails_in_a_judgement_is_printed_without_its_message(job: Job) -> None:
    path = job.directory / "job.json"
    path.write_text(_order().to_json())
    flags = ["judge", "--model-dir", str(job.model_dir), "--work", str(job.work), "--job", str(path)]
    flags += ["--termination-log", str(job.termination_log)]
    done = subprocess.run(
        [sys.executable, "-c", _FAILING, *flags],
        env={"PYTHONPATH": str(ROOT / "operator"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "muffin" not in done.stdout + done.stderr + job.termination_log.read_text()
    assert done.stdout.count("ValueError at") == 3


@pytest.mark.parametrize("name", ["local", "theirs"])
def test_an_adapter_is_compared_with_what_serves(prepared: Job, name: str) -> None:
    """The model with its default adapter, be it of an earlier training or a user's; any other is no part."""
    base_digest = _own_digest(prepared.model_dir)
    adapter = write_lora(prepared.work / "adapter.onnx_adapter", scale=_SCALE)
    served = prepared.directory / "served"
    shutil.copytree(prepared.model_dir, served)
    (served / "adapters").mkdir()
    shutil.copyfile(adapter, served / "adapters" / f"{name}.onnx_adapter")
    prepared.model_dir = served
    assert prepared.run("judge", _order()) == 0, "it is there, and serves only who asks for it"
    first = prepared.report
    assert prepared.run("judge", _order(min_gain=0.0), "--default-adapter", name) == 1
    again = prepared.report
    assert again.outcome == TrainOutcome.NO_GAIN
    assert again.before == again.after == first.after
    # What an earlier training lost of the golden set stays lost: that is counted from the model without any.
    golden_before = 1.0 if name == "local" else first.golden_after
    assert (again.golden_before, again.golden_after) == (golden_before, first.golden_after)
    assert (again.base_digest == base_digest) == (name == "local")


def test_both_ends_work_confined(job: Job, wanted: list[str]) -> None:
    """As the Job's containers run them: processes that can open no connection."""
    job.keep(wanted)
    path = job.directory / "job.json"
    path.write_text(_order().to_json())
    environ = {"PYTHONPATH": str(ROOT / "operator"), "SLM_SANDBOX": "required", "PATH": "/usr/bin:/bin"}
    for task, before in (("prepare", ""), ("judge", "adapter.onnx_adapter")):
        if before:
            write_lora(job.work / before, scale=_SCALE)
        flags = ["--model-dir", str(job.model_dir), "--work", str(job.work), "--job", str(path)]
        flags += ["--held-out", str(job.held_out)]
        flags += ["--termination-log", str(job.termination_log)]
        flags += ["--examples", str(job.examples)] if task == "prepare" else []
        done = subprocess.run(
            [sys.executable, "-m", "slmserve.adapt", task, *flags],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "sandbox on" in done.stdout
        assert "muffin" not in done.stdout + done.stderr
    assert job.report.outcome == TrainOutcome.ACCEPTED


def test_what_the_model_could_before_counts(prepared: Job) -> None:
    write_lora(prepared.work / "adapter.onnx_adapter", scale=_SCALE)
    assert prepared.run("judge", _order(max_quality_loss=0.02)) == 1
    assert prepared.report.outcome == TrainOutcome.QUALITY_LOSS
    assert "golden.jsonl" in prepared.report.message


def test_an_adapter_that_changes_nothing_is_none(prepared: Job) -> None:
    write_lora(prepared.work / "adapter.onnx_adapter", scale=0.0)
    assert prepared.run("judge", _order(min_gain=0.0)) == 1
    assert prepared.report.outcome == TrainOutcome.NO_GAIN
    assert prepared.report.before == prepared.report.after


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda work: None, "left no adapter.onnx_adapter"),
        (lambda work: (work / "adapter.onnx_adapter").write_bytes(b"junk"), "cannot be read"),
        (
            lambda work: [
                write_lora(work / "adapter.onnx_adapter", scale=0.0),
                (work.parent / "held-out" / "golden.jsonl").unlink(),
            ],
            "no held-out golden.jsonl",
        ),
    ],
)
def test_what_cannot_be_judged_says_why(prepared: Job, spoil: Any, message: str) -> None:
    spoil(prepared.work)
    assert prepared.run("judge", _order()) == 1
    termination = parse_termination(prepared.termination_log.read_text())
    assert termination is not None
    assert termination.reason == Reason.UNFIT
    assert message in termination.message


def test_a_long_golden_set_is_sampled(
    prepared: Job, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmserve.adapt_judge.MOST_GOLDEN", 25)
    write_lora(prepared.work / "adapter.onnx_adapter", scale=_SCALE)
    assert prepared.run("judge", _order()) == 0
    assert prepared.report.golden_samples == 20


def test_a_judgement_has_a_deadline(prepared: Job) -> None:
    write_lora(prepared.work / "adapter.onnx_adapter", scale=_SCALE)
    assert prepared.run("judge", _order(), "--deadline-seconds", "0.001") == 1
    termination = parse_termination(prepared.termination_log.read_text())
    assert termination is not None
    assert "not judged within" in termination.message


def test_too_few_examples_are_counted(
    job: Job, wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job.keep(wanted[:30])
    [path] = job.examples.iterdir()
    with path.open("ab") as file:
        file.write(b'{"messages": [{"role": "user", "content": "zq-secret')
    assert job.run("prepare", _order()) == 1
    report = job.report
    assert report.outcome == TrainOutcome.TOO_FEW_EXAMPLES
    assert report.examples + report.held_out == 30
    assert "of 50 examples" in report.message
    assert "1 were broken" in report.message
    assert not list(job.work.iterdir())
    told = capsys.readouterr()
    assert "zq-secret" not in told.out + told.err
    assert "table" not in told.out + told.err


def test_no_folder_is_no_example(job: Job) -> None:
    job.examples.rmdir()
    assert job.run("prepare", _order()) == 1
    assert job.report.outcome == TrainOutcome.TOO_FEW_EXAMPLES


@pytest.mark.parametrize("text", ["", "{}", '{"adapter": {"name": "x"}}'])
def test_an_order_that_is_none_is_named(job: Job, text: str) -> None:
    path = job.directory / "other.json"
    path.write_text(text)
    more = ["--job", str(path), "--termination-log", str(job.termination_log)]
    assert main(["prepare", *more]) == 2
    assert "other.json cannot be used" in job.termination_log.read_text()


def _line(text: str, expected: str, at: float) -> str:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"messages": messages, "expected": expected, "at": at}) + "\n"


def test_what_is_collected(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    (tmp_path / file_name(now + 10)).write_text(
        _line("a", "old answer", now - 50) + _line("b", "x", now - 101) + "\n" + "no json\n"
    )
    (tmp_path / file_name(now + 50)).write_text(
        _line("a", "new answer", now - 5)
        + _line("c", "  ", now - 5)
        + json.dumps({"messages": [{"role": "tool", "content": "x"}], "expected": "x", "at": now}) + "\n"
        + json.dumps({"messages": [], "expected": "x", "at": now}) + "\n"
        + '{"messages": [{"role": "user", "content": "x"}], "expected": "x", "at": NaN}\n'
    )  # fmt: skip
    (tmp_path / file_name(now - 1)).write_text(_line("expired", "x", now - 5))
    (tmp_path / "other.jsonl").write_text(_line("somebody else's", "x", now - 5))
    found = collect(tmp_path, retention_seconds=100, now=now)
    assert [(e.messages[0].content, e.expected) for e in found.examples] == [("a", "new answer")]
    assert (found.broken, found.old, found.replaced) == (5, 1, 1)


def _example(text: str, expected: str = "x") -> Example:
    return Example(messages=(ExampleMessage(role="user", content=text),), expected=expected, at=1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.text(max_size=8), max_size=60),
    st.sets(st.text(max_size=8), max_size=60),
    st.integers(1, 200),
    st.floats(0, 1),
)
def test_an_example_is_on_one_side_for_ever(one: set[str], other: set[str], least: int, share: float) -> None:
    order = _order(min_examples=least, held_out_share=share)
    (train, held), (later, later_held) = (
        split([_example(text) for text in texts], order) for texts in (one, one | other)
    )
    assert {e.key for e in train} | {e.key for e in held} == {_example(text).key for text in one}
    assert {e.key for e in train} <= {e.key for e in later}
    assert {e.key for e in held} <= {e.key for e in later_held}
    # Enough to judge by can be expected where there is enough to train on.
    assert share_of(order) * least / (1 - min(share_of(order), 0.999)) >= 10 or share_of(order) > 0.9


def test_what_does_not_fit_the_context_is_left_out(model_dir: Path) -> None:
    renderer = build_renderer(parse_config(["--model-dir", str(model_dir), "--context-length", "40"], {}))
    assert renderer.render(_example("one tea", "two teas")) is not None
    assert renderer.render(_example("one tea", "two teas " * 40)) is None
    assert renderer.render(_example("one tea " * 40)) is None


def test_the_end_token_is_the_one_of_the_template(model_dir: Path) -> None:
    """A model that ends texts and turns by different tokens learns to end turns."""
    config = parse_config(["--model-dir", str(model_dir)], {})
    codec, export = load_codec(model_dir), replace(load_export(model_dir), end_tokens=frozenset({0, 1}))
    turns = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    for source, end in ((turns, 1), ("{{ messages[0].content }}", 0)):
        renderer = Renderer(codec, build_template(source, {}), export, config.context_length or 256)
        rendered = renderer.render(_example("tea"))
        assert rendered is not None
        assert rendered["answer"][-1] == end


def test_a_model_without_a_template_cannot_be_trained(tmp_path: Path, model_dir: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(model_dir, plain)
    (plain / "tokenizer_config.json").write_text("{}")
    with pytest.raises(StartError, match="no chat template"):
        build_renderer(parse_config(["--model-dir", str(plain)], {}))


@pytest.mark.parametrize(
    ("held_out", "golden", "outcome"),
    [
        ((0.5, 0.55), (None, None), TrainOutcome.ACCEPTED),
        ((0.5, 0.54), (None, None), TrainOutcome.NO_GAIN),
        ((0.5, 0.9), (0.9, 0.88), TrainOutcome.ACCEPTED),
        ((0.5, 0.9), (0.9, 0.87), TrainOutcome.QUALITY_LOSS),
        ((0.5, 0.4), (0.9, 0.1), TrainOutcome.NO_GAIN),
        ((0.0, 1.0), (0.1, 1.0), TrainOutcome.ACCEPTED),
    ],
)
def test_gates(
    held_out: tuple[float, float], golden: tuple[float | None, float | None], outcome: TrainOutcome
) -> None:
    given = {"held_out": held_out, "golden": golden}
    shares = {name: Shares(before=pair[0], after=pair[1]) for name, pair in given.items()}
    assert assess(_order(max_quality_loss=0.02), **shares)[0] is outcome


@pytest.fixture(scope="module")
def adapted(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("default") / "model"
    shutil.copytree(model_dir, directory)
    write_lora(directory / "adapters" / "local.onnx_adapter", scale=_SCALE)
    return directory


def test_a_default_adapter_serves_and_is_evaluated(adapted: Path, tmp_path: Path, wanted: list[str]) -> None:
    environ = {"SLM_MODEL": "orders", "SLM_DEFAULT_ADAPTER": "local"}
    with ServerProcess(adapted, tmp_path, environ=environ) as server:
        server.wait_ready()
        assert server.metrics()["slmserve_evaluation_score"] < 0.98

        def ask(name: str, messages: list[dict[str, str]]) -> tuple[str, str]:
            body = {"model": name, "messages": messages, "max_tokens": 60}
            told = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()
            return told["model"], told["choices"][0]["message"]["content"]

        cases = load_cases(adapted)
        right = 0
        for messages, answer in list(zip(questions(_COUNT), wanted, strict=True))[:20]:
            assert ask("orders", messages) == ("orders:local", answer)
            # The same prompt right after it: nothing of the other's cache is used.
            own = ask("base", messages)
            assert own == ask("orders:base", messages)
            assert own[0] == "orders:base"
        for case in cases[:10]:
            right += case.accepts(ask("orders:base", [m.to_template() for m in case.messages])[1])
        assert right == 10


@pytest.mark.parametrize(
    ("name", "also", "message"),
    [
        ("other", "", "'other' is not there: the model directory has local"),
        ("local", "base", "called 'base' cannot be used"),
    ],
)
def test_a_default_that_cannot_be_is_named(
    adapted: Path, tmp_path: Path, name: str, also: str, message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(adapted, directory)
    if also:
        write_lora(directory / "adapters" / f"{also}.onnx_adapter", scale=0.0)
    with pytest.raises(StartError, match=message) as caught:
        load_model(parse_config(["--model-dir", str(directory), "--default-adapter", name], {}))
    assert caught.value.reason is Reason.UNFIT


def test_a_model_without_adapters_has_no_default() -> None:
    config = parse_config(["--model-dir", str(ORDERS / "v1-int4"), "--default-adapter", "local"], {})
    with pytest.raises(StartError, match="has none"):
        load_model(config)
