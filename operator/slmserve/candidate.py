# SPDX-License-Identifier: Apache-2.0
"""The child process of `measure`: loads one engine, takes its figures, writes them to a pipe, ends."""

import argparse
import asyncio
import contextlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from slmserve.answers import build_deliver
from slmserve.backend import Backend
from slmserve.engines.registry import EngineModule, EngineOptions
from slmserve.errors import StartError
from slmserve.generation import Generation, Step
from slmserve.golden import GoldenCase, GoldenError, load_cases, run_golden
from slmserve.journal import describe_exception
from slmserve.model import LoadedModel
from slmserve.sampling import SamplingParams
from slmserve.template import load_template
from slmserve.tokenizer import load_codec
from slmwire.choice import EngineMeasurement

PROMPT_TOKENS: Final = 64
NEW_TOKENS: Final = 32
STREAMS: Final = 4
GOLDEN_CASES: Final = 16
_TEXT: Final = "The quick brown fox jumps over the lazy dog near the river bank, and then it rests. "
_WORK_SHARE: Final = 0.9
"""Of the time that is given: the rest is for the process to start and to report."""
_REPEAT_SECONDS: Final = 0.5
_SHARES: Final = (0.25, 0.5)
"""Of the time after loading: one stream until the first, four until the second, then the golden set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Arguments are the engine's module, the model directory and the task in JSON."""
    parser = argparse.ArgumentParser(prog="slmserve.candidate", description=__doc__)
    for name in ("module", "model_dir", "task"):
        parser.add_argument(name)
    given = parser.parse_args(argv)
    task = json.loads(given.task)
    seconds, memory_bytes, pipe = task.pop("seconds"), task.pop("memory_bytes"), task.pop("pipe")
    deadline = time.monotonic() + seconds * _WORK_SHARE
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if memory_bytes:
        # Of private memory: weights that are mapped from their file can be dropped and do not count.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    result = _measure(given.module, Path(given.model_dir), EngineOptions(**task), deadline)
    os.write(pipe, json.dumps(asdict(result)).encode())
    # No tidy end: a library that hangs in its own shut-down has nothing to do with its figures.
    os._exit(0)


def _measure(module_name: str, model_dir: Path, options: EngineOptions, deadline: float) -> EngineMeasurement:
    try:
        module: EngineModule = importlib.import_module(module_name)
        loaded = module.load(model_dir, options)
        if loaded.build_backend is None:
            return EngineMeasurement(error="the engine gives vectors and generates no text")
        model = LoadedModel(
            directory=model_dir,
            engine=loaded.info,
            defaults=loaded.defaults,
            build_backend=loaded.build_backend,
            codec=load_codec(model_dir),
            template=load_template(model_dir),
            digest="",
        )
        return asyncio.run(_run(model, deadline))
    except StartError as error:
        return EngineMeasurement(error=str(error)[:600])
    except MemoryError:
        return EngineMeasurement(error="not enough memory")
    except Exception as error:
        return EngineMeasurement(error=describe_exception(error))


async def _run(model: LoadedModel, deadline: float) -> EngineMeasurement:
    assert model.build_backend is not None  # asked before the model was loaded
    backend = model.build_backend(STREAMS + GOLDEN_CASES, build_deliver(asyncio.get_running_loop()))
    backend.start()
    left = deadline - time.monotonic()
    ends = [deadline - left * (1 - share) for share in _SHARES]
    one = await _best(model, backend, 1, ends[0])
    four = await _best(model, backend, STREAMS, ends[1])
    score, samples = await _score(model, backend, deadline)
    return EngineMeasurement(
        decode_tokens_per_second=one.decode,
        aggregate_tokens_per_second=four.aggregate,
        prefill_tokens_per_second=one.prefill,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        golden_score=score,
        golden_samples=samples,
        error="" if one.decode and four.aggregate else "fewer than two tokens within the time",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    prefill: float | None
    decode: float | None
    aggregate: float | None


def _rate(tokens: int, seconds: float) -> float | None:
    rate = tokens / seconds if tokens > 0 and seconds > 0 else 0.0
    return round(rate, 1) if rate and math.isfinite(rate) else None


async def _best(model: LoadedModel, backend: Backend, streams: int, end: float) -> _Rates:
    """The best rates of as many runs as fit in half a second, at least one.

    A small model is done in milliseconds, of which anything else on the machine can take most.
    """
    until = min(end, time.monotonic() + _REPEAT_SECONDS)
    runs = [await _generate(model, backend, streams, 0, end)]
    while time.monotonic() < until:
        runs.append(await _generate(model, backend, streams, len(runs), end))
    return _Rates(
        prefill=max(run.prefill or 0.0 for run in runs) or None,
        decode=max(run.decode or 0.0 for run in runs) or None,
        aggregate=max(run.aggregate or 0.0 for run in runs) or None,
    )


async def _generate(model: LoadedModel, backend: Backend, streams: int, turn: int, end: float) -> _Rates:
    """Rates of so many prompts of one length at once; what is not done at `end` (monotonic) is cut off."""
    ids = model.codec.encode(_TEXT * PROMPT_TOKENS, add_special_tokens=False)
    prompt = ids[: min(PROMPT_TOKENS, model.engine.max_length // 2)]
    most = min(NEW_TOKENS, model.engine.max_length - len(prompt))
    times: list[list[float]] = [[] for _ in range(streams)]
    open_streams = streams
    done = asyncio.Event()

    def take(index: int, step: Step) -> None:
        nonlocal open_streams
        if step.token >= 0:
            times[index].append(step.at)
        if step.finish is not None:
            open_streams -= 1
            if not open_streams:
                done.set()

    generations = []
    for index in range(streams):
        generation = Generation(
            # Not the same prompt twice: an engine that remembers prompts would look faster than it is.
            np.random.default_rng((turn, index)).permutation(prompt),
            max_tokens=most,
            sampling=SamplingParams(),
            end_tokens=frozenset(),
            inbox=partial(take, index),
        )
        generations.append(generation)
    started = time.perf_counter()
    for generation in generations:
        backend.submit(generation)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), max(0.0, end - time.monotonic()))
    for generation in generations:
        generation.cancel()
    every = [at for stream in times for at in stream]
    first = times[0]
    return _Rates(
        prefill=_rate(len(prompt), first[0] - started) if first else None,
        decode=_rate(len(first) - 1, first[-1] - first[0]) if len(first) > 1 else None,
        aggregate=_rate(len(every), max(every) - started) if len(every) > 1 else None,
    )


async def _score(model: LoadedModel, backend: Backend, deadline: float) -> tuple[float | None, int]:
    """Share of the golden cases that time allowed, and how many those were; (None, 0) without cases."""
    cases = _cases(model.directory)
    right, samples = 0.0, 0
    part = max(1, min(STREAMS, model.engine.slots))
    for at in range(0, len(cases), part):
        few = cases[at : at + part]
        try:
            result = await asyncio.wait_for(run_golden(few, model, backend), deadline - time.monotonic())
        except TimeoutError:
            break
        right += result.score * result.samples
        samples += result.samples
    if not cases:
        return None, 0
    return (right / samples if samples else 0.0), samples


def _cases(directory: Path) -> list[GoldenCase]:
    try:
        return load_cases(directory)[:GOLDEN_CASES]
    except GoldenError:  # of the model, not of this engine; the server says it in its log
        return []


if __name__ == "__main__":
    sys.exit(main())
