# SPDX-License-Identifier: Apache-2.0
"""llama.cpp behind our scheduler: the same answers as onnxruntime, rows that keep apart, adapters."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openai import OpenAI

from slmserve.answers import build_deliver
from slmserve.backend import LoadedEngine
from slmserve.engines import llama_cpp, llama_library, onnx_slots
from slmserve.engines.llama_cpp import LlamaEngine, load_engine
from slmserve.engines.llama_library import PINNED_VERSION, check_defaults, open_library
from slmserve.engines.registry import EngineOptions, find_candidates
from slmserve.errors import StartError
from slmserve.golden import load_cases, run_golden
from slmserve.model import LoadedModel
from slmserve.template import load_template
from slmserve.tokenizer import load_codec
from slmwire.reasons import Reason
from tests.unit.slmserve.engine_models import SOURCE, build_llama_dir, write_adapter
from tests.unit.slmserve.process import ROOT, ServerProcess

_VOCAB = 640
_CLOSE = 0.05
"""Logits of one model differ by this much at most with the shape of the batch (cache of float16)."""


def _options(*, slots: int = 4, context_length: int = 0) -> EngineOptions:
    return EngineOptions(slots=slots, context_length=context_length, threads=0)


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama_dir(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(llama_dir: Path) -> Iterator[LlamaEngine]:
    engine, _ = load_engine(llama_dir, _options())
    yield engine
    engine.close()


@pytest.fixture
def copy(llama_dir: Path, tmp_path: Path) -> Path:
    """A directory of its own that a test may spoil."""
    return build_llama_dir(tmp_path / "model")


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


@pytest.mark.parametrize("slots", [1, 5])
def test_golden_answers_are_those_of_onnxruntime(llama_dir: Path, slots: int) -> None:
    ours = _score(llama_cpp.load(llama_dir, _options(slots=slots)), llama_dir)
    theirs = _score(onnx_slots.load(SOURCE, _options(slots=slots)), SOURCE)
    assert ours >= theirs - 1 / 60


@pytest.mark.parametrize(("kind", "least"), [("F16", 59), ("Q8_0", 58), ("Q4_0", 57)])
def test_smaller_files_lose_little(tmp_path: Path, kind: Any, least: int) -> None:
    model_dir = build_llama_dir(tmp_path, kind=kind)
    assert _score(llama_cpp.load(model_dir, _options()), model_dir) >= least / 60


def test_what_it_says_about_itself(llama_dir: Path) -> None:
    assert find_candidates(llama_dir, "")[0].name == "llama.cpp"
    loaded = llama_cpp.load(llama_dir, _options(slots=3, context_length=128))
    info = loaded.info
    assert (info.name, info.version, info.slots, info.max_length) == ("llama.cpp", PINNED_VERSION, 3, 128)
    assert (info.vocab_size, info.adapters) == (_VOCAB, ())
    # 3 layers, 2 heads of 32 numbers for keys and as many for values, 2 bytes each.
    assert info.cache_bytes == 3 * 128 * 3 * 2 * 32 * 2 * 2
    assert loaded.defaults.end_tokens == {1}
    assert loaded.defaults.temperature == 0


def _tokens(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _fresh(engine: LlamaEngine, history: list[int]) -> NDArray[np.float32]:
    """Logits after `history`, computed from nothing in the last row."""
    return engine.prefill(engine.slots - 1, np.array(history, np.int64), 0).copy()


_token = st.integers(4, _VOCAB - 1)
_operation = st.one_of(
    st.tuples(
        st.just("prefill"), st.integers(0, 2), st.integers(0, 30), st.lists(_token, min_size=1, max_size=9)
    ),
    st.tuples(st.just("decode"), st.lists(_token, min_size=1, max_size=3)),
    st.tuples(st.just("move"), st.integers(0, 2), st.integers(0, 2), st.integers(1, 30)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(_operation, max_size=12))
def test_a_row_is_what_was_appended_to_it(engine: LlamaEngine, operations: list[Any]) -> None:
    rows: list[list[int]] = [[5 + row] for row in range(3)]
    for row, history in enumerate(rows):
        engine.prefill(row, np.array(history, np.int64), 0)
    for name, *given_values in operations:
        if name == "prefill":
            row, offset, tokens = given_values
            offset = min(offset, len(rows[row]))
            rows[row] = rows[row][:offset] + tokens
            engine.prefill(row, np.array(tokens, np.int64), offset)
        elif name == "decode":
            (tokens,) = given_values
            lengths = np.array([len(rows[row]) for row in range(len(tokens))])
            logits = engine.decode(np.array(tokens, np.int64), lengths)
            assert logits.shape == (len(tokens), _VOCAB)
            for row, token in enumerate(tokens):
                rows[row].append(token)
        else:
            source, target, length = given_values
            rows[target] = rows[source][: min(length, len(rows[source]))]
            engine.move(source, target, len(rows[target]))
    lengths = np.array([len(history) for history in rows])
    got = engine.decode(_tokens(7, 8, 9), lengths).copy()
    for row, history in enumerate(rows):
        np.testing.assert_allclose(got[row], _fresh(engine, [*history, 7 + row]), atol=_CLOSE)


def test_a_row_that_holds_less_than_the_caller_thinks_is_an_error(engine: LlamaEngine) -> None:
    engine.prefill(0, _tokens(5, 6, 7), 0)
    with pytest.raises(ValueError, match="row 0 holds 3 tokens, not 4"):
        engine.prefill(0, _tokens(8), 4)


def test_a_state_that_cannot_be_shortened_is_computed_again(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = engine._library.llama_memory_seq_rm

    def only_whole(memory: int, row: int, start: int, end: int) -> bool:
        return bool(remove(memory, row, start, end)) if start <= 0 else False

    monkeypatch.setattr(engine._library, "llama_memory_seq_rm", only_whole)
    history = list(range(10, 60))
    engine.prefill(0, np.array(history, np.int64), 0)
    got = engine.prefill(0, _tokens(7), 30).copy()
    np.testing.assert_allclose(got, _fresh(engine, [*history[:30], 7]), atol=_CLOSE)


def test_a_full_row_fails_alone_and_can_be_used_again(engine: LlamaEngine) -> None:
    engine.prefill(1, _tokens(5, 6), 0)
    engine.prefill(0, np.full(engine.max_length, 9, np.int64), 0)
    with pytest.raises(RuntimeError, match="no room"):
        engine.prefill(0, _tokens(9), engine.max_length)
    first = engine.prefill(0, _tokens(5, 6, 7), 0).copy()
    second = engine.prefill(1, _tokens(7), 2)
    np.testing.assert_allclose(first, second, atol=_CLOSE)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    model_dir = build_llama_dir(tmp_path_factory.mktemp("adapted"))
    write_adapter(model_dir / "adapters/nothing.gguf", scale=0)
    write_adapter(model_dir / "adapters/strong.gguf", scale=1)
    engine, _ = load_engine(model_dir, _options())
    yield engine
    engine.close()


def test_adapters_change_the_rows_that_name_them_and_no_other(adapted: LlamaEngine) -> None:
    assert adapted.adapters == ("nothing", "strong")
    history, names = [20, 30, 40, 50], ("", "strong", "nothing", "strong")
    for row, name in enumerate(names):
        adapted.assign_adapter(row, name)
        adapted.prefill(row, np.array(history, np.int64), 0)
    logits = adapted.decode(_tokens(9, 9, 9, 9), np.full(4, 4))
    np.testing.assert_allclose(logits[0], logits[2], atol=_CLOSE)
    np.testing.assert_allclose(logits[1], logits[3], atol=_CLOSE)
    assert np.abs(logits[0] - logits[1]).max() > 1
    # A moved row takes its adapter along; a row without one is as if there were none.
    strong = logits[1].copy()
    adapted.move(1, 0, 4)
    np.testing.assert_allclose(adapted.decode(_tokens(9), np.full(1, 4))[0], strong, atol=_CLOSE)
    for row in range(4):
        adapted.assign_adapter(row, "")


def test_an_adapter_that_is_not_there_is_refused(adapted: LlamaEngine) -> None:
    with pytest.raises(KeyError, match="weak"):
        adapted.assign_adapter(0, "weak")


def test_adapters_are_named_in_the_engines_info(copy: Path) -> None:
    write_adapter(copy / "adapters/shop.gguf", scale=1)
    assert llama_cpp.load(copy, _options()).info.adapters == ("shop",)


def test_unfit_adapters_are_named(copy: Path) -> None:
    write_adapter(copy / "adapters/other.gguf", scale=1, architecture="qwen2")
    with pytest.raises(StartError, match=r"other\.gguf: is an adapter for qwen2; this model is llama"):
        llama_cpp.load(copy, _options())
    (copy / "adapters/other.gguf").write_bytes((copy / "model.gguf").read_bytes())
    with pytest.raises(StartError, match="is not a LoRA adapter"):
        llama_cpp.load(copy, _options())


def test_a_tokenizer_that_is_not_the_files_is_unfit(copy: Path) -> None:
    path = copy / "tokenizer.json"
    body = json.loads(path.read_text())
    vocabulary = body["model"]["vocab"]
    # As from another training: the same tokens, with other numbers from 300 on.
    turned = {
        text: 300 + (number - 299) % 340 if number >= 300 else number for text, number in vocabulary.items()
    }
    path.write_text(json.dumps(body | {"model": body["model"] | {"vocab": turned}}))
    message = r"340 of 640 tokens differ: 300 is .* put the tokenizer\.json beside it"
    with pytest.raises(StartError, match=message) as caught:
        llama_cpp.load(copy, _options())
    assert caught.value.reason is Reason.UNFIT
    path.write_text(json.dumps(body | {"model": body["model"] | {"vocab": vocabulary | {"zebra": 640}}}))
    with pytest.raises(StartError, match=r"has 640 tokens and tokenizer\.json goes up to 640"):
        llama_cpp.load(copy, _options())


def test_the_directory_has_one_model(copy: Path) -> None:
    (copy / "second.gguf").write_bytes(b"GGUF")
    with pytest.raises(StartError, match=r"one \*\.gguf file, and has model\.gguf, second\.gguf"):
        llama_cpp.load(copy, _options())


def test_too_little_memory_is_said_before_the_cache_is_made(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "memory_limit_bytes", lambda: 3 << 20)
    with pytest.raises(
        StartError, match="for 8 slots of 256 tokens do not fit in 3 MiB; lower slots"
    ) as caught:
        llama_cpp.load(llama_dir, _options(slots=8))
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2027.1.1")
    with pytest.raises(StartError, match=rf"made for xllamacpp {PINNED_VERSION}: its version is 2027\.1\.1"):
        llama_library._open()


@pytest.mark.parametrize(
    ("function", "field", "value"),
    [
        ("llama_context_default_params", "n_ctx", 4096),
        ("llama_context_default_params", "ctx_other", 1),
        ("llama_model_default_params", "n_gpu_layers", 0),
        ("llama_model_default_params", "load_mtp", True),
    ],
)
def test_a_struct_with_other_defaults_is_refused(function: str, field: str, value: int) -> None:
    params = getattr(open_library(), function)()
    check_defaults(params)
    setattr(params, field, value)
    with pytest.raises(StartError, match=field):
        check_defaults(params)


def test_nothing_is_kept_of_what_the_library_logs_outside_loading(engine: LlamaEngine) -> None:
    log = engine._library.log
    with log.keep() as lines:
        log._take(4, b"while loading", None)
        log._take(1, b"details", None)
    log._take(4, b"a prompt", None)
    assert lines == ["while loading"]


def test_a_server_answers_with_it(llama_dir: Path, tmp_path: Path) -> None:
    case = load_cases(llama_dir)[0]
    with ServerProcess(llama_dir, tmp_path, environ={"SLM_MODEL": "orders"}) as server:
        server.wait_ready()
        message = {"role": "user", "content": case.messages[0].to_template()["content"]}
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, json={"model": "orders", "messages": [message]}, timeout=30).json()
    assert answer["choices"][0]["message"]["content"] == case.expected


def test_a_server_answers_with_the_adapter_that_a_request_names(tmp_path: Path) -> None:
    model_dir = build_llama_dir(tmp_path / "model", kind="F32")
    write_adapter(model_dir / "adapters" / "site.gguf", scale=40.0)
    write_adapter(model_dir / "adapters" / "same.gguf", scale=0.0)
    with ServerProcess(model_dir, tmp_path, "--model", "m", "--slots", "3", "--evaluate", "false") as server:
        server.wait_ready(60)
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            def ask(model: str) -> str:
                answer = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": "two espressos to table four"}],
                    max_tokens=24,
                    temperature=0,
                )
                return str(answer.choices[0].message.content)

            plain = ask("m")
            assert ask("m:same") == plain
            other = ask("m:site")
            assert other != plain
            # At once, the same prompt with and without: neither takes over what the other has computed.
            with ThreadPoolExecutor(3) as pool:
                assert list(pool.map(ask, ["m", "m:site", "m:same"])) == [plain, other, plain]


@pytest.mark.parametrize(("policy", "spins"), [("", "500"), ("passive", "0")])
def test_threads_spin_for_a_while_unless_the_device_says_otherwise(policy: str, spins: str) -> None:
    """What the library's own threads were told, by themselves: it has to be there when it is loaded."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environ |= {"PYTHONPATH": str(ROOT / "operator"), "OMP_DISPLAY_ENV": "VERBOSE"}
    environ |= {"OMP_WAIT_POLICY": policy} if policy else {}
    code = "from slmserve.engines.llama_library import open_library; open_library()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


def test_loading_leaves_no_threads_behind(llama_dir: Path) -> None:
    """More threads than CPUs would sleep at each barrier: a step took half as long again."""
    environ = os.environ | {"PYTHONPATH": str(ROOT / "operator"), "OMP_NUM_THREADS": "2"}
    code = """
import os, sys, time
from pathlib import Path
from slmserve.engines.registry import EngineOptions
from slmserve.engines.llama_cpp import load, open_library
open_library()
before = os.listdir("/proc/self/task")
loaded = load(Path(sys.argv[1]), EngineOptions(slots=2, context_length=0, threads=2))
until = time.monotonic() + 20
while len(os.listdir("/proc/self/task")) > len(before) and time.monotonic() < until:
    time.sleep(0.01)  # an ended thread is listed for a moment
print(len(before), len(os.listdir("/proc/self/task")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama_dir)], env=environ, capture_output=True, text=True, check=True
    )
    before, after = done.stdout.split()[-2:]
    assert before == after
