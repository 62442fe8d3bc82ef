# SPDX-License-Identifier: Apache-2.0
import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmserve.backend import ClosedError, QueueFullError
from slmserve.generation import Finish
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler
from tests.unit.slmserve.doubles import (
    VOCAB,
    Recorder,
    ScriptedEngine,
    build_scheduler,
    expected_answer,
    next_token,
)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def scheduler(engine: ScriptedEngine, recorder: Recorder) -> Iterator[Scheduler]:
    scheduler = build_scheduler(engine, recorder, max_queue=4)
    scheduler.start()
    yield scheduler
    engine.gate.set()
    scheduler.close()


def test_one_request_gets_its_tokens(scheduler: Scheduler, recorder: Recorder) -> None:
    generation = recorder.make([1, 2, 3], 5)
    scheduler.submit(generation)
    recorder.wait(finished=1)
    assert recorder.tokens[generation] == expected_answer([1, 2, 3], 5)
    assert recorder.finishes[generation] is Finish.LENGTH


def test_an_end_token_ends_and_is_reported(scheduler: Scheduler, recorder: Recorder) -> None:
    answer = expected_answer([4, 4], 6)
    generation = recorder.make([4, 4], 50, end_tokens=frozenset({answer[3]}))
    scheduler.submit(generation)
    recorder.wait(finished=1)
    assert recorder.tokens[generation] == answer[: answer.index(answer[3]) + 1]
    assert recorder.finishes[generation] is Finish.END_TOKEN


def test_the_context_ends_an_answer(engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder) -> None:
    prompt = [1] * 60
    generation = recorder.make(prompt, 1000)
    scheduler.submit(generation)
    recorder.wait(finished=1)
    # The last token needs no place in the cache: nothing follows it.
    assert len(recorder.tokens[generation]) == engine.max_length - len(prompt) + 1
    assert recorder.finishes[generation] is Finish.LENGTH


def test_idle_rows_are_not_computed(engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder) -> None:
    engine.gate.clear()
    for count in (3, 9, 20):
        scheduler.submit(recorder.make([count], count))
    engine.gate.set()
    recorder.wait(finished=3)
    assert len(engine.batches) <= 21
    assert engine.batches[-8:] == [1] * 8
    assert max(engine.batches) == 3


def test_a_long_prompt_is_prefilled_between_decode_steps(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    first = recorder.make([5], 40)
    scheduler.submit(first)
    recorder.wait(tokens=2)
    long = recorder.make(list(range(30)), 3)
    scheduler.submit(long)
    recorder.wait(finished=2)
    assert max(engine.prefills) <= engine.prefill_chunk
    joined = recorder.order.index(long)
    # 30 tokens are four chunks: the other request got a token between each two of them.
    assert recorder.order[:joined].count(first) >= 2 + 3
    assert recorder.tokens[long] == expected_answer(list(range(30)), 3)
    assert recorder.tokens[first] == expected_answer([5], 40)


_request = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 12)
)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(_request, min_size=1, max_size=12), slots=st.integers(1, 4), chunk=st.integers(1, 9))
def test_any_mix_of_requests_gets_the_answers_of_one_at_a_time(
    requests: list[tuple[list[int], int, int]], slots: int, chunk: int
) -> None:
    engine = ScriptedEngine(slots=slots, prefill_chunk=chunk)
    recorder = Recorder()
    scheduler = build_scheduler(engine, recorder)
    generations = []
    for prompt, count, leaves_after in requests:
        generation = recorder.make(prompt, count)
        if leaves_after:
            recorder.cancel_after[generation] = leaves_after
        generations.append(generation)
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=len(generations))
    scheduler.close()
    for generation, (prompt, count, leaves_after) in zip(generations, requests, strict=True):
        got = recorder.tokens[generation]
        assert got == expected_answer(prompt, len(got))
        if leaves_after and leaves_after < count - 1:
            assert recorder.finishes[generation] is Finish.CANCELLED
            # A first token is delivered before the round's decode step, which may add one more.
            assert leaves_after <= len(got) <= leaves_after + (leaves_after == 1)
        elif leaves_after and leaves_after < count:
            assert len(got) >= leaves_after
        else:
            assert len(got) == count
    assert scheduler.busy == scheduler.queue_depth == 0


def test_a_full_queue_refuses(engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder) -> None:
    engine.gate.clear()
    for _ in range(engine.slots + 4):
        scheduler.submit(recorder.make([1], 2))
    with pytest.raises(QueueFullError):
        scheduler.submit(recorder.make([1], 2))
    engine.gate.set()
    recorder.wait(finished=engine.slots + 4)
    scheduler.submit(recorder.make([1], 2))
    recorder.wait(finished=engine.slots + 5)


def test_cancelled_while_waiting_never_runs(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    engine.gate.clear()
    running = recorder.make([1], 2)
    scheduler.submit(running)
    waiting = recorder.make([2] * 7, 2)
    scheduler.submit(waiting)
    waiting.cancel()
    engine.gate.set()
    recorder.wait(finished=2)
    assert recorder.finishes[waiting] is Finish.CANCELLED
    assert 7 not in engine.prefills
    assert recorder.tokens[running] == expected_answer([1], 2)


def test_a_failed_prefill_costs_only_its_request(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    good = recorder.make([1], 30)
    scheduler.submit(good)
    recorder.wait(tokens=1)
    engine.broken.add("prefill")
    bad = recorder.make([9], 3)
    scheduler.submit(bad)
    recorder.wait(finished=2)
    assert recorder.finishes[bad] is Finish.ERROR
    assert recorder.tokens[good] == expected_answer([1], 30)


def test_a_row_that_cannot_be_moved_leaves_nobody_waiting(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    engine.gate.clear()
    short, long = recorder.make([1], 3), recorder.make([2], 30)
    scheduler.submit(short)
    scheduler.submit(long)
    engine.broken.add("move")
    engine.gate.set()
    recorder.wait(finished=2)  # the row of the long one is to take the place of the short one's
    assert recorder.tokens[short] == expected_answer([1], 3)
    assert recorder.finishes == {short: Finish.LENGTH, long: Finish.ERROR}
    engine.broken.clear()
    last = recorder.make([3], 3)
    scheduler.submit(last)
    recorder.wait(finished=3)
    assert recorder.tokens[last] == expected_answer([3], 3)


def test_a_prompt_whose_row_cannot_be_moved_leaves_nobody_waiting(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    engine.gate.clear()
    prompts = [recorder.make([n] * 20, 30, arrived=n) for n in (1, 2, 3)]
    for generation in prompts:
        scheduler.submit(generation)
    engine.broken.add("move")
    engine.gate.set()
    recorder.wait(finished=3)
    assert scheduler.busy == scheduler.queue_depth == 0


def test_failed_steps_fail_requests_and_repeated_ones_health(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    engine.broken.add("decode")
    for count in range(1, 4):
        scheduler.submit(recorder.make([count], 3))
        recorder.wait(finished=count)
    assert set(recorder.finishes.values()) == {Finish.ERROR}
    # One prefill in between succeeds each time: the engine counts as alive until nothing works.
    engine.broken.add("prefill")
    for count in range(4, 8):
        scheduler.submit(recorder.make([count], 3))
        recorder.wait(finished=count)
    assert not scheduler.is_healthy(stuck_seconds=60)
    engine.broken.clear()
    last = recorder.make([1], 3)
    scheduler.submit(last)
    recorder.wait(finished=8)
    assert recorder.tokens[last] == expected_answer([1], 3)
    assert scheduler.is_healthy(stuck_seconds=60)


def test_logits_that_are_no_numbers_end_only_their_row(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder
) -> None:
    engine.gate.clear()
    first, second = recorder.make([1], 20), recorder.make([2], 20)
    scheduler.submit(first)
    scheduler.submit(second)
    engine.poisoned.add(1)
    engine.gate.set()
    recorder.wait(finished=2)
    assert recorder.finishes[second] is Finish.ERROR
    assert recorder.tokens[first] == expected_answer([1], 20)


def test_a_step_that_hangs_is_seen(engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder) -> None:
    assert scheduler.is_healthy(stuck_seconds=5)
    engine.gate.clear()
    scheduler.submit(recorder.make([1], 2))
    deadline = time.monotonic() + 5
    while scheduler.is_healthy(stuck_seconds=0.2) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not scheduler.is_healthy(stuck_seconds=0.2)
    engine.gate.set()
    recorder.wait(finished=1)
    assert scheduler.is_healthy(stuck_seconds=5)


def test_closing_ends_everything(engine: ScriptedEngine, recorder: Recorder) -> None:
    scheduler = build_scheduler(engine, recorder)
    running = [recorder.make([n], 1000) for n in range(1, 9)]
    for generation in running:
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(tokens=3)
    scheduler.close()
    recorder.wait(finished=len(running))
    assert set(recorder.finishes.values()) <= {Finish.CANCELLED, Finish.LENGTH}
    assert not scheduler.is_healthy(stuck_seconds=60)
    with pytest.raises(ClosedError):
        scheduler.submit(recorder.make([1], 1))


def test_each_request_samples_by_its_own_seed(scheduler: Scheduler, recorder: Recorder) -> None:
    hot = [recorder.make([3], 12, sampling=SamplingParams(temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    for generation in hot:
        scheduler.submit(generation)
    recorder.wait(finished=3)
    first, same, other = (recorder.tokens[g] for g in hot)
    assert first == same
    assert first != other


def test_the_arithmetic_model_depends_on_order() -> None:
    assert next_token([1, 2]) != next_token([2, 1])


class Even:
    """Only even tokens may come; remembers what was chosen."""

    def __init__(self, *, vocab: int = VOCAB) -> None:
        self.accepted: list[int] = []
        self._mask: NDArray[np.bool_] = np.array([token % 2 == 0 for token in range(vocab)])

    def allowed(self) -> NDArray[np.bool_] | None:
        return self._mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


class Free(Even):
    """Every token may come."""

    def allowed(self) -> NDArray[np.bool_] | None:
        return None


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=1.0, seed=4)])
def test_a_constraint_masks_its_own_row_only(
    engine: ScriptedEngine, scheduler: Scheduler, recorder: Recorder, sampling: SamplingParams
) -> None:
    even = Even(vocab=VOCAB + 31)  # A mask may be as wide as the tokenizer, the model narrower or as wide.
    engine.gate.clear()
    bound = recorder.make([1, 2], 15, sampling=sampling, constraint=even)
    free = recorder.make([1, 2], 15, constraint=Free())
    plain = recorder.make([3], 15)
    for generation in (bound, free, plain):
        scheduler.submit(generation)
    engine.gate.set()
    recorder.wait(finished=3)
    assert all(token % 2 == 0 for token in recorder.tokens[bound])
    assert even.accepted == recorder.tokens[bound]
    assert recorder.tokens[free] == expected_answer([1, 2], 15)
    assert recorder.tokens[plain] == expected_answer([3], 15)
    # Where the model's choice was allowed it was kept.
    for index, token in enumerate(recorder.tokens[bound]):
        wanted = next_token([1, 2, *recorder.tokens[bound][:index]])
        assert sampling.temperature or token == (wanted if wanted % 2 == 0 else 0)


def test_log_probabilities_come_with_their_tokens(scheduler: Scheduler, recorder: Recorder) -> None:
    asked = recorder.make([1, 2], 6, top_logprobs=3, constraint=Even())
    own_only = recorder.make([1, 2], 6, top_logprobs=0)
    without = recorder.make([1, 2], 6)
    for generation in (asked, own_only, without):
        scheduler.submit(generation)
    recorder.wait(finished=3)
    # One logit is 1 and the others are 0.
    total = math.log(math.e + VOCAB - 1)
    history = [1, 2]
    for token, logprobs in zip(recorder.tokens[asked], recorder.logprobs[asked], strict=True):
        assert logprobs is not None
        best = next_token(history)
        # Before the constraint: what the model wanted is first even where it was not allowed.
        assert logprobs.top[0][0] == best
        assert logprobs.top[0][1] == pytest.approx(1 - total)
        assert [value for _, value in logprobs.top[1:]] == pytest.approx([-total] * 2)
        assert logprobs.chosen == pytest.approx((1 if token == best else 0) - total)
        history.append(token)
    for logprobs in recorder.logprobs[own_only]:
        assert logprobs is not None
        assert not logprobs.top
        assert logprobs.chosen == pytest.approx(1 - total)
    assert recorder.logprobs[without] == [None] * 6
