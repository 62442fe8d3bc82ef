# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch at its port: a scripted program that forgets what is overwritten, as the real one does.

The library itself needs torch and is not in this environment; docs/engines.md says what was measured with it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slmserve.engines.executorch import Binding, load, load_engine
from slmserve.engines.executorch_rows import StatefulRowsEngine, count_shared
from slmserve.engines.registry import EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.scheduler import Scheduler
from tests.unit.slmserve.doubles import VOCAB, Recorder, expected_answer, next_token

OPTIONS = EngineOptions(slots=3, context_length=0, threads=1)
LENGTH = 64


class _Tensor:
    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def numpy(self) -> NDArray[Any]:
        return self.values


class _Meta:
    def __init__(self, *sizes: Sequence[int]) -> None:
        self._sizes = sizes

    def num_inputs(self) -> int:
        return len(self._sizes) - 1

    def num_outputs(self) -> int:
        return 1

    def input_tensor_meta(self, index: int) -> "_Sized":
        return _Sized(self._sizes[index])

    def output_tensor_meta(self, index: int) -> "_Sized":
        return _Sized(self._sizes[-1])


class _Sized:
    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes

    def sizes(self) -> Sequence[int]:
        return self._sizes


class _Program:
    """Holds one stream: a call at `offset` forgets all that was behind it."""

    def __init__(self, *, width: int = 8, positions: int | None = None, **constants: Any) -> None:
        self.constants = {"get_max_seq_len": LENGTH} | constants
        self.positions = width if positions is None else positions
        self.meta = _Meta((1, width), (self.positions,), (1, width, VOCAB))
        self.width = width
        self.held: list[int] = []
        self.calls: list[int] = []
        self.broken = False

    @property
    def method_names(self) -> set[str]:
        return {"forward", *self.constants}

    def metadata(self, name: str) -> _Meta:
        assert name == "forward"
        return self.meta

    def load_method(self, name: str) -> Any:
        return self if name == "forward" else _Constant(self.constants[name])

    def execute(self, inputs: list[_Tensor]) -> list[_Tensor]:
        tokens, positions = (tensor.values for tensor in inputs)
        assert tokens.dtype == positions.dtype == np.int64
        offset, count = int(positions[0]), tokens.shape[1]
        assert len(positions) == (1 if self.positions == 1 else count)
        assert positions.tolist() == list(range(offset, offset + len(positions)))
        assert 1 <= count <= self.width
        assert offset <= len(self.held), "a hole in the cache"
        assert offset + count <= LENGTH
        self.calls.append(count)
        if self.broken:
            self.held = self.held[:offset] + [-1] * count
            raise RuntimeError("the delegate failed")
        self.held = self.held[:offset] + tokens[0].tolist()
        logits = np.zeros((1, count, VOCAB), np.float16)
        logits[0, -1, next_token(self.held)] = 1
        return [_Tensor(logits)]


class _Constant:
    def __init__(self, value: Any) -> None:
        self._value = value

    def execute(self, inputs: list[Any]) -> list[Any]:
        return [self._value]


def _load(directory: Path, *programs: _Program, options: EngineOptions = OPTIONS) -> StatefulRowsEngine:
    (directory / "model.pte").write_bytes(b"program")
    waiting = list(programs)
    binding = Binding(load_program=lambda _: waiting.pop(0), to_tensor=_Tensor, version="1")
    return load_engine(directory, options, binding)


_tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), st.integers(0, 2), _tokens, st.integers(0, 40)),
        st.tuples(st.just("decode"), st.integers(1, 3), _tokens, st.integers(0, 40)),
        st.tuples(st.just("move"), st.integers(0, 2), st.just([0]), st.integers(0, 40)),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(steps=_steps, first_only=st.sampled_from([None, 1]))
def test_rows_hold_what_was_put_into_them(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], first_only: int | None
) -> None:
    directory = tmp_path_factory.mktemp("pte")
    engine = _load(directory, *(_Program(positions=first_only) for _ in range(3)))
    rows: list[list[int]] = [[], [], []]
    for kind, number, tokens, place in steps:
        if kind == "prefill":
            offset = min(place, len(rows[number]), LENGTH - len(tokens))
            rows[number] = rows[number][:offset] + tokens
            logits = engine.prefill(number, np.array(tokens), offset)
            assert logits.argmax() == next_token(rows[number])
        elif kind == "decode":
            lengths = [min(place, len(row), LENGTH - 1) for row in rows[:number]]
            for row, length in enumerate(lengths):
                rows[row] = [*rows[row][:length], tokens[0]]
            logits = engine.decode(np.full(number, tokens[0]), np.array(lengths))
            assert logits.dtype == np.float32
            assert logits.argmax(axis=1).tolist() == [next_token(row) for row in rows[:number]]
        else:
            target = (number + 1) % 3
            rows[target] = rows[number][:place]
            engine.move(number, target, len(rows[target]))


def test_the_scheduler_gets_every_answer(tmp_path: Path) -> None:
    programs = [_Program() for _ in range(3)]
    recorder = Recorder()
    prompts = [[5, 6, 7], [1] * 30, [9], [4, 4], list(range(20))]
    scheduler = Scheduler(_load(tmp_path, *programs), max_queue=9, deliver=recorder.deliver)
    generations = [recorder.make(prompt, 12, end_tokens=frozenset()) for prompt in prompts]
    for generation in generations:
        scheduler.submit(generation)
    scheduler.start()
    recorder.wait(finished=len(prompts))
    scheduler.close()
    for prompt, generation in zip(prompts, generations, strict=True):
        assert recorder.tokens[generation] == expected_answer(prompt, 12)


def test_each_token_is_computed_once_also_after_a_move(tmp_path: Path) -> None:
    first, second = _Program(), _Program()
    engine = _load(tmp_path, first, second)
    engine.prefill(0, np.arange(20), 0)
    engine.prefill(1, np.arange(5), 0)
    engine.move(0, 1, 20)
    engine.prefill(1, np.arange(3), 20)
    engine.prefill(0, np.arange(7), 0)
    engine.decode(np.array([1, 2]), np.array([7, 23]))
    assert (first.calls, second.calls) == ([8, 8, 4, 3, 1], [5, 2, 1])


def test_a_failed_call_is_not_taken_for_done(tmp_path: Path) -> None:
    program = _Program()
    engine = _load(tmp_path, program)
    engine.prefill(0, np.arange(20), 0)
    program.broken = True
    with pytest.raises(RuntimeError):
        engine.decode(np.array([3]), np.array([20]))
    program.broken = False
    assert engine.decode(np.array([3]), np.array([20]))[0].argmax() == next_token([*range(20), 3])


@settings(deadline=None)
@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_what_two_texts_share_is_counted(left: list[int], right: list[int]) -> None:
    shared = count_shared(np.array(left, np.int64), np.array(right, np.int64))
    assert left[:shared] == right[:shared]
    assert shared == min(len(left), len(right)) or left[shared] != right[shared]


def test_an_instance_is_opened_when_its_row_is_used(tmp_path: Path) -> None:
    engine = _load(tmp_path, _Program(), options=EngineOptions(slots=9, context_length=40, threads=1))
    engine.prefill(0, np.array([1, 2]), 0)
    assert (engine.slots, engine.max_length, engine.vocab_size) == (9, 40, VOCAB)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (_Program(enable_dynamic_shape=False), "exactly 8 tokens"),
        (_Program(width=8, get_max_seq_len=None), "cannot load"),
    ],
)
def test_a_program_of_another_form_is_named(tmp_path: Path, program: _Program, complaint: str) -> None:
    with pytest.raises(StartError, match=complaint):
        _load(tmp_path, program)


def test_a_program_without_what_is_needed_is_named(tmp_path: Path) -> None:
    bare, embedding, batched = _Program(), _Program(), _Program()
    bare.constants = {}
    embedding.meta = _Meta((1, 8), (1, 8, 3))
    batched.meta = _Meta((4, 8), (8,), (4, 8, VOCAB))
    for program, complaint in (
        (bare, "get_max_seq_len"),
        (embedding, "tokens and positions"),
        (batched, r"\[4, 8\]"),
    ):
        with pytest.raises(StartError, match=complaint):
            _load(tmp_path, program)
    assert _load(tmp_path, _Program(width=1, enable_dynamic_shape=False)).prefill_chunk == 16
    (tmp_path / "second.pte").touch()
    with pytest.raises(StartError, match=r"2 \.pte"):
        _load(tmp_path, _Program())


def test_without_the_library_the_cure_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pte").touch()
    with pytest.raises(StartError, match="executorch, which this image lacks"):
        find_candidates(tmp_path, "auto")
    with pytest.raises(StartError, match="use the image tag for engine executorch"):
        find_candidates(tmp_path, "executorch")
    with pytest.raises(StartError, match="torch"):
        load(tmp_path, OPTIONS)
