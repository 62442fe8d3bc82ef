# SPDX-License-Identifier: Apache-2.0
"""What a GGUF model or adapter says about itself, checked before llama.cpp sees the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slmserve.engines.gguf_header import GgufError, GgufHeader, read_header
from slmserve.errors import StartError
from slmwire.reasons import Reason

_MOST_LAYERS: Final = 512
_MOST_HEADS: Final = 65_536
_F16_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """Geometry of a model file; `size_bytes` of the whole file."""

    path: Path
    size_bytes: int
    architecture: str
    context_length: int
    kv_values_per_token: int
    """Numbers that the attention cache holds per token, keys and values of all layers together."""

    def cache_bytes(self, *, tokens: int) -> int:
        """Memory of an attention cache of float16 for so many tokens."""
        return tokens * self.kv_values_per_token * _F16_BYTES


def _unfit(path: Path, message: str) -> StartError:
    return StartError(Reason.UNFIT, f"{path.name}: {message}")


def _read(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except OSError as error:
        raise _unfit(path, f"cannot be read ({error.strerror})") from error
    except GgufError as error:
        raise _unfit(path, f"not a usable GGUF file: {error}; copy or convert it again") from error


def read_model(path: Path) -> GgufModel:
    """Read and check a model's header; raises StartError (Unfit) with the cure."""
    header = _read(path)
    kind = header.text("general.type") or "model"
    if kind != "model":
        raise _unfit(path, f"is a {kind} and not a model; adapters belong into the directory adapters/")
    if header.number("split.count") > 1:
        raise _unfit(path, "is a part of a split model; join the parts with llama-gguf-split --merge")
    name = header.text("general.architecture")
    if not name:
        raise _unfit(path, "does not name its architecture; convert the model again")
    for key, most in (
        ("block_count", _MOST_LAYERS),
        ("embedding_length", 1 << 20),
        ("context_length", 1 << 31),
        ("attention.head_count", _MOST_HEADS),
    ):
        value = header.number(f"{name}.{key}")
        if not 0 < value <= most:
            raise _unfit(path, f"{name}.{key} is {value}; it must be 1..{most}; convert the model again")
    _check_tokens(path, header)
    return GgufModel(
        path=path,
        size_bytes=path.stat().st_size,
        architecture=name,
        context_length=header.number(f"{name}.context_length"),
        kv_values_per_token=_kv_values(header, name),
    )


def _check_tokens(path: Path, header: GgufHeader) -> None:
    tokens = header.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple) or not tokens or not all(isinstance(one, str) for one in tokens):
        raise _unfit(path, "has no list of tokens; convert it again together with its tokenizer")
    if len(set(tokens)) < len(tokens):
        raise _unfit(path, "lists a token twice; convert it again together with its tokenizer")


def _kv_values(header: GgufHeader, name: str) -> int:
    """Per token; an upper bound where layers differ (windows, linear attention)."""
    heads = header.number(f"{name}.attention.head_count")
    kv_heads = header.number(f"{name}.attention.head_count_kv") or heads
    size = header.number(f"{name}.embedding_length") // heads
    key = header.number(f"{name}.attention.key_length") or size
    value = header.number(f"{name}.attention.value_length") or size
    return header.number(f"{name}.block_count") * kv_heads * (key + value)


def check_adapter(path: Path, *, architecture: str) -> None:
    """Check that a file is a LoRA adapter for `architecture`; raises StartError (Unfit)."""
    header = _read(path)
    if header.text("general.type") != "adapter" or header.text("adapter.type") != "lora":
        raise _unfit(path, "is not a LoRA adapter; convert it with llama.cpp's convert_lora_to_gguf")
    own = header.text("general.architecture")
    if own != architecture:
        raise _unfit(path, f"is an adapter for {own or 'nothing'}; this model is {architecture}")
