# SPDX-License-Identifier: Apache-2.0
"""Our scheduler and engine without HTTP, to compare like with like with a batch in process."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from e2e.bench.serve_client import Timing
from slmserve.engines.onnx_slots import load_engine
from slmserve.export import load_export
from slmserve.generation import Generation, Step
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler


class InsideLoad:
    """A scheduler over `model_dir` with `slots` rows."""

    def __init__(self, model_dir: Path, *, slots: int) -> None:
        export = load_export(model_dir)
        engine = load_engine(model_dir, export, slots=slots, context_length=0, threads=0)
        self._ends = export.end_tokens
        self._scheduler = Scheduler(engine, max_queue=slots, deliver=self._deliver)
        self._scheduler.start()

    def close(self) -> None:
        """End the engine's thread."""
        self._scheduler.close()

    def _deliver(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.generation.inbox(step)

    def run(self, prompts: Sequence[list[int]], new: int, *, concurrency: int) -> list[Timing]:
        """All `prompts`, `concurrency` at a time, `new` tokens each at most."""
        waiting = list(reversed(prompts))
        timings: list[Timing] = []
        ended = threading.Event()
        first: dict[Generation, float] = {}
        start = time.perf_counter()

        def submit() -> None:
            self._scheduler.submit(
                Generation(
                    waiting.pop(),
                    max_tokens=new,
                    sampling=SamplingParams(),
                    end_tokens=self._ends,
                    inbox=take,
                )
            )

        def take(step: Step) -> None:
            generation = step.generation
            first.setdefault(generation, step.at - start)
            if step.finish is None:
                return
            sent = generation.arrived - start
            timings.append(
                Timing(sent=sent, first=first[generation], done=step.at - start, tokens=generation.generated)
            )
            if waiting:
                submit()
            elif len(timings) == len(prompts):
                ended.set()

        for _ in range(min(concurrency, len(prompts))):
            submit()
        ended.wait()
        return timings
