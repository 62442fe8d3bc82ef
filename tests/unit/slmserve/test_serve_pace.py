# SPDX-License-Identifier: Apache-2.0
"""How prompts share the engine with each other and with running answers; all times are counted."""

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmserve.generation import Generation
from slmserve.pace import Pace
from tests.unit.slmserve.doubles import Recorder, ScriptedEngine, build_scheduler, expected_answer


class HookedEngine(ScriptedEngine):
    """Calls `before` with the number of the prefill, on the engine's thread."""

    before: Callable[[int], None] = staticmethod(lambda _: None)

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        self.before(len(self.prefills))
        return super().prefill(row, tokens, offset)


def _engine(*, seconds_per_token: float, slots: int = 4) -> HookedEngine:
    return HookedEngine(
        slots=slots, max_length=2048, prefill_chunk=256, spare_rows=1, seconds_per_token=seconds_per_token
    )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.mark.parametrize(("seconds_per_token", "most"), [(0.0, 256), (0.001, 120), (0.004, 30), (0.1, 16)])
def test_a_running_answer_waits_for_a_bounded_time(
    recorder: Recorder, seconds_per_token: float, most: int
) -> None:
    engine = _engine(seconds_per_token=seconds_per_token)
    scheduler = build_scheduler(engine, recorder)
    running, long = recorder.make([5], 200, arrived=0.0), recorder.make([7] * 600, 2, arrived=0.0)
    other = recorder.make([8] * 500, 2, arrived=0.0)

    def come(count: int) -> None:
        for generation in (long, other) if count == 0 else ():
            scheduler.submit(generation)

    engine.before = come
    scheduler.submit(running)
    scheduler.start()
    recorder.wait(finished=3)
    scheduler.close()
    # Prompt tokens between each two decode steps, from the first of these on.
    between = [sum(run) for decoding, run in groupby(engine.calls, lambda n: n == 0) if not decoding][1:]
    assert max(between) == most
    assert sum(between) == 1100
    assert recorder.tokens[long] == expected_answer([7] * 600, 2)
    assert recorder.tokens[other] == expected_answer([8] * 500, 2)


def test_a_short_prompt_overtakes_a_long_one(recorder: Recorder) -> None:
    engine = _engine(seconds_per_token=0.002)
    scheduler = build_scheduler(engine, recorder)
    long = recorder.make([7] * 1000, 3, arrived=0.0)
    short = recorder.make([8] * 20, 3, arrived=0.3)
    engine.before = lambda count: scheduler.submit(short) if count == 1 else None
    scheduler.submit(long)
    scheduler.start()
    recorder.wait(finished=2)
    scheduler.close()
    # Alone the long one gets whole chunks; the second has begun when the short one comes.
    assert engine.prefills[:3] == [256, 256, 20]
    assert recorder.order[:3] == [short] * 3
    assert recorder.tokens[long] == expected_answer([7] * 1000, 3)


def test_prompts_that_wait_for_each_other_come_in_small_chunks(recorder: Recorder) -> None:
    engine = _engine(seconds_per_token=0.002)
    scheduler = build_scheduler(engine, recorder)
    for token in (7, 8):
        scheduler.submit(recorder.make([token] * 600, 1, arrived=0.0))
    scheduler.start()
    recorder.wait(finished=2)
    scheduler.close()
    # The first call is small, since nothing is known of the speed; alone, the last has no need to be.
    assert engine.prefills[0] == 16
    assert engine.prefills[1:11] == [60] * 9 + [44]
    assert engine.prefills[11:] == [256, 256, 88]


def test_a_prompt_waits_for_the_part_that_another_is_computing(recorder: Recorder) -> None:
    engine = _engine(seconds_per_token=0.002)
    scheduler = build_scheduler(engine, recorder)
    system = [number % 90 for number in range(400)]
    long = recorder.make([*system, *[5] * 500], 1, arrived=0.0)
    short = recorder.make([*system, 6, 6], 1, arrived=0.3)
    engine.before = lambda count: scheduler.submit(short) if count == 0 else None
    scheduler.submit(long)
    scheduler.start()
    recorder.wait(finished=2)
    scheduler.close()
    assert recorder.order == [short, long]
    assert (short.cached_tokens, long.cached_tokens) == (400, 0)
    # The long one computes the common part and no more, then the short one its own two tokens.
    assert engine.prefills[:5] == [256, 60, 60, 24, 2]
    assert sum(engine.prefills) == 902


def test_no_stream_of_short_prompts_starves_a_long_one(recorder: Recorder) -> None:
    engine = _engine(seconds_per_token=0.002, slots=3)
    scheduler = build_scheduler(engine, recorder)
    long = recorder.make([7] * 400, 1, arrived=0.0)
    shorts: list[Generation] = []

    def come(_: int) -> None:
        if len(shorts) < 100:
            shorts.append(recorder.make([len(shorts) % 90] * 30, 1, arrived=engine.now))
            scheduler.submit(shorts[-1])

    engine.before = come
    scheduler.submit(long)
    scheduler.start()
    recorder.wait(finished=101)
    scheduler.close()
    # Its work takes 0.8 s, so those that come later than that wait behind it: 13 of 0.06 s each.
    assert recorder.order.index(long) <= 15
    assert [g for g in recorder.order if g is not long] == shorts


@given(
    calls=st.lists(st.tuples(st.integers(1, 512), st.floats(0, 10)), max_size=20),
    most_tokens=st.integers(1, 512),
)
def test_the_budget_stays_in_its_bounds(calls: list[tuple[int, float]], most_tokens: int) -> None:
    pace = Pace(most_tokens=most_tokens)
    for tokens, seconds in calls:
        pace.record(tokens=tokens, seconds=seconds)
    assert min(16, most_tokens) <= pace.budget <= most_tokens
    if pace.budget > 16:
        assert pace.budget * pace.token_seconds <= 0.12 + 1e-9


@given(left=st.integers(1, 600), spent=st.integers(0, 256), budget=st.integers(1, 256))
def test_cuts_fit_and_begin(left: int, spent: int, budget: int) -> None:
    pace = Pace(most_tokens=256)
    cut = pace.cut(left=left, spent=min(spent, budget), budget=budget)
    assert 0 <= cut <= min(left, budget - min(spent, budget))
    assert pace.cut(left=left, spent=0, budget=budget) > 0
