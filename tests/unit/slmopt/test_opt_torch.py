# SPDX-License-Identifier: Apache-2.0
"""Conversions in a process of their own, with libraries from a folder of their own.

The converter here is scripted: the real one weighs gigabytes (docs/optimise.md says how it was run). What is
tested is what it is called with, where it comes from, and what becomes of what it makes.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from slmopt.errors import OptimizeError
from slmopt.torch_convert import LIBRARIES, MAX_LITERT_CONTEXT, convert_litert
from tests.unit.slmopt.kit import ORDERS

_EXPORT = """
import json, pathlib
def export(model, output_dir, **settings):
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    out = pathlib.Path(output_dir)
    out.mkdir(parents=True)
    said = settings | {"hidden": config["hidden_size"]}
    (out / "model_quantized.tflite").write_text(json.dumps(said))
    (out / "notes.litertlm").write_text("a bundle that no engine of ours takes")
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lib"
    module = folder / "litert_torch" / "generative" / "export_hf"
    module.mkdir(parents=True)
    for part in (folder / "litert_torch", module.parent, module):
        (part / "__init__.py").write_text("")
    (module / "export.py").write_text(_EXPORT)
    # Stands in for what litert-torch imports of tensorflow.
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text("")
    monkeypatch.setenv(LIBRARIES, str(folder))
    return folder


def test_a_model_for_the_engine_is_made(libraries: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    convert_litert(ORDERS, target, "dynamic_wi8_afp32")
    said = json.loads((target / "model.tflite").read_text())
    context = json.loads((ORDERS / "genai_config.json").read_text())["model"]["context_length"]
    assert said["quantization_recipe"] == "dynamic_wi8_afp32"
    assert said["bundle_litert_lm"] is False
    assert said["cache_length"] == min(context, MAX_LITERT_CONTEXT)
    assert said["prefill_lengths"] and max(said["prefill_lengths"]) <= said["cache_length"]
    assert {path.name for path in target.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
    assert not list(target.glob("*.litertlm")) and not (target / "genai_config.json").exists()


def test_a_converter_that_fails_is_quoted(libraries: Path, tmp_path: Path) -> None:
    script = libraries / "litert_torch" / "generative" / "export_hf" / "export.py"
    script.write_text("def export(**_):\n    raise RuntimeError('no such operator: FANCY')\n")
    with pytest.raises(OptimizeError, match="no such operator: FANCY"):
        convert_litert(ORDERS, tmp_path, "dynamic_wi8_afp32")


def test_an_image_without_the_libraries_says_which_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARIES, str(tmp_path))
    with pytest.raises(OptimizeError, match=r"litert_torch.*slmops-optimizer:<version>-torch"):
        convert_litert(ORDERS, tmp_path, "dynamic_wi8_afp32")


@pytest.mark.parametrize(
    ("config", "context", "prefill"),
    [
        ({"max_position_embeddings": 2048}, 2048, [16, 64, 256]),
        ({"max_position_embeddings": 10**6}, MAX_LITERT_CONTEXT, [16, 64, 256]),
        ({"max_position_embeddings": 8}, 8, [8]),
        ({"text_config": {"max_position_embeddings": 512}}, 512, [16, 64, 256]),
        ({"max_position_embeddings": True}, MAX_LITERT_CONTEXT, [16, 64, 256]),
        ({}, MAX_LITERT_CONTEXT, [16, 64, 256]),
    ],
)
def test_a_cache_as_long_as_the_model_can_use(
    libraries: Path, tmp_path: Path, config: dict[str, Any], context: int, prefill: list[int]
) -> None:
    source, target = _checkpoint(tmp_path, json.dumps({"hidden_size": 8} | config))
    convert_litert(source, target, "dynamic_wi8_afp32")
    said = json.loads((target / "model.tflite").read_text())
    assert (said["cache_length"], said["prefill_lengths"]) == (context, prefill)


@pytest.mark.parametrize("config", ["", "{", "[]", '{"text_config": 1, "max_position_embeddings": "x"'])
def test_a_configuration_that_is_none_is_named(libraries: Path, tmp_path: Path, config: str) -> None:
    source, target = _checkpoint(tmp_path, config)
    with pytest.raises(OptimizeError, match=r"config\.json is no JSON object"):
        convert_litert(source, target, "dynamic_wi8_afp32")


def _checkpoint(folder: Path, config: str) -> tuple[Path, Path]:
    """A source with this configuration, and an empty target."""
    source, target = folder / "source", folder / "target"
    source.mkdir()
    target.mkdir()
    (source / "config.json").write_text(config)
    (source / "model.safetensors").write_bytes(b"")
    return source, target
