# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai's own generator on the same model: one request at a time, or a static batch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from e2e.bench.serve_client import Timing

_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"intra_op_num_threads": 1},
    {"intra_op_num_threads": 2},
    {"intra_op_num_threads": 2, "session.intra_op.allow_spinning": "0"},
)


class Peer:
    """The generator with the session settings that were fastest on `prompts`."""

    def __init__(self, model_dir: Path, prompts: Sequence[list[int]], new: int) -> None:
        self._generators: dict[tuple[int, int], Any] = {}
        trials = []
        for settings in _SETTINGS:
            self._open(model_dir, settings)
            self.one_at_a_time(prompts[:1], 8)
            seconds = min(_seconds(self.one_at_a_time(prompts[:1], new)) for _ in range(2))
            trials.append((seconds, json.dumps(settings)))
        self.settings: dict[str, Any] = json.loads(min(trials)[1])
        self._open(model_dir, self.settings)

    def _open(self, model_dir: Path, settings: dict[str, Any]) -> None:
        config = og.Config(str(model_dir))
        if settings:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": settings}}}))
        self._generators.clear()
        self._model = og.Model(config)

    def one_at_a_time(self, prompts: Sequence[list[int]], new: int) -> list[Timing]:
        """All requests are there at the start; each waits for those before it."""
        return self.batch(prompts, new, size=1)

    def batch(self, prompts: Sequence[list[int]], new: int, *, size: int) -> list[Timing]:
        """Static batches of `size`; with more than one, all prompts have the same length."""
        generator = self._generator(max(len(prompt) for prompt in prompts) + new, size)
        start = time.perf_counter()
        timings = []
        for at in range(0, len(prompts), size):
            timings += _generate(generator, prompts[at : at + size], new, start)
        return timings

    def decoding_rate(self, prompts: Sequence[list[int]], new: int, *, size: int) -> float:
        """Tokens per second from each batch's first token to its end."""
        timings = self.batch(prompts, new, size=size)
        tokens = sum(timing.tokens - 1 for timing in timings)
        return tokens / sum(t.done - t.first for t in timings[::size])

    def _generator(self, length: int, size: int) -> Any:
        """Made once and rewound for each request: making one takes longer than a tiny answer."""
        if (length, size) not in self._generators:
            params = og.GeneratorParams(self._model)
            params.set_search_options(max_length=length, batch_size=size, do_sample=False)
            self._generators[length, size] = og.Generator(self._model, params)
        return self._generators[length, size]


def _generate(generator: Any, prompts: Sequence[list[int]], new: int, start: float) -> list[Timing]:
    generator.rewind_to(0)
    tokens = np.array(prompts, np.int32)
    generator.append_tokens(tokens if len(prompts) > 1 else tokens[0])
    steps, first = 0, 0.0
    while steps < new and not generator.is_done():
        generator.generate_next_token()
        first = first or time.perf_counter() - start
        steps += 1
    done = time.perf_counter() - start
    counts = [len(generator.get_sequence(row)) - tokens.shape[1] for row in range(len(prompts))]
    return [Timing(sent=0.0, first=first, done=done, tokens=count) for count in counts]


def _seconds(timings: Sequence[Timing]) -> float:
    return max(timing.done for timing in timings)


def first_tokens_in_turn(timings: Sequence[Timing], concurrency: int) -> list[float]:
    """As if `concurrency` clients asked a server that takes one request at a time.

    Each client asks again when it has its answer: request i is sent at the end of i - concurrency.
    """
    ends = [0.0] * concurrency + [t.done for t in timings]
    return [t.first - sent for t, sent in zip(timings, ends, strict=False)]
