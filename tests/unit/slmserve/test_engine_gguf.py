# SPDX-License-Identifier: Apache-2.0
"""GGUF files that are not what they should be: each has a reason and a cure, and none ends the process."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmserve.engines import llama_cpp
from slmserve.engines.gguf_header import GgufError, read_header
from slmserve.engines.gguf_model import read_model
from slmserve.engines.llama_probe import describe, probe_model
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmwire.reasons import Reason
from tests.unit.slmserve.engine_models import build_llama_dir

_OPTIONS = EngineOptions(slots=1, context_length=0, threads=1)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama_dir(tmp_path_factory.mktemp("gguf"), kind="Q4_0") / "model.gguf"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama_dir(tmp_path_factory.mktemp("scratch"), kind="Q4_0") / "model.gguf"


def _write(path: Path, values: dict[str, Any], *, architecture: str = "llama") -> Path:
    """A file with the numbers and texts in `values`, and one tensor."""
    writer: Any = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_SIZES = {
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.context_length": 128,
    "llama.attention.head_count": 4,
}
_WHOLE = _SIZES | {"tokenizer.ggml.tokens": ["a", "b", "c"]}


def test_the_header_agrees_with_the_library_that_wrote_it(model_file: Path) -> None:
    header = read_header(model_file)
    reader = gguf.GGUFReader(model_file)
    assert {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors} == header.tensors
    assert set(header.values) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert header.text("general.architecture") == "llama"
    assert len(header.values["tokenizer.ggml.tokens"]) == 640
    assert header.number("llama.context_length") == 256
    assert header.number("general.architecture") == 0


def test_geometry_of_a_model(tmp_path: Path) -> None:
    model = read_model(_write(tmp_path / "m.gguf", _WHOLE))
    assert (model.architecture, model.context_length) == ("llama", 128)
    assert model.cache_bytes(tokens=10) == 2 * (64 + 64) * 2 * 10
    own = _WHOLE | {"llama.attention.key_length": 8, "llama.attention.head_count_kv": [1, 2]}
    assert read_model(_write(tmp_path / "n.gguf", own)).cache_bytes(tokens=1) == 2 * 2 * (8 + 16) * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"llama\.block_count is 0; it must be 1\.\.512"),
        (_WHOLE | {"llama.block_count": 4096}, r"block_count is 4096"),
        (_WHOLE | {"llama.attention.head_count": 0}, r"head_count is 0"),
        (_SIZES, "has no list of tokens"),
        (_SIZES | {"tokenizer.ggml.tokens": ["a", "a"]}, "lists a token twice"),
        (_WHOLE | {"general.type": "adapter"}, r"is a adapter and not a model; .* adapters/"),
        (_WHOLE | {"split.count": 2}, "join the parts"),
    ],
)
def test_a_model_that_contradicts_itself_is_unfit(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartError, match=message) as caught:
        read_model(_write(tmp_path / "m.gguf", values))
    assert caught.value.reason is Reason.UNFIT


def test_a_file_that_is_no_gguf_is_unfit(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content, message in (
        (b"", "the file is empty"),
        (b"PK\3\4 and more of it", "does not begin with GGUF"),
        (b"GGUF\x07\0\0\0", "its version is 7"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "more entries than the file can hold"),
    ):
        path.write_bytes(content)
        with pytest.raises(StartError, match=message):
            read_model(path)
    path.unlink()
    with pytest.raises(StartError, match="No such file"):
        read_model(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_that_was_cut_off_is_refused(model_file: Path, scratch: Path, data: st.DataObject) -> None:
    content = model_file.read_bytes()
    # Beyond the last tensor there is only padding.
    cut = data.draw(st.integers(0, len(content) - 32 * 18))
    scratch.write_bytes(content[:cut])
    with pytest.raises(GgufError):
        read_header(scratch)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_header_or_an_error(
    model_file: Path, scratch: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(model_file.read_bytes())
    for at, value in changes:
        content[at] = value
    scratch.write_bytes(content)
    try:
        header = read_header(scratch)
    except GgufError:
        return
    assert header.tensors


def test_what_ends_llama_cpp_ends_the_probe_only(tmp_path: Path) -> None:
    path = build_llama_dir(tmp_path) / "model.gguf"
    # To our reader a text of its own, to the library the token "app" a second time.
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0apple", b"\x05\0\0\0\0\0\0\0app\0e", 1))
    with pytest.raises(StartError, match=r"llama\.cpp cannot load the model: .*GGML_ASSERT") as caught:
        llama_cpp.load(tmp_path, _OPTIONS)
    assert caught.value.reason is Reason.UNFIT


def test_a_probe_that_the_system_kills_means_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_llama_dir(tmp_path) / "model.gguf"
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, b"", b"")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: killed)
    with pytest.raises(StartError, match="raise the memory limit") as caught:
        probe_model(path)
    assert caught.value.reason is Reason.INSUFFICIENT_CAPACITY


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    sizes = {key.replace("llama.", "magic."): value for key, value in _WHOLE.items()}
    path = _write(tmp_path / "m.gguf", sizes, architecture="magic")
    with pytest.raises(
        StartError, match="unknown model architecture: 'magic'; convert it again, or use another"
    ):
        probe_model(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = build_llama_dir(tmp_path) / "model.gguf"
    path.write_bytes(path.read_bytes().replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_uq.weight"))
    with pytest.raises(StartError, match=r"blk\.2\.ffn_up\.weight' not found"):
        llama_cpp.load(tmp_path, _OPTIONS)


def test_a_complaint_is_told_without_its_wrapping() -> None:
    assert describe(["llama_model_load: error loading model: error loading model vocabulary: no\n"]) == "no"
    assert describe([]) == "no reason given"
