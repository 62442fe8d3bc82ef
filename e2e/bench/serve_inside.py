# SPDX-License-Identifier: Apache-2.0
"""Our scheduler and engine without HTTP, to compare like with like with a batch in process."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from slmserve.engines.onnx_slots import load
from slmserve.engines.registry import EngineOptions
from slmserve.generation import Generation, Step
from slmserve.sampling import SamplingParams


class InsideLoad:
    """A scheduler over `model_dir` with `slots` rows."""

    def __init__(self, model_dir: Path, *, slots: int, threads: int) -> None:
        options = EngineOptions(slots=slots, context_length=0, threads=threads)
        loaded = load(model_dir, options)
        self._ends = loaded.defaults.end_tokens
        assert loaded.build_backend is not None
        self._scheduler = loaded.build_backend(slots, self._deliver)
        self._scheduler.start()

    def close(self) -> None:
        """End the engine's thread."""
        self._scheduler.close()

    def _deliver(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.generation.inbox(step)

    def decoding_rate(self, prompts: Sequence[list[int]], new: int, *, concurrency: int) -> float:
        """Tokens per second while all of `concurrency` requests decode: no prompt, no ramp.

        The prompts come in waves of `concurrency`; of each wave counts the time from the last first
        token to the first end.
        """
        tokens, seconds = 0, 0.0
        for at in range(0, len(prompts), concurrency):
            times = self._wave(prompts[at : at + concurrency], new)
            begin, end = max(t[0] for t in times), min(t[-1] for t in times)
            tokens += sum(1 for stream in times for t in stream if begin < t <= end)
            seconds += end - begin
        return tokens / seconds

    def rate(self, prompts: Sequence[list[int]], new: int) -> float:
        """Generated tokens per second of one wave, from its submission to its last token."""
        begun = time.perf_counter()
        times = self._wave(prompts, new)
        return sum(len(stream) for stream in times) / (max(t[-1] for t in times) - begun)

    def _wave(self, prompts: Sequence[list[int]], new: int) -> list[list[float]]:
        """When each token of each answer came."""
        ended = threading.Semaphore(0)
        times: dict[Generation, list[float]] = {}

        def take(step: Step) -> None:
            times[step.generation].append(step.at)
            if step.finish is not None:
                ended.release()

        for prompt in prompts:
            generation = Generation(
                prompt, max_tokens=new, sampling=SamplingParams(), end_tokens=self._ends, inbox=take
            )
            times[generation] = []
            self._scheduler.submit(generation)
        for _ in prompts:
            ended.acquire()
        return list(times.values())
