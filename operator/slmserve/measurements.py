# SPDX-License-Identifier: Apache-2.0
"""Measurements through a backend: speed of one stream, likelihood of given tokens, memory."""

import asyncio
import math
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from slmserve.answers import GenerationFailedError
from slmserve.backend import Backend, Capability
from slmserve.generation import Constraint, Finish, Generation, Step
from slmserve.golden import GoldenCase, encode_prompt
from slmserve.model import LoadedModel
from slmserve.sampling import NOT_A_NUMBER, SamplingParams

PROMPT_TOKENS: Final = 256
"""Of the prompt that speed is measured with; less where the context is short."""
DECODE_TOKENS: Final = 64
ROUNDS: Final = 5
_MOST_PROMPT_SHARE: Final = 0.6
_FALLBACK_TEXT: Final = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one stream, medians over some rounds; None where an engine gave too few tokens to tell."""

    prompt_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    first_token_seconds: float
    """Of the dataset's own prompts where there are some, of the long one else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Sum of the natural logarithms of the probabilities of `tokens` tokens."""

    log_probability: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log probability; at most what a float holds."""
        return math.exp(min(-self.log_probability / self.tokens, 700.0))

    @staticmethod
    def joined(parts: "Sequence[Likelihood]") -> "Likelihood":
        """Of all tokens together."""
        return Likelihood(
            log_probability=sum(part.log_probability for part in parts),
            tokens=sum(part.tokens for part in parts),
        )


class Forced:
    """A `Constraint` that allows the given tokens only, one after the other."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        self._tokens, self._at = list(tokens), 0
        self._mask = np.zeros(vocab_size, bool)

    def allowed(self) -> NDArray[np.bool_] | None:
        """See `Constraint`; after the last token everything is allowed."""
        self._mask[:] = False
        if self._at >= len(self._tokens):
            return None
        self._mask[self._tokens[self._at]] = True
        return self._mask

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        self._at += 1


async def run_steps(backend: Backend, generation: Generation, inbox: "asyncio.Queue[Step]") -> list[Step]:
    """Steps with tokens; raises GenerationFailedError. The generation is cancelled if this is."""
    backend.submit(generation)
    steps = []
    try:
        while True:
            step = await inbox.get()
            if step.finish in (Finish.ERROR, Finish.CANCELLED):
                raise GenerationFailedError
            if step.token != NOT_A_NUMBER:
                steps.append(step)
            if step.finish is not None:
                return steps
    finally:
        generation.cancel()


async def measure_window(
    model: LoadedModel, backend: Backend, *, prompt: Sequence[int], forced: Sequence[int]
) -> Likelihood | None:
    """Likelihood of `forced` after `prompt` (both not empty); None when the engine cannot tell.

    Both together fit into the context.
    """
    needed = {Capability.CONSTRAINT, Capability.LOGPROBS}
    if not needed <= model.engine.capabilities:
        return None
    inbox: asyncio.Queue[Step] = asyncio.Queue()
    constraint: Constraint = Forced(forced, model.engine.vocab_size)
    generation = Generation(
        prompt,
        max_tokens=len(forced),
        sampling=SamplingParams(),
        # An end token among the forced ones must not end it early.
        end_tokens=frozenset(),
        inbox=inbox.put_nowait,
        constraint=constraint,
        adapter=model.default_adapter,
        top_logprobs=0,
    )
    steps = await run_steps(backend, generation, inbox)
    values = [step.logprobs.chosen for step in steps if step.logprobs is not None]
    if [step.token for step in steps] != list(forced) or len(values) != len(forced):
        return None
    return Likelihood(log_probability=float(sum(values)), tokens=len(values))


async def measure_likelihood(model: LoadedModel, backend: Backend, case: GoldenCase) -> Likelihood | None:
    """Likelihood of the expected answer, with the end of the text where the model has one way to end."""
    prompt = encode_prompt(case, model)
    if prompt is None:
        return None
    expected = model.codec.encode(case.expected, add_special_tokens=False)
    if len(model.defaults.end_tokens) == 1:
        expected = [*expected, *model.defaults.end_tokens]
    if not expected or len(prompt) + len(expected) > model.engine.max_length:
        return None
    return await measure_window(model, backend, prompt=prompt, forced=expected)


async def measure_speed(
    model: LoadedModel, backend: Backend, cases: Sequence[GoldenCase], *, text: str, limit_seconds: float
) -> Speed | None:
    """Speed of one stream after a first round that is not counted; None when `limit_seconds` is too short.

    Every round has another prompt, so that no engine can use what it remembers of an earlier one.
    """
    began = time.monotonic()
    tokens = _long_text(model, cases, text)
    length = max(1, min(PROMPT_TOKENS, int(model.engine.max_length * _MOST_PROMPT_SHARE)))
    count = max(2, min(DECODE_TOKENS, model.engine.max_length - length))
    prompt_rates, decode_rates, firsts = [], [], []
    for number in range(ROUNDS + 1):
        start = number * 7919 % len(tokens)
        prompt = [tokens[(start + index) % len(tokens)] for index in range(length)]
        first, later = await _time_one(backend, prompt, count)
        if number or time.monotonic() - began > limit_seconds:
            firsts.append(first)
            prompt_rates.append(length / first)
            if later is not None:
                decode_rates.append(later)
        if time.monotonic() - began > limit_seconds:
            break
    own = []
    for case in cases[: 2 * ROUNDS]:
        own_prompt = encode_prompt(case, model)
        if own_prompt is None or time.monotonic() - began > limit_seconds:
            break
        own.append((await _time_one(backend, own_prompt, 1))[0])
    return Speed(
        prompt_tokens_per_second=statistics.median(prompt_rates),
        decode_tokens_per_second=statistics.median(decode_rates) if decode_rates else None,
        first_token_seconds=statistics.median(own or firsts),
    )


async def _time_one(backend: Backend, prompt: Sequence[int], count: int) -> tuple[float, float | None]:
    """(seconds to the first token, tokens per second after it)."""
    inbox: asyncio.Queue[Step] = asyncio.Queue()
    generation = Generation(
        prompt,
        max_tokens=count,
        sampling=SamplingParams(),
        end_tokens=frozenset(),
        inbox=inbox.put_nowait,
    )
    steps = await run_steps(backend, generation, inbox)
    if not steps:
        raise GenerationFailedError
    span = steps[-1].at - steps[0].at
    rate = (len(steps) - 1) / span if len(steps) > 1 and span > 0 else None
    return max(steps[0].at - generation.arrived, 1e-9), rate


def _long_text(model: LoadedModel, cases: Sequence[GoldenCase], text: str) -> list[int]:
    """Tokens of the dataset, at least as many as a prompt needs."""
    parts = [str(m.to_template().get("content") or "") for case in cases[:200] for m in case.messages]
    tokens = model.codec.encode(" ".join(parts) + text[:20_000], add_special_tokens=False)
    return tokens or model.codec.encode(_FALLBACK_TEXT, add_special_tokens=False) or [0]


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far.

    The kernel's VmHWM where there is /proc: getrusage's value survives exec, so it may be a parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
