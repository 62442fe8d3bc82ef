# SPDX-License-Identifier: Apache-2.0
"""Measuring a model through the server's own backend: the real engine, and engines that fail."""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from slmserve.answers import build_deliver
from slmserve.backend import Capability
from slmserve.config import ServerConfig, parse_config
from slmserve.engines.onnx_slots import load_engine
from slmserve.evaluate import Dataset, evaluate, load_dataset, main
from slmserve.export import load_export
from slmserve.generation import Generation
from slmserve.golden import GoldenError, encode_prompt, load_cases
from slmserve.measurements import Forced, Likelihood, measure_window, peak_memory_bytes, run_steps
from slmserve.model import LoadedModel, load_model
from slmserve.sampling import SamplingParams
from slmserve.tokenizer import TextCodec
from slmwire.jobs import EvaluateReport, parse_report
from slmwire.reasons import parse_termination
from tests.unit.slmserve.process import ORDERS

TEXT = "two lattes and a bagel to table four, please. " * 20


def settings(model_dir: Path, *, slots: int = 4) -> ServerConfig:
    arguments = ["--model-dir", str(model_dir), "--slots", str(slots), "--threads", "1"]
    return parse_config(arguments, {})


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(settings(ORDERS / "v3-fp32"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    lines = (ORDERS / "v3-fp32" / "golden.jsonl").read_text().splitlines()[:24]
    (folder / "golden.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "text.txt").write_text(TEXT)
    return folder


def forced_logprobs(model: LoadedModel, prompt: list[int], forced: list[int]) -> float:
    """The sum of log probabilities, computed from the engine's logits alone."""
    engine = load_engine(model.directory, load_export(model.directory), slots=1, context_length=0, threads=1)
    total, logits, length = 0.0, engine.prefill(0, np.array(prompt), 0), len(prompt)
    for token in forced:
        row = logits.reshape(-1).astype(np.float64)
        total += row[token] - (row.max() + math.log(np.exp(row - row.max()).sum()))
        logits = engine.decode(np.array([token]), np.array([length]))
        length += 1
    return total


def run(model: LoadedModel, dataset: Dataset, **options: Any) -> EvaluateReport:
    values = {"deadline_seconds": 60.0, "answers_file": None} | options
    return asyncio.run(evaluate(model, dataset, **values))


def test_every_quantity_is_measured(model: LoadedModel, dataset: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    report = run(model, load_dataset(dataset), answers_file=answers)
    assert (report.engine, report.samples, report.details["cases"]) == ("onnxruntime", 24, 24)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    cases = load_cases(dataset)
    assert [row["expected"] for row in rows] == [case.expected for case in cases]
    assert rows[0]["messages"] == [{"role": "user", "content": cases[0].messages[0].content}]
    right = sum(case.accepts(row["answer"]) for case, row in zip(cases, rows, strict=True))
    assert report.exact_match == right / 24
    assert 0.3 < report.exact_match < 1  # v3 loses the modifiers
    for value in (
        report.prompt_tokens_per_second,
        report.decode_tokens_per_second,
        report.first_token_seconds,
    ):
        assert value is not None
        assert value > 0
    assert report.memory_bytes == pytest.approx(peak_memory_bytes(), rel=0.2)
    assert report.cache_bytes_per_token == 3 * 2 * 2 * 32 * 4  # layers, key and value, heads, size, bytes
    assert report.size_bytes == sum(path.stat().st_size for path in model.directory.iterdir())
    assert "deadlineReached" not in report.details
    assert report.perplexity is not None
    assert report.details["textPerplexity"] > report.perplexity


def test_a_long_text_is_not_tokenised_whole(model: LoadedModel) -> None:
    read: list[int] = []

    class Witness(TextCodec):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            read.append(len(text))
            return super().encode(text, add_special_tokens=add_special_tokens)

    codec = Witness(Tokenizer.from_file(str(model.directory / "tokenizer.json")))
    report = run(replace(model, codec=codec), Dataset(cases=(), text="one tea and " * 100_000))
    assert max(read) < 100_000
    assert report.details["textPerplexity"] > 1


def test_perplexity_is_that_of_the_logits(model: LoadedModel, dataset: Path) -> None:
    cases = load_cases(dataset)
    total, tokens = 0.0, 0
    (end,) = model.defaults.end_tokens
    for case in cases:
        prompt = encode_prompt(case, model)
        assert prompt is not None
        forced = [*model.codec.encode(case.expected, add_special_tokens=False), end]
        total, tokens = total + forced_logprobs(model, prompt, forced), tokens + len(forced)
    report = run(model, Dataset(cases=tuple(cases), text=""))
    expected = math.exp(-total / tokens)
    assert expected > 1.01
    assert report.perplexity == pytest.approx(expected, rel=1e-3)
    assert "textPerplexity" not in report.details


def test_text_goes_in_windows_of_the_context(dataset: Path) -> None:
    short = load_model(replace(settings(ORDERS / "v3-fp32"), context_length=32))
    report = run(short, Dataset(cases=(), text=TEXT))
    tokens = short.codec.encode(TEXT, add_special_tokens=False)
    windows = [tokens[start : start + 32] for start in range(0, len(tokens), 32)]
    windows = [window for window in windows if len(window) > 1]
    total = sum(forced_logprobs(short, window[:1], window[1:]) for window in windows)
    count = sum(len(window) - 1 for window in windows)
    assert report.details["textPerplexity"] == pytest.approx(math.exp(-total / count), rel=1e-3)
    assert (report.samples, report.exact_match, report.perplexity) == (0, None, None)


@pytest.mark.parametrize("lacking", [Capability.CONSTRAINT, Capability.LOGPROBS])
def test_an_engine_that_cannot_tell_has_no_perplexity(
    model: LoadedModel, dataset: Path, lacking: Capability
) -> None:
    poorer = replace(model, engine=replace(model.engine, capabilities=model.engine.capabilities - {lacking}))
    report = run(poorer, load_dataset(dataset))
    assert (report.perplexity, report.samples) == (None, 24)
    assert "textPerplexity" not in report.details


def test_the_deadline_cuts_and_says_so(model: LoadedModel, dataset: Path) -> None:
    cases = tuple(load_cases(dataset)) * 40
    report = run(model, Dataset(cases=cases, text=TEXT), deadline_seconds=0.2)
    assert report.details["deadlineReached"] is True
    assert report.samples < len(cases) == report.details["cases"]


def test_forced_tokens_include_the_end_of_the_text(model: LoadedModel) -> None:
    (end,) = model.defaults.end_tokens

    async def measure() -> Likelihood | None:
        assert model.build_backend is not None
        backend = model.build_backend(4, build_deliver(asyncio.get_running_loop()))
        backend.start()
        try:
            return await measure_window(model, backend, prompt=[2, 5], forced=[end, 7, end])
        finally:
            backend.close()

    found = asyncio.run(measure())
    assert found is not None
    assert found.tokens == 3
    assert found.log_probability == pytest.approx(forced_logprobs(model, [2, 5], [end, 7, end]), abs=1e-3)


def test_the_constraint_allows_one_token_at_a_time() -> None:
    forced = Forced([3, 1], 5)
    masks = []
    for token in (3, 1):
        mask = forced.allowed()
        assert mask is not None
        masks.append(mask.tolist())
        forced.accept(token)
    assert masks == [[False, False, False, True, False], [False, True, False, False, False]]
    assert forced.allowed() is None


def test_a_likelihood_beyond_all_floats_is_finite() -> None:
    assert math.isfinite(Likelihood(log_probability=-math.inf, tokens=2).perplexity)
    joined = Likelihood.joined(
        [Likelihood(log_probability=-2.0, tokens=1), Likelihood(log_probability=0.0, tokens=1)]
    )
    assert joined.perplexity == pytest.approx(math.e)


def test_a_request_that_is_given_up_frees_its_row(model: LoadedModel) -> None:
    async def give_up() -> int:
        assert model.build_backend is not None
        backend = model.build_backend(4, build_deliver(asyncio.get_running_loop()))
        backend.start()
        try:
            inbox: asyncio.Queue[Any] = asyncio.Queue()
            put: Callable[[Any], None] = inbox.put_nowait
            generation = Generation(
                [2, 5], max_tokens=250, sampling=SamplingParams(), end_tokens=frozenset(), inbox=put
            )
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await run_steps(backend, generation, inbox)
            assert generation.cancelled
            while (await inbox.get()).finish is None:
                pass
            return backend.busy
        finally:
            backend.close()

    assert asyncio.run(give_up()) == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("golden.jsonl", b'{"messages": [], "expected": "x"}\n', "golden.jsonl line 1"),
        ("golden.jsonl", b'\n{"expected": "x"}\n', "golden.jsonl line 2"),
        ("text.txt", b"good\nbad \xff\n", "text.txt line 2: it is not UTF-8"),
        ("readme", b"", "has neither cases in golden.jsonl nor a text.txt"),
    ],
)
def test_a_broken_dataset_names_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GoldenError, match=words.replace(".", r"\.")):
        load_dataset(tmp_path)


def command(model_dir: Path, dataset: Path, folder: Path, *extra: str) -> tuple[int, str]:
    log = folder / "termination"
    arguments = ["--model-dir", str(model_dir), "--dataset", str(dataset), "--threads", "1"]
    arguments += ["--termination-log", str(log), "--answers-file", str(folder / "absent" / "answers.jsonl")]
    code = main([*arguments, *extra])
    return code, log.read_text() if log.exists() else ""


def test_the_command_reports_in_the_termination_message(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = command(ORDERS / "v2-int4", dataset, tmp_path)
    report = parse_report(text)
    assert code == 0
    assert isinstance(report, EvaluateReport)
    assert report.exact_match == 1
    assert report.perplexity is not None
    assert 1 <= report.perplexity < 1.05
    assert capsys.readouterr().out.splitlines()[-1] == text
    assert len(text.encode()) <= 4096


def test_the_command_says_why_it_cannot(dataset: Path, tmp_path: Path) -> None:
    code, text = command(tmp_path, dataset, tmp_path)
    termination = parse_termination(text)
    assert termination is not None
    assert (code, termination.reason) == (1, "Unfit")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "golden.jsonl").write_text("[]\n")
    code, text = command(ORDERS / "v2-int4", broken, tmp_path)
    termination = parse_termination(text)
    assert termination is not None
    assert (code, termination.reason) == (1, "Unfit")
    assert "the dataset cannot be used: golden.jsonl line 1" in termination.message
    assert command(ORDERS / "v2-int4", dataset, tmp_path, "--deadline-seconds", "0")[0] == 2
