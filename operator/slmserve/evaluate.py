# SPDX-License-Identifier: Apache-2.0
"""`python -m slmserve.evaluate`: measure a model on this device, through the server's own backend.

Speed and memory come first, with one request at a time; then the golden set is answered greedily; then the
perplexity of the expected answers is measured: each is generated once more with a constraint that allows
its next token only, and the log probabilities of those tokens are taken, which engines give before the
constraint is applied. So this works with every engine that has both capabilities.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from slmserve.answers import GenerationFailedError, build_deliver
from slmserve.backend import Backend
from slmserve.config import ConfigError, parse_config
from slmserve.errors import StartError
from slmserve.golden import GoldenCase, GoldenError, answer_case, load_cases
from slmserve.journal import describe_exception, setup_logging, write_termination
from slmserve.measurements import (
    Likelihood,
    Speed,
    measure_likelihood,
    measure_speed,
    measure_window,
    peak_memory_bytes,
)
from slmserve.model import LoadedModel, load_model
from slmserve.sandbox import confine
from slmwire.jobs import ANSWERS_FILE, DATASET_DIR, EvaluateReport, to_message
from slmwire.paths import GOLDEN_FILE, TERMINATION_LOG
from slmwire.reasons import Reason, Termination

Result = TypeVar("Result")
_log = logging.getLogger("slmserve.evaluate")
TEXT_FILE: Final = "text.txt"
DEFAULT_DEADLINE_SECONDS: Final = 1800.0
MAX_TEXT_TOKENS: Final = 2048
_SPEED_SHARE: Final = 0.25
"""Of the deadline, at most, for the first part."""


class _Clock:
    """How much of the deadline is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.expired = False
        """Whether some measurement was cut short."""

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    async def gather(
        self, jobs: Sequence[Coroutine[Any, Any, Result]], *, at_once: int
    ) -> list[Result | None]:
        """Results of these coroutines as far as they came by the deadline, None for the others."""
        gate = asyncio.Semaphore(at_once)

        async def run(job: Coroutine[Any, Any, Result]) -> Result:
            async with gate:
                return await job

        tasks = [asyncio.ensure_future(run(job)) for job in jobs]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=self.left)
            self.expired = self.expired or bool(pending)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        for job in jobs:
            job.close()  # those that never began
        return [None if task.cancelled() else task.result() for task in tasks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What is asked, and a plain text (empty: none)."""

    cases: tuple[GoldenCase, ...]
    text: str


def load_dataset(folder: Path) -> Dataset:
    """Read golden.jsonl and text.txt; raises GoldenError that names file and line."""
    path = folder / TEXT_FILE
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise GoldenError(f"{TEXT_FILE} line {line}: it is not UTF-8; save it as UTF-8") from None
    cases = tuple(load_cases(folder))
    if not cases and not text.strip():
        raise GoldenError(f"{folder} has neither cases in {GOLDEN_FILE} nor a {TEXT_FILE}; add one of them")
    return Dataset(cases=cases, text=text)


async def evaluate(
    model: LoadedModel, dataset: Dataset, *, deadline_seconds: float, answers_file: Path | None
) -> EvaluateReport:
    """All measurements that the engine can do and the deadline leaves time for.

    What was cut short says so in `details`: `deadlineReached`, and how many cases there are. `samples` is
    how many were answered.
    """
    clock = _Clock(deadline_seconds)
    if model.build_backend is None:
        raise StartError(
            Reason.UNFIT, "the model gives vectors and generates no text; it cannot be evaluated"
        )
    backend = model.build_backend(max(64, 2 * model.engine.slots), build_deliver(asyncio.get_running_loop()))
    backend.start()
    try:
        speed = await _measure_speed(model, backend, dataset, clock)
        memory = peak_memory_bytes()
        answers = await _answer_all(model, backend, dataset.cases, clock)
        likelihoods = await _measure_answers(model, backend, dataset.cases, clock)
        text = await _measure_text(model, backend, dataset.text, clock)
    finally:
        await asyncio.to_thread(backend.close)
    answered = [(c, a) for c, a in zip(dataset.cases, answers, strict=True) if a is not None]
    if answers_file is not None and answered:
        _write_answers(answers_file, answered)
    engine = model.engine
    right = sum(case.accepts(answer) for case, answer in answered)
    details: dict[str, Any] = {
        "engineVersion": engine.version,
        "cases": len(dataset.cases),
        "contextLength": engine.max_length,
        "digest": model.digest,
    }
    if text is not None:
        details["textPerplexity"] = round(text.perplexity, 6)
    if clock.expired:
        details["deadlineReached"] = True
    return EvaluateReport(
        engine=engine.name,
        samples=len(answered),
        exact_match=right / len(answered) if answered else None,
        perplexity=likelihoods.perplexity if likelihoods else None,
        prompt_tokens_per_second=speed.prompt_tokens_per_second if speed else None,
        decode_tokens_per_second=speed.decode_tokens_per_second if speed else None,
        first_token_seconds=speed.first_token_seconds if speed else None,
        memory_bytes=memory,
        cache_bytes_per_token=engine.cache_bytes_per_token,
        size_bytes=sum(path.stat().st_size for path in model.directory.rglob("*") if path.is_file()),
        details=details,
    )


async def _measure_speed(
    model: LoadedModel, backend: Backend, dataset: Dataset, clock: _Clock
) -> Speed | None:
    part = clock.left * _SPEED_SHARE
    try:
        async with asyncio.timeout(clock.left):
            return await measure_speed(model, backend, dataset.cases, text=dataset.text, limit_seconds=part)
    except TimeoutError:
        clock.expired = True
        return None


async def _answer_all(
    model: LoadedModel, backend: Backend, cases: Sequence[GoldenCase], clock: _Clock
) -> list[str | None]:
    """Answers in the order of the cases; empty text for none, None where time was up."""

    async def answer(case: GoldenCase) -> str:
        return await answer_case(case, model, backend) or ""

    return await clock.gather([answer(case) for case in cases], at_once=2 * model.engine.slots)


async def _measure_answers(
    model: LoadedModel, backend: Backend, cases: Sequence[GoldenCase], clock: _Clock
) -> Likelihood | None:
    jobs = [measure_likelihood(model, backend, case) for case in cases]
    return _joined(await clock.gather(jobs, at_once=2 * model.engine.slots))


async def _measure_text(model: LoadedModel, backend: Backend, text: str, clock: _Clock) -> Likelihood | None:
    """Of a plain text in windows as long as the context; the first token of each is given."""
    # A text of any length is cut before it is read: what no token of it can reach.
    beginning = text[: MAX_TEXT_TOKENS * model.codec.longest_token]
    tokens = model.codec.encode(beginning, add_special_tokens=False)[:MAX_TEXT_TOKENS]
    width = model.engine.max_length
    windows = [tokens[start : start + width] for start in range(0, len(tokens), width)]
    jobs = [
        measure_window(model, backend, prompt=window[:1], forced=window[1:])
        for window in windows
        if len(window) > 1
    ]
    return _joined(await clock.gather(jobs, at_once=2 * model.engine.slots))


def _joined(parts: Sequence[Likelihood | None]) -> Likelihood | None:
    found = [part for part in parts if part is not None]
    return Likelihood.joined(found) if found else None


def _write_answers(path: Path, answered: Sequence[tuple[GoldenCase, str]]) -> None:
    """For a custom scorer: one JSON object for each case."""
    if not path.parent.is_dir():
        _log.info("no folder %s: the answers are not kept", path.parent)
        return
    rows = [
        {
            "messages": [message.to_template() for message in case.messages],
            "expected": case.expected,
            "answer": answer,
        }
        for case, answer in answered
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="slmserve.evaluate",
        description="Measure a model on this device. Other options are those of slmserve (--model-dir, "
        "--engine, --threads, --slots, --context-length); --slots is 1 by default.",
    )
    parser.add_argument("--dataset", type=Path, default=Path(DATASET_DIR), help="default %(default)s")
    parser.add_argument("--deadline-seconds", type=float, default=DEFAULT_DEADLINE_SECONDS)
    parser.add_argument("--answers-file", type=Path, default=Path(ANSWERS_FILE), help="default %(default)s")
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG))
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 1 the model or the dataset cannot be used, 2 bad settings."""
    setup_logging()
    options, rest = _parse(sys.argv[1:] if argv is None else argv)
    try:
        environ = {"SLM_SLOTS": "1"} | dict(os.environ)
        config = replace(parse_config(rest, environ), evaluate=False)
        if options.deadline_seconds <= 0:
            raise ConfigError(f"--deadline-seconds is {options.deadline_seconds}; it must be above 0")
    except ConfigError as error:
        _log.error("%s", error)
        return 2
    reason, message = Reason.INTERNAL_ERROR, ""
    try:
        confine(config.sandbox)
        began = time.monotonic()
        dataset = load_dataset(options.dataset)
        model = load_model(config)
        left = options.deadline_seconds - (time.monotonic() - began)
        report = asyncio.run(
            evaluate(model, dataset, deadline_seconds=max(1.0, left), answers_file=options.answers_file)
        )
        text = to_message(report)
        sys.stdout.write(text + "\n")
        write_termination(options.termination_log, text)
        return 0
    except StartError as error:
        reason, message = error.reason, str(error)
    except GoldenError as error:
        reason, message = Reason.UNFIT, f"the dataset cannot be used: {error}"
    except GenerationFailedError:
        reason, message = Reason.UNFIT, "the engine failed while it generated; its log says why"
    except Exception as error:
        message = describe_exception(error)
    _log.error("not evaluated: %s", message, extra={"fields": {"reason": reason}})
    write_termination(options.termination_log, Termination(reason=reason, message=message).to_json())
    return 1


if __name__ == "__main__":
    sys.exit(main())
