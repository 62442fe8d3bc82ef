# SPDX-License-Identifier: Apache-2.0
"""Decoding slots on llama.cpp, over a GGUF file.

A row is a sequence of one context, with a cache of its own (not unified: a row's attention then
reads its own tokens only). A prefill is a batch with logits for the last token, a decode step one
batch over all rows. Before tokens are appended the row is cut to the length that the caller says.
"""

import ctypes as c
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import LoadedEngine
from slmserve.defaults import load_defaults
from slmserve.engines.gguf_model import GgufModel, check_adapter, read_model
from slmserve.engines.llama_library import (
    LOAD_MODE_MMAP,
    PINNED_VERSION,
    TYPE_F16,
    Batch,
    Library,
    open_library,
)
from slmserve.engines.llama_probe import describe, probe_model
from slmserve.engines.loading import choose_threads
from slmserve.engines.logits import with_scheduler
from slmserve.engines.memory import memory_limit_bytes
from slmserve.engines.registry import EngineOptions
from slmserve.engines.vocabulary import read_vocabulary
from slmserve.errors import StartError
from slmserve.tokenizer import TOKENIZER_FILE
from slmwire.reasons import Reason

ADAPTER_PATTERN: Final = "adapters/*.gguf"
_CHUNK: Final = 256
_SAMPLED_TOKENS: Final = 1024
_DIFFERING_SHARE: Final = 100
"""One token in so many may differ: converters write some added tokens in their own way."""
_NO_SLOT: Final = 1
"""What llama_decode returns when the cache has no room."""


class LlamaEngine:
    """See the module; construct with `load_engine`. `adapters` are names that rows can be given."""

    name: Final = "llama.cpp"
    version: Final = PINNED_VERSION

    def __init__(
        self, library: Library, model: int, context: int, *, slots: int, max_length: int, threads: int
    ) -> None:
        """`model` and `context` are pointers; the engine frees both with `close`."""
        self._library = library
        self._model, self._context = model, context
        self._memory = library.llama_get_memory(context)
        self._vocabulary = library.llama_model_get_vocab(model)
        self.slots: Final = slots
        self.max_length: Final = max_length
        self.threads: Final = threads
        self.vocab_size: Final[int] = library.llama_vocab_n_tokens(self._vocabulary)
        self.prefill_chunk: Final = _CHUNK
        self._held = [0] * slots
        """Tokens of each row in the library's cache."""
        self._tokens = np.zeros((slots, max_length), np.int32)
        self._row_adapters = [""] * slots
        self._active_adapter = ""
        self._loaded_adapters: dict[str, int] = {}
        size = max(_CHUNK, slots)
        self._ids = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        self._rows = np.zeros(size, np.int32)
        # One pointer per token, each to the one row that the token belongs to.
        self._row_pointers = (self._rows.ctypes.data + 4 * np.arange(size)).astype(np.uintp)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that are loaded."""
        return tuple(self._loaded_adapters)

    def add_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter; raises StartError (Unfit)."""
        with self._library.log.keep() as lines:
            adapter = self._library.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            message = f"llama.cpp cannot load the adapter {path.name}: {describe(lines)}; convert it again"
            raise StartError(Reason.UNFIT, message)
        self._loaded_adapters[name] = adapter

    def assign_adapter(self, row: int, name: str) -> None:
        """Use the adapter `name` (empty: none) for what is appended to `row` from now on.

        Raises KeyError when there is no such adapter.
        """
        if name and name not in self._loaded_adapters:
            raise KeyError(name)
        self._row_adapters[row] = name

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """See `Engine.prefill`."""
        self._cut(row, offset)
        return self._append(row, tokens, offset)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.decode`."""
        for row, length in enumerate(lengths.tolist()):
            self._cut(row, length)
        names = self._row_adapters[: len(tokens)]
        if len(set(names)) == 1:
            return self._step(np.arange(len(tokens)), tokens, lengths)
        logits = np.empty((len(tokens), self.vocab_size), np.float32)
        for name in dict.fromkeys(names):
            rows = np.array([row for row, own in enumerate(names) if own == name])
            logits[rows] = self._step(rows, tokens[rows], lengths[rows])
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """See `Engine.move`."""
        if source == target:
            return
        # Copies all that the source holds: the library copies no part of a row.
        self._library.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._held[target] = self._held[source]
        self._tokens[target] = self._tokens[source]
        self._row_adapters[target] = self._row_adapters[source]
        self._cut(target, length)

    def close(self) -> None:
        """Free context and model; nothing may be called after it."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer, as the file's vocabulary says."""
        ends = self._library.llama_vocab_is_eog
        return frozenset(token for token in range(self.vocab_size) if ends(self._vocabulary, token))

    def token_text(self, token: int) -> str:
        """The text of a token as the file's vocabulary writes it."""
        text: bytes = self._library.llama_vocab_get_text(self._vocabulary, token)
        return text.decode(errors="replace")

    def _cut(self, row: int, length: int) -> None:
        """Forget what `row` holds after its first `length` tokens."""
        held = self._held[row]
        if held < length:
            raise ValueError(f"row {row} holds {held} tokens, not {length}")
        if held == length:
            return
        if not self._library.llama_memory_seq_rm(self._memory, row, length, -1):
            # A recurrent state cannot be shortened: compute it again.
            self._library.llama_memory_seq_rm(self._memory, row, -1, -1)
            self._held[row] = 0
            for start in range(0, length, _CHUNK):
                part = self._tokens[row, start : min(start + _CHUNK, length)].astype(np.int64)
                self._append(row, part, start)
        self._held[row] = length

    def _append(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        count = len(tokens)
        self._ids[:count] = tokens
        self._positions[:count] = np.arange(offset, offset + count)
        self._rows[:count] = row
        self._wanted[:count] = 0
        self._wanted[count - 1] = 1
        self._run(count, self._row_adapters[row])
        self._tokens[row, offset : offset + count] = tokens
        self._held[row] = offset + count
        return self._logits(1).reshape(-1)

    def _step(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Append one token to each of `rows`, which use one adapter."""
        count = len(rows)
        self._ids[:count] = tokens
        self._positions[:count] = lengths
        self._rows[:count] = rows
        self._wanted[:count] = 1
        self._run(count, self._row_adapters[int(rows[0])])
        self._tokens[rows, lengths] = tokens
        for row in rows.tolist():
            self._held[row] += 1
        return self._logits(count)

    def _run(self, count: int, adapter: str) -> None:
        """Decode the first `count` entries of the batch; raises RuntimeError, and forgets its rows then."""
        self._use_adapter(adapter)
        batch = Batch(
            n_tokens=count,
            token=self._ids.ctypes.data,
            pos=self._positions.ctypes.data,
            n_seq_id=self._counts.ctypes.data,
            seq_id=self._row_pointers.ctypes.data,
            logits=self._wanted.ctypes.data,
        )
        code = self._library.llama_decode(self._context, batch)
        if code:
            for row in set(self._rows[:count].tolist()):
                self._library.llama_memory_seq_rm(self._memory, row, -1, -1)
                self._held[row] = 0
            why = "the cache has no room" if code == _NO_SLOT else f"code {code}"
            raise RuntimeError(f"llama.cpp could not decode {count} tokens: {why}")

    def _use_adapter(self, name: str) -> None:
        if name == self._active_adapter:
            return
        chosen = [self._loaded_adapters[name]] if name else []
        pointers, scales = (c.c_void_p * 1)(*chosen), (c.c_float * 1)(1.0)
        if self._library.llama_set_adapters_lora(self._context, pointers, len(chosen), scales):
            raise RuntimeError(f"llama.cpp could not apply the adapter {name!r}")
        self._active_adapter = name

    def _logits(self, rows: int) -> NDArray[np.float32]:
        """The library's own buffer [rows, vocab], valid until the next call."""
        address = self._library.llama_get_logits(self._context)
        if not address:
            raise RuntimeError("llama.cpp gave no logits")
        values: Any = (c.c_float * (rows * self.vocab_size)).from_address(address)
        logits: NDArray[np.float32] = np.frombuffer(values, np.float32)
        return logits.reshape(rows, self.vocab_size)


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    # OpenMP keeps a team of threads for each thread that ever computed. Loading computes, and steps come from
    # the scheduler's thread: with two teams there are more threads than CPUs, so those of a step no longer
    # spin but sleep at each of its hundred barriers, and one stream is a third slower. A thread's team ends
    # with it.
    with ThreadPoolExecutor(1, "load") as passing:
        return passing.submit(_load_here, model_dir, options).result()


def _load_here(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    engine, model = load_engine(model_dir, options)
    defaults = load_defaults(model_dir, engine.end_tokens())
    if not defaults.end_tokens:
        message = (
            f"{model.path.name} names no end token; set tokenizer.ggml.eos_token_id and convert it again"
        )
        raise StartError(Reason.UNFIT, message)
    cache_bytes = model.cache_bytes(tokens=engine.slots * engine.max_length)
    return with_scheduler(engine, defaults, cache_bytes=cache_bytes)


def load_engine(model_dir: Path, options: EngineOptions) -> tuple[LlamaEngine, GgufModel]:
    """Check and load the model and its adapters; raises StartError with reason and cure."""
    model = read_model(_only_file(model_dir))
    adapters = sorted(model_dir.glob(ADAPTER_PATTERN))
    for path in adapters:
        check_adapter(path, architecture=model.architecture)
    max_length = min(options.context_length or model.context_length, model.context_length)
    _check_memory(model, slots=options.slots, max_length=max_length)
    library = open_library()
    probe_model(model.path)
    threads = choose_threads(options.threads, model_bytes=model.size_bytes)
    engine = _open(library, model, slots=options.slots, max_length=max_length, threads=threads)
    _check_vocabulary(engine, model_dir, model)
    for path in adapters:
        engine.add_adapter(path.stem, path)
    return engine, model


def _only_file(model_dir: Path) -> Path:
    files = sorted(model_dir.glob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:4]) or "none"
        raise StartError(
            Reason.UNFIT,
            f"the model directory must have one *.gguf file, and has {names}; keep the one to serve",
        )
    return files[0]


def _check_memory(model: GgufModel, *, slots: int, max_length: int) -> None:
    """The library fills the whole cache with zeros at once, and some weights are repacked in memory."""
    cache, limit = model.cache_bytes(tokens=slots * max_length), memory_limit_bytes()
    if model.size_bytes + cache > limit:
        raise StartError(
            Reason.INSUFFICIENT_CAPACITY,
            f"{model.size_bytes >> 20} MiB of weights and {cache >> 20} MiB of cache for {slots} slots of "
            f"{max_length} tokens do not fit in {limit >> 20} MiB; lower slots or context length, or use a "
            "smaller file",
        )


def _open(library: Library, model: GgufModel, *, slots: int, max_length: int, threads: int) -> LlamaEngine:
    params: Any = library.llama_model_default_params()
    params.n_gpu_layers, params.load_mode = 0, LOAD_MODE_MMAP
    with library.log.keep() as lines:
        pointer = library.llama_model_load_from_file(os.fsencode(model.path), params)
        if not pointer:
            raise StartError(
                Reason.UNFIT, f"llama.cpp cannot load {model.path.name}: {describe(lines)}; convert it again"
            )
        if library.llama_model_has_encoder(pointer) or not library.llama_model_has_decoder(pointer):
            library.llama_model_free(pointer)
            message = f"{model.path.name} is {model.architecture}, which does not generate text by itself"
            raise StartError(Reason.UNFIT, f"{message}; use a decoder-only model")
        wanted: Any = library.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = slots * max_length, slots
        wanted.n_batch = wanted.n_ubatch = max(_CHUNK, slots)
        wanted.n_outputs_max = slots
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.type_k = wanted.type_v = TYPE_F16
        context = library.llama_init_from_model(pointer, wanted)
    if not context:
        library.llama_model_free(pointer)
        raise StartError(
            Reason.INSUFFICIENT_CAPACITY,
            f"llama.cpp cannot make {slots} slots of {max_length} tokens: {describe(lines)}; lower slots or "
            "context length",
        )
    return LlamaEngine(library, pointer, context, slots=slots, max_length=max_length, threads=threads)


def _check_vocabulary(engine: LlamaEngine, model_dir: Path, model: GgufModel) -> None:
    """tokenizer.json and the file must mean the same by a token; compares a sample spread over all."""
    cure = f"put the {TOKENIZER_FILE} beside it that the model was converted with"
    texts = read_vocabulary(model_dir)
    if max(texts) >= engine.vocab_size:
        raise StartError(
            Reason.UNFIT,
            f"{model.path.name} has {engine.vocab_size} tokens and {TOKENIZER_FILE} goes up to "
            f"{max(texts)}; {cure}",
        )
    step = max(1, len(texts) // _SAMPLED_TOKENS)
    sample = sorted(texts)[::step]
    differing = [number for number in sample if _plain(engine.token_text(number)) != _plain(texts[number])]
    if len(differing) > len(sample) // _DIFFERING_SHARE:
        first = differing[0]
        theirs, ours = engine.token_text(first)[:40], texts[first][:40]
        raise StartError(
            Reason.UNFIT,
            f"{len(differing)} of {len(sample)} tokens differ: {first} is {theirs!r} in {model.path.name} "
            f"and {ours!r} in {TOKENIZER_FILE}; {cure}",
        )


def _plain(text: str) -> str:
    """Converters write the sign for a leading space as a space in some tokens."""
    return text.replace("\u2581", " ")
