# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's continuous batching as a backend: right answers, our queue, honest limits."""

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slmserve.answers import build_deliver
from slmserve.backend import Backend, Capability, ClosedError, LoadedEngine, QueueFullError
from slmserve.engines import onnx_slots, openvino
from slmserve.engines.openvino_backend import OpenVinoBackend, UnsupportedRequestError
from slmserve.engines.registry import EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.generation import Finish, Generation
from slmserve.golden import load_cases, run_golden
from slmserve.model import LoadedModel
from slmserve.sampling import SamplingParams
from slmserve.template import load_template
from slmserve.tokenizer import load_codec
from slmwire.reasons import Reason
from tests.unit.slmserve.doubles import Recorder
from tests.unit.slmserve.engine_models import SOURCE, build_openvino_dir

_PROMPT = [2, 40, 50, 60, 3]
_NEVER: frozenset[int] = frozenset()
_ENDS = frozenset({1})


def _options(*, slots: int = 2, context_length: int = 0) -> EngineOptions:
    return EngineOptions(slots=slots, context_length=context_length, threads=0)


@pytest.fixture(scope="module")
def openvino_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_openvino_dir(tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module")
def loaded(openvino_dir: Path) -> LoadedEngine:
    return openvino.load(openvino_dir, _options())


@pytest.fixture
def copy(openvino_dir: Path, tmp_path: Path) -> Path:
    """A directory of its own that a test may spoil."""
    for path in openvino_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def _run(loaded: LoadedEngine, recorder: Recorder, *generations: Generation) -> list[list[int]]:
    assert loaded.build_backend is not None
    backend = loaded.build_backend(len(generations), recorder.deliver)
    backend.start()
    for generation in generations:
        backend.submit(generation)
    recorder.wait(finished=len(generations))
    backend.close()
    return [recorder.tokens[generation] for generation in generations]


def _score(loaded: LoadedEngine, model_dir: Path) -> float:
    model = LoadedModel(
        directory=model_dir,
        engine=loaded.info,
        defaults=loaded.defaults,
        build_backend=loaded.build_backend,
        codec=load_codec(model_dir),
        template=load_template(model_dir),
        digest="",
    )

    async def run() -> float:
        assert loaded.build_backend is not None
        backend = loaded.build_backend(200, build_deliver(asyncio.get_running_loop()))
        backend.start()
        try:
            return (await run_golden(load_cases(model_dir), model, backend)).score
        finally:
            backend.close()

    return asyncio.run(run())


def test_golden_answers_are_those_of_onnxruntime(openvino_dir: Path) -> None:
    ours = _score(openvino.load(openvino_dir, _options(slots=4)), openvino_dir)
    theirs = _score(onnx_slots.load(SOURCE, _options(slots=4)), SOURCE)
    assert ours >= theirs - 1 / 60


def test_what_it_says_about_itself(openvino_dir: Path, loaded: LoadedEngine) -> None:
    assert find_candidates(openvino_dir, "")[0].name == "openvino"
    info = loaded.info
    assert (info.name, info.slots, info.max_length, info.vocab_size) == ("openvino", 2, 256, 640)
    assert info.version.startswith("2026.")
    assert info.cache_bytes > 2 * 256 * 3 * 2 * 32 * 2
    assert info.capabilities == {Capability.SEED}
    assert loaded.defaults.end_tokens == {1}


def test_no_telemetry_is_loaded(loaded: LoadedEngine) -> None:
    assert loaded.info.name == "openvino"
    assert sys.modules["openvino_telemetry"] is None


def test_answers_end_where_they_must(openvino_dir: Path) -> None:
    loaded = openvino.load(openvino_dir, _options(context_length=64))
    recorder = Recorder()
    short = recorder.make(_PROMPT, 20, end_tokens=_NEVER)
    whole_row = recorder.make(_PROMPT, 1000, end_tokens=_NEVER)
    one_token = recorder.make([5] * 63, 1, end_tokens=_NEVER)
    answers = _run(loaded, recorder, short, whole_row, one_token)
    assert [len(answer) for answer in answers] == [20, 60, 1]
    assert {recorder.finishes[each] for each in (short, whole_row, one_token)} == {Finish.LENGTH}
    recorder = Recorder()
    end = answers[0][7]
    cut = recorder.make(_PROMPT, 20, end_tokens=frozenset({end, 639}))
    assert _run(loaded, recorder, cut) == [answers[0][: answers[0].index(end) + 1]]
    assert recorder.finishes[cut] is Finish.END_TOKEN


def test_a_seed_decides_the_answer_whatever_runs_beside_it(loaded: LoadedEngine) -> None:
    def answers(*seeds: int | None) -> list[list[int]]:
        recorder = Recorder()
        make = [SamplingParams(temperature=5.0, top_p=0.98, seed=seed) for seed in seeds]
        generations = [recorder.make(_PROMPT, 40, sampling=each, end_tokens=_NEVER) for each in make]
        return _run(loaded, recorder, *generations)

    alone = answers(5)[0]
    assert answers(9, 5, 7)[1] == alone
    assert answers(6)[0] != alone
    first, second = answers(None, None)
    assert first != second


def _backend(loaded: LoadedEngine, recorder: Recorder, *, max_queue: int = 10) -> Backend:
    assert loaded.build_backend is not None
    backend = loaded.build_backend(max_queue, recorder.deliver)
    backend.start()
    return backend


def test_cancelled_requests_give_their_row_to_those_that_wait(loaded: LoadedEngine) -> None:
    recorder = Recorder()
    leaving = [recorder.make(_PROMPT, 250, end_tokens=_NEVER) for _ in range(3)]
    staying = recorder.make([*_PROMPT, 9], 10, end_tokens=_NEVER)
    for generation in leaving:
        recorder.cancel_after[generation] = 3
    backend = _backend(loaded, recorder)
    for generation in (*leaving, staying):
        backend.submit(generation)
    recorder.wait(finished=4)
    assert all(recorder.finishes[generation] is Finish.CANCELLED for generation in leaving)
    assert len(recorder.tokens[leaving[0]]) < 250
    assert len(recorder.tokens[staying]) == 10
    assert backend.is_healthy(stuck_seconds=30)
    backend.close()
    assert not backend.is_healthy(stuck_seconds=30)


def test_close_ends_what_runs_and_what_waits(loaded: LoadedEngine) -> None:
    recorder = Recorder()
    generations = [recorder.make(_PROMPT, 250, end_tokens=_NEVER) for _ in range(4)]
    backend = _backend(loaded, recorder)
    for generation in generations:
        backend.submit(generation)
    recorder.wait(tokens=1)
    backend.close()
    assert {recorder.finishes[generation] for generation in generations} <= {Finish.CANCELLED, Finish.LENGTH}
    with pytest.raises(ClosedError):
        backend.submit(recorder.make(_PROMPT, 2))
    # The library holds no request back for the next backend.
    after = Recorder()
    assert len(_run(loaded, after, after.make(_PROMPT, 5, end_tokens=_NEVER))[0]) == 5


def test_requests_for_what_it_cannot_do_are_refused(loaded: LoadedEngine) -> None:
    recorder = Recorder()
    assert loaded.build_backend is not None
    backend = loaded.build_backend(1, recorder.deliver)
    plain: dict[str, Any] = {
        "max_tokens": 1,
        "sampling": SamplingParams(),
        "end_tokens": _NEVER,
        "inbox": recorder._take,
    }
    for extra in ({"top_logprobs": 1}, {"adapter": "shop"}):
        with pytest.raises(UnsupportedRequestError):
            backend.submit(Generation(_PROMPT, **plain, **extra))


@pytest.mark.parametrize("seed", [10, 13])
def test_an_answer_does_not_depend_on_those_beside_and_before_it(openvino_dir: Path, seed: int) -> None:
    """Some leave early; with the library's prefix cache this went wrong for one prompt in some hundred."""
    random = np.random.default_rng(seed)
    codec = load_codec(openvino_dir)
    words = ["two", "tea", "cola", "table", "four", "to", "and", "a", "latte", "no", "ice", "water", "one"]
    begins = [" ".join(random.choice(words, 40)) for _ in range(5)]
    ends = ("tea", "no ice please", "cola to table six and a latte", "")
    prompts = [
        codec.encode(f"{begin[:cut]} {end}", add_special_tokens=True)
        for begin in begins
        for end in ends
        for cut in random.integers(30, 150, 2)
    ]
    recorder = Recorder()
    backend = _backend(openvino.load(openvino_dir, _options(slots=4)), recorder, max_queue=100)
    alone, finished = [], 0
    for prompt in prompts:
        generation = recorder.make(prompt, 30, end_tokens=_ENDS)
        backend.submit(generation)
        finished += 1
        recorder.wait(finished=finished)
        alone.append(recorder.tokens[generation])
    for _ in range(40):
        asked = []
        for which in random.integers(0, len(prompts), 8).tolist():
            generation = recorder.make(prompts[which], 30, end_tokens=_ENDS)
            leaves = int(random.integers(0, 20))
            if leaves < 8:
                recorder.cancel_after[generation] = leaves + 1
            asked.append((which, leaves < 8, generation))
        for _, _, generation in asked:
            backend.submit(generation)
        finished += len(asked)
        recorder.wait(finished=finished)
        for which, leaves_early, generation in asked:
            got = recorder.tokens[generation]
            assert got == (alone[which][: len(got)] if leaves_early else alone[which])
    backend.close()


class _Pipeline:
    """Fails in the step, does nothing in it, or has no room: what the real one does seldom."""

    def __init__(self, *, status: str = "RUNNING", idle: bool = False) -> None:
        self.status = status
        self.idle = idle
        self.gate = threading.Event()
        self.tensors: list[Any] = []

    def add_request(self, number: int, tensor: Any, config: Any) -> "_Handle":
        self.tensors.append(np.array(tensor.data))
        return _Handle(self.status)

    def has_non_finished_requests(self) -> bool:
        return True

    def step(self) -> None:
        self.gate.wait(10)
        if self.status == "RUNNING" and not self.idle:
            raise RuntimeError("no step today")


class _Handle:
    def __init__(self, status: str) -> None:
        self._status = status

    def can_read(self) -> bool:
        return False

    def cancel(self) -> None:
        raise RuntimeError("no cancel today")

    def get_status(self) -> Any:
        return type("Status", (), {"name": self._status})


def _on(pipeline: _Pipeline, recorder: Recorder, *, max_queue: int) -> OpenVinoBackend:
    backend = OpenVinoBackend(pipeline, slots=1, max_length=64, max_queue=max_queue, deliver=recorder.deliver)
    backend.start()
    return backend


def test_three_failed_steps_in_a_row_are_not_healthy() -> None:
    pipeline, recorder = _Pipeline(), Recorder()
    backend = _on(pipeline, recorder, max_queue=9)
    pipeline.gate.set()
    for count in range(1, 4):
        assert backend.is_healthy(stuck_seconds=30)
        backend.submit(recorder.make(_PROMPT, 5))
        recorder.wait(finished=count)
    assert set(recorder.finishes.values()) == {Finish.ERROR}
    backend.close()
    assert backend._failures == 3
    assert pipeline.tensors[0].tolist() == [_PROMPT]


def test_a_request_that_the_library_gives_up_is_an_error() -> None:
    pipeline, recorder = _Pipeline(status="IGNORED"), Recorder()
    backend = _on(pipeline, recorder, max_queue=1)
    pipeline.gate.set()
    generation = recorder.make(_PROMPT, 5)
    backend.submit(generation)
    recorder.wait(finished=1)
    assert recorder.finishes[generation] is Finish.ERROR
    assert backend.is_healthy(stuck_seconds=30)
    backend.close()


def test_who_leaves_the_queue_makes_room() -> None:
    pipeline, recorder = _Pipeline(idle=True), Recorder()
    backend = _on(pipeline, recorder, max_queue=1)
    pipeline.gate.set()
    running, waiting, next_one = (recorder.make(_PROMPT, 5) for _ in range(3))
    backend.submit(running)
    backend.submit(waiting)
    waiting.cancel()
    recorder.wait(finished=1)
    backend.submit(next_one)
    backend.close()
    assert recorder.finishes[waiting] is Finish.CANCELLED
    assert len(recorder.finishes) == 3


def test_the_queue_has_an_end() -> None:
    pipeline, recorder = _Pipeline(), Recorder()
    backend = _on(pipeline, recorder, max_queue=1)
    backend.submit(recorder.make(_PROMPT, 5))
    backend.submit(recorder.make(_PROMPT, 5))
    with pytest.raises(QueueFullError):
        backend.submit(recorder.make(_PROMPT, 5))
    assert backend.busy + backend.queue_depth == 2
    pipeline.gate.set()
    recorder.wait(finished=2)
    backend.close()


def _refuse(model_dir: Path, message: str) -> None:
    with pytest.raises(StartError, match=message) as caught:
        openvino.load(model_dir, _options())
    assert caught.value.reason is Reason.UNFIT


def test_broken_files_are_unfit(copy: Path) -> None:
    weights = copy / openvino.WEIGHTS_FILE
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    _refuse(copy, r"Incorrect weights in bin file.*export")
    weights.write_bytes(b"")
    _refuse(copy, r"openvino_model\.bin is missing or empty|bin file")
    weights.write_bytes(content)
    graph = copy / openvino.MODEL_FILE
    graph.write_text(graph.read_text()[:20_000])
    _refuse(copy, r"openvino_model\.xml cannot be read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 641}, "gives 640 logits and config.json has vocab_size 641"),
        ({"vocab_size": 600}, "goes up to token 639 and config.json has vocab_size 600"),
        ({"max_position_embeddings": None}, "config.json lacks or misstates"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"eos_token_id": "end"}, "config.json lacks or misstates"),
    ],
)
def test_a_config_that_does_not_fit_is_named(copy: Path, change: dict[str, Any], message: str) -> None:
    path = copy / openvino.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    _refuse(copy, message)


def test_a_directory_without_a_config_is_unfit(copy: Path) -> None:
    (copy / openvino.CONFIG_FILE).unlink()
    _refuse(copy, r"config\.json cannot be read \(No such file")


def test_too_little_memory_is_said(openvino_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "memory_limit_bytes", lambda: 1 << 20)
    with pytest.raises(StartError, match="1 MiB of weights do not fit in 1 MiB") as caught:
        openvino.load(openvino_dir, _options())
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY
