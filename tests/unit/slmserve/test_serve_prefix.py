# SPDX-License-Identifier: Apache-2.0
"""Prefixes that a row still holds are used again, and never a wrong one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmserve.engines.base import Reuse
from slmserve.generation import Finish, Generation
from slmserve.rows import Rows
from slmserve.sampling import SamplingParams
from slmserve.scheduler import Scheduler
from tests.unit.slmserve.doubles import VOCAB, Recorder, ScriptedEngine, build_scheduler, expected_answer

SYSTEM = list(range(20, 44))


def _ask(
    scheduler: Scheduler, recorder: Recorder, prompt: Sequence[int], count: int = 4, adapter: str = ""
) -> Generation:
    generation = recorder.make(prompt, count, adapter=adapter)
    finished = len(recorder.finishes)
    scheduler.submit(generation)
    recorder.wait(finished=finished + 1)
    assert recorder.tokens[generation] == expected_answer(prompt, count, adapter)
    return generation


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_the_next_turn_of_a_chat_computes_only_what_is_new(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=1, prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    _ask(scheduler, recorder, SYSTEM, count=6)
    turn = [*SYSTEM, *expected_answer(SYSTEM, 6), 1, 2, 3]
    second = _ask(scheduler, recorder, turn)
    scheduler.close()
    # Of the answer's six tokens five are in the cache: nothing followed the last one.
    assert second.cached_tokens == len(SYSTEM) + 5
    assert engine.prefills == [len(SYSTEM), 4]


def test_the_same_prompt_computes_its_last_token_again(recorder: Recorder) -> None:
    engine = ScriptedEngine(prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    for _ in range(2):
        _ask(scheduler, recorder, SYSTEM)
    scheduler.close()
    assert engine.prefills == [len(SYSTEM), 1]


def test_requests_at_once_compute_a_shared_prefix_once(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=6, prefill_chunk=10, spare_rows=1)
    scheduler = build_scheduler(engine, recorder)
    prompts = [[*SYSTEM, n, n, n] for n in range(6)]
    generations = [recorder.make(prompt, 20) for prompt in prompts]
    for generation in generations:
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=6)
    scheduler.close()
    assert sum(engine.prefills) == len(SYSTEM) + 6 * 3
    assert [g.cached_tokens for g in generations] == [0] + [len(SYSTEM)] * 5
    for generation, prompt in zip(generations, prompts, strict=True):
        assert recorder.tokens[generation] == expected_answer(prompt, 20)


def test_a_prefix_is_found_in_a_row_that_decodes(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=2, prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    engine.gate.clear()
    running = recorder.make(SYSTEM, 30)
    scheduler.submit(running)
    scheduler.start()
    engine.gate.set()
    recorder.wait(tokens=2)
    joined = recorder.make([*SYSTEM, 5, 5], 3)
    scheduler.submit(joined)
    recorder.wait(finished=2)
    scheduler.close()
    assert joined.cached_tokens == len(SYSTEM)
    assert recorder.tokens[joined] == expected_answer([*SYSTEM, 5, 5], 3)
    assert recorder.tokens[running] == expected_answer(SYSTEM, 30)


def test_two_chats_in_turn_keep_their_rows(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=1, prefill_chunk=64, spare_rows=2)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    chats = [list(range(10)), list(range(50, 62))]
    for chat in chats:
        _ask(scheduler, recorder, chat)
    engine.prefills.clear()
    for chat in chats:
        _ask(scheduler, recorder, [*chat, 7])
    scheduler.close()
    assert engine.prefills == [1, 1]


def test_what_an_ended_answer_leaves_makes_room_for_the_row_that_closes_the_gap(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=2, prefill_chunk=64, spare_rows=1)
    scheduler = build_scheduler(engine, recorder)
    ending, running = recorder.make(SYSTEM, 3), recorder.make([9] * 10, 20)
    for generation in (ending, running):
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=2)
    again = _ask(scheduler, recorder, SYSTEM)
    scheduler.close()
    assert recorder.tokens[running] == expected_answer([9] * 10, 20)
    assert again.cached_tokens == len(SYSTEM) - 1


def test_the_row_unused_for_longest_is_given_away(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=2, prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    first, second, third = ([n] * 12 for n in (1, 2, 3))
    for prompt in (first, second, first, third):
        _ask(scheduler, recorder, prompt)
    kept = _ask(scheduler, recorder, first)
    lost = _ask(scheduler, recorder, second)
    scheduler.close()
    assert kept.cached_tokens == len(first) - 1
    assert lost.cached_tokens == 0


def test_adapters_share_no_prefix(recorder: Recorder) -> None:
    engine = ScriptedEngine(prefill_chunk=64, spare_rows=1)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    asked = [_ask(scheduler, recorder, SYSTEM, adapter=name) for name in ("", "a", "b", "a", "")]
    scheduler.close()
    assert [g.cached_tokens for g in asked] == [0, 0, 0, len(SYSTEM) - 1, len(SYSTEM) - 1]


def test_prompts_at_once_under_different_adapters_do_not_wait_for_each_other(recorder: Recorder) -> None:
    engine = ScriptedEngine(prefill_chunk=8, spare_rows=1)
    scheduler = build_scheduler(engine, recorder)
    generations = [recorder.make(SYSTEM, 2, adapter=name) for name in ("a", "b")]
    for generation in generations:
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=2)
    scheduler.close()
    assert sum(engine.prefills) == 2 * len(SYSTEM)


def test_an_engine_that_cannot_cut_back_computes_everything(recorder: Recorder) -> None:
    engine = ScriptedEngine(prefill_chunk=64)
    scheduler = Scheduler(engine, max_queue=4, deliver=recorder.deliver, gather_seconds=0, reuse=Reuse.NONE)
    scheduler.start()
    for _ in range(2):
        _ask(scheduler, recorder, SYSTEM)
    scheduler.close()
    assert engine.prefills == [len(SYSTEM)] * 2


def test_a_row_with_broken_logits_is_not_used_again(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=1, prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    engine.poisoned.add(0)
    bad = recorder.make(SYSTEM, 4)
    scheduler.submit(bad)
    recorder.wait(finished=1)
    assert recorder.finishes[bad] is Finish.ERROR
    engine.poisoned.clear()
    assert _ask(scheduler, recorder, SYSTEM).cached_tokens == 0
    scheduler.close()


def test_rows_lost_in_a_failed_step_are_not_used_again(recorder: Recorder) -> None:
    engine = ScriptedEngine(slots=2, prefill_chunk=64)
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    engine.broken.add("decode")
    scheduler.submit(recorder.make(SYSTEM, 4))
    recorder.wait(finished=1)
    engine.broken.clear()
    assert _ask(scheduler, recorder, SYSTEM).cached_tokens == 0
    scheduler.close()


_stem = st.sampled_from([list(range(10)), list(range(25)), [*range(9), 60, *range(8)], [3] * 14, [1]])
_tail = st.lists(st.integers(0, VOCAB - 1), max_size=6)
_request = st.tuples(_stem, _tail, st.integers(1, 20), st.integers(0, 12), st.sampled_from(["", "", "a"]))


@settings(max_examples=120, deadline=None)
@given(
    waves=st.lists(st.lists(_request, min_size=1, max_size=7), min_size=1, max_size=3),
    slots=st.integers(1, 4),
    spare_rows=st.integers(0, 2),
    chunk=st.integers(1, 24),
    seconds_per_token=st.sampled_from([0.0, 0.001, 0.02]),
)
def test_answers_are_those_of_a_server_without_a_cache(
    waves: list[list[tuple[list[int], list[int], int, int, str]]],
    slots: int,
    spare_rows: int,
    chunk: int,
    seconds_per_token: float,
) -> None:
    engine = ScriptedEngine(
        slots=slots, prefill_chunk=chunk, spare_rows=spare_rows, seconds_per_token=seconds_per_token
    )
    recorder = Recorder()
    scheduler = build_scheduler(engine, recorder)
    scheduler.start()
    asked: list[tuple[Generation, list[int], int, int]] = []
    for wave in waves:
        engine.gate.clear()
        for stem, tail, count, leaves_after, adapter in wave:
            prompt = [*stem, *tail]
            generation = recorder.make(prompt, count, adapter=adapter, arrived=engine.now)
            if leaves_after:
                recorder.cancel_after[generation] = leaves_after
            asked.append((generation, prompt, count, leaves_after))
            scheduler.submit(generation)
        engine.gate.set()
        recorder.wait(finished=len(asked))
    scheduler.close()
    for generation, prompt, count, leaves_after in asked:
        got = recorder.tokens[generation]
        assert got == expected_answer(prompt, len(got), generation.adapter)
        assert len(got) == count or leaves_after
        assert 0 <= generation.cached_tokens < len(prompt)
    answered = [(g, prompt) for g, prompt, _, _ in asked if recorder.tokens[g]]
    assert len(answered) == len(asked)
    assert sum(engine.prefills) == sum(len(prompt) - g.cached_tokens for g, prompt in answered)
    assert scheduler.busy == scheduler.queue_depth == 0


def test_a_kept_row_moves_out_of_the_way_and_a_request_always_does() -> None:
    engine = ScriptedEngine(slots=2, spare_rows=1, prefill_chunk=64)
    rows = Rows(engine, spare_rows=1, reuse=Reuse.PREFIX)

    def take(prompt: list[int]) -> Generation:
        generation = Generation(
            prompt, max_tokens=1, sampling=SamplingParams(), end_tokens=frozenset(), inbox=lambda _: None
        )
        rows.take(generation, 0)
        tokens = np.array(prompt[generation.length :])
        engine.prefill(generation.row, tokens, generation.length)
        rows.append_prompt(generation.row, tokens, generation.length)
        return generation

    first, second = take([1] * 9), take([2] * 9)
    assert (first.row, second.row) == (0, 1)
    rows.release(0)
    rows.make_room(0)
    assert engine.rows[2] == [1] * 9
    assert rows.find(first) == (2, 8)
    rows.make_room(1)
    assert rows.holders == [second, None, None]
    assert (second.row, engine.rows[0]) == (0, [2] * 9)


def test_a_row_holds_what_was_found_and_no_more() -> None:
    engine = ScriptedEngine(slots=2, prefill_chunk=64)
    rows = Rows(engine, spare_rows=0, reuse=Reuse.PREFIX)

    def make(prompt: list[int]) -> Generation:
        return Generation(
            prompt, max_tokens=1, sampling=SamplingParams(), end_tokens=frozenset(), inbox=lambda _: None
        )

    first = make(SYSTEM)
    rows.take(first, 0)
    engine.prefill(0, np.array(SYSTEM), 0)
    rows.append_prompt(0, np.array(SYSTEM), 0)
    second = make([*SYSTEM[:12], 90, 90])
    rows.take(second, 1)
    rows.release(0)
    rows.forget(0)
    # Its request has computed nothing yet, and may be cancelled now.
    rows.release(1)
    assert rows.find(make([*SYSTEM[:12], 0, 0, 0])) == (1, 12)
    assert engine.rows[1] == SYSTEM[:12]
