# SPDX-License-Identifier: Apache-2.0
"""Decoding slots on plain ONNX Runtime, over an export of the onnxruntime-genai builder.

Each layer's key and value cache is one buffer [rows, kv_heads, max_length, head_size], bound as
past *and* present: the export's GroupQueryAttention appends in place, at the position that it reads
from the row's sum of the attention mask. A prefill works on a one-row view of the buffers and a
decode step on the first k rows; neither copies anything. With more than one slot there is a spare
row, so that a prefix outlives its request while all slots are busy. Rows next to each other with
the same LoRA adapter decode in one run, unless the graph quantizes activations with one scale for all
of them.
"""

import contextlib
import math
import mmap
import os
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

# Set before the library loads: no event leaves the device.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from slmserve.backend import GenerationDefaults, LoadedEngine
from slmserve.engines.base import Reuse
from slmserve.engines.head import keep_last_position
from slmserve.engines.loading import brief, choose_threads, shares_scale
from slmserve.engines.logits import with_scheduler
from slmserve.engines.onnx_adapters import Matrices, load_adapters
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmserve.export import ExportConfig, load_export
from slmwire.reasons import Reason

_KV_TYPES: Final[dict[str, Any]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INDEX_TYPES: Final[dict[str, Any]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_WIDTH_STEP: Final = 256
"""Attention masks are this many tokens wide, or a multiple: few bindings, each used many times."""
_MOST_STEPS: Final = 2048
"""Bindings that are kept; only adapters in changing rows make so many."""
_CHUNK: Final = 256
_SPARE_ROWS: Final = 1
_SPIN_MICROSECONDS: Final = "20"
_EDIT_BYTES: Final = 256 << 20
"""A larger graph file has its weights inside; a second copy of them would cost too much memory."""
_SCRATCH_BYTES: Final = 96 << 20
"""Bound for what one prefill call needs beside weights and cache (attention scores, logits)."""


class OnnxSlotsEngine:
    """See the module; construct with `load_engine`."""

    name: Final = "onnxruntime"

    def __init__(
        self,
        session: Any,
        config: ExportConfig,
        *,
        slots: int,
        max_length: int,
        last_only: bool,
        alone: bool,
        adapters: Mapping[str, Matrices],
    ) -> None:
        """`last_only`: the session gives logits for the last position instead of all.

        `alone`: rows may not share a run, as one would change the other's logits.
        """
        self.version: Final[str] = ort.__version__
        self.slots: Final = slots
        self.max_length: Final = max_length
        self.vocab_size: Final = config.vocab_size
        self._session = session
        self._config = config
        kinds = {node.name: node.type for node in session.get_inputs()}
        self._ids_type = _INDEX_TYPES[kinds[config.input_ids]]
        self._mask_type = _INDEX_TYPES[kinds[config.attention_mask]]
        self._position_type = _INDEX_TYPES.get(kinds.get(config.position_ids, ""))
        kv_type = _KV_TYPES[kinds[config.past_names[0]]]
        self.spare_rows: Final = _SPARE_ROWS if slots > 1 else 0
        rows = slots + self.spare_rows
        shape = (len(config.past_names), rows, config.kv_heads, max_length, config.head_size)
        self._cache = _allocate(shape, kv_type)
        self._logits_type = _KV_TYPES[{n.name: n.type for n in session.get_outputs()}[config.logits]]
        self._logits = np.zeros(slots * config.vocab_size, self._logits_type)
        self._last_only = last_only
        self.alone: Final = alone
        positions = 0 if last_only else config.vocab_size
        per_token = max(config.heads * max_length, positions) * 4
        self.prefill_chunk: Final = max(16, min(_CHUNK, _SCRATCH_BYTES // per_token))
        self._lora: dict[str, Matrices] = {"": {}, **adapters}
        self._row_adapters = [""] * rows
        self._steps: dict[tuple[int, int, int, str], _DecodeStep] = {}
        self._prefills: dict[tuple[int, str], Any] = {}

    @property
    def cache_bytes(self) -> int:
        """Most memory that the attention cache of all rows can take."""
        return self._cache.nbytes

    @property
    def adapters(self) -> tuple[str, ...]:
        """See `AdapterEngine.adapters`."""
        return tuple(name for name in self._lora if name)

    def assign_adapter(self, row: int, name: str) -> None:
        """See `AdapterEngine.assign_adapter`."""
        if name not in self._lora:
            raise KeyError(name)
        self._row_adapters[row] = name

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """See `Engine.prefill`."""
        key = row, self._row_adapters[row]
        binding = self._prefills.get(key)
        if binding is None:
            binding = self._prefills[key] = self._bind_cache(row, row + 1)
            if self._last_only:
                binding.bind_ortvalue_output(self._config.logits, self._logits_value(0, 1))
        end = offset + len(tokens)
        binding.bind_cpu_input(self._config.input_ids, tokens[None].astype(self._ids_type))
        binding.bind_cpu_input(self._config.attention_mask, np.ones((1, end), self._mask_type))
        if self._position_type is not None:
            positions = np.arange(offset, end, dtype=self._position_type)[None]
            binding.bind_cpu_input(self._config.position_ids, positions)
        if not self._last_only:
            # The number of positions differs from call to call: the session allocates the output.
            binding.bind_output(self._config.logits)
        self._session.run_with_iobinding(binding)
        if not self._last_only:
            return np.asarray(binding.get_outputs()[-1].numpy()[0, -1], np.float32)
        return self._logits[: self.vocab_size].astype(np.float32, copy=False)

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.decode`."""
        count, first = len(tokens), 0
        for name, group in groupby(self._row_adapters[:count]):
            last = first + len(list(group))
            together = 1 if self.alone else last - first
            for start in range(first, last, together):
                end = start + together
                needed = int(lengths[start:end].max()) + 1
                self._find_step(start, end, needed, name).run(tokens[start:end], lengths[start:end])
            first = last
        logits = self._logits[: count * self.vocab_size].reshape(count, self.vocab_size)
        return logits.astype(np.float32, copy=False)

    def _find_step(self, first: int, last: int, needed: int, adapter: str) -> "_DecodeStep":
        width = min(self.max_length, -(-needed // _WIDTH_STEP) * _WIDTH_STEP)
        key = first, last, width, adapter
        step = self._steps.get(key)
        if step is None:
            if len(self._steps) >= _MOST_STEPS:
                self._steps.clear()
            step = self._steps[key] = _DecodeStep(self, first, last, width)
        return step

    def move(self, source: int, target: int, length: int) -> None:
        """See `Engine.move`."""
        self._cache[:, target, :, :length] = self._cache[:, source, :, :length]
        self._row_adapters[target] = self._row_adapters[source]

    def _logits_value(self, first: int, last: int) -> Any:
        flat = self._logits[first * self.vocab_size : last * self.vocab_size]
        return ort.OrtValue.ortvalue_from_numpy(flat.reshape(last - first, 1, self.vocab_size))

    def _bind_cache(self, first: int, last: int) -> Any:
        """The cache of rows `first` to `last`, and the matrices of the adapter that they use."""
        binding = self._session.io_binding()
        names = zip(self._config.past_names, self._config.present_names, self._cache, strict=True)
        for past, present, part in names:
            view = ort.OrtValue.ortvalue_from_numpy(part[first:last])
            binding.bind_ortvalue_input(past, view)
            binding.bind_ortvalue_output(present, view)
        for name, value in self._lora[self._row_adapters[first]].items():
            binding.bind_ortvalue_input(name, value)
        return binding


class _DecodeStep:
    """Everything one decode step over some rows needs, bound once and rewritten in place."""

    __slots__ = ("_binding", "_columns", "_ids", "_keep", "_mask", "_positions", "_session")

    def __init__(self, engine: OnnxSlotsEngine, first: int, last: int, width: int) -> None:
        config, rows = engine._config, last - first
        self._session = engine._session
        self._binding = engine._bind_cache(first, last)
        self._columns = np.arange(width)
        self._ids = np.zeros((rows, 1), engine._ids_type)
        self._mask = np.zeros((rows, width), engine._mask_type)
        self._positions: NDArray[Any] | None = None
        bound = [(config.input_ids, self._ids), (config.attention_mask, self._mask)]
        if engine._position_type is not None:
            self._positions = np.zeros((rows, 1), engine._position_type)
            bound.append((config.position_ids, self._positions))
        # The bindings hold no reference to the memory behind their values.
        self._keep = [ort.OrtValue.ortvalue_from_numpy(array) for _, array in bound]
        for (name, _), value in zip(bound, self._keep, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        logits = engine._logits_value(first, last)
        self._keep.append(logits)
        self._binding.bind_ortvalue_output(config.logits, logits)

    def run(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self._ids[:, 0] = tokens
        np.less_equal(self._columns, lengths[:, None], out=self._mask, casting="unsafe")
        if self._positions is not None:
            self._positions[:, 0] = lengths
        self._session.run_with_iobinding(self._binding)


def _allocate(shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """Zeros that cost memory page by page as they are touched: what a slot does not use is free.

    numpy's own zeros ask for pages of 2 MiB, and a short prompt touches as many of those as a long
    one: eight slots of 2,048 tokens with a hundred in each took 430 MB instead of 24.
    """
    size = math.prod(shape) * np.dtype(kind).itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError from error
    with contextlib.suppress(OSError):  # a system without large pages refuses the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, kind).reshape(shape)


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Prompt lengths differ, so a memory plan per shape would only grow.
    options.enable_mem_pattern = False
    # Threads spin between two operators and no longer: that makes a step a sixth faster, while on
    # busy cores a thread that spins for its default of a millisecond keeps the one that it waits
    # for from running.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    return options


def _open_session(path: Path, threads: int, logits: str) -> tuple[Any, bool]:
    """The session, and whether it gives logits for the last position only."""
    options, providers = _session_options(threads), ["CPUExecutionProvider"]
    if path.stat().st_size <= _EDIT_BYTES:
        edited = keep_last_position(path.read_bytes(), logits)
        if edited is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
            return ort.InferenceSession(edited, options, providers=providers), True
    return ort.InferenceSession(str(path), options, providers=providers), False


def _check_inputs(session: Any, config: ExportConfig) -> None:
    kinds = {node.name: node.type for node in session.get_inputs()}
    known = {config.input_ids, config.attention_mask, *config.past_names}
    if config.position_ids:
        known.add(config.position_ids)
    if unknown := sorted(kinds.keys() - known):
        raise StartError(
            Reason.UNFIT, f"the model needs inputs that this engine does not give: {unknown[:4]}"
        )
    if missing := sorted(known - kinds.keys() - {config.position_ids}):
        raise StartError(Reason.UNFIT, f"genai_config.json names inputs that the model lacks: {missing[:4]}")
    outputs = {node.name: node.type for node in session.get_outputs()}
    if absent := sorted({config.logits, *config.present_names} - outputs.keys()):
        raise StartError(Reason.UNFIT, f"genai_config.json names outputs that the model lacks: {absent[:4]}")
    if kinds[config.past_names[0]] not in _KV_TYPES or outputs[config.logits] not in _KV_TYPES:
        raise StartError(Reason.UNFIT, f"the cache is {kinds[config.past_names[0]]}; use float32 or float16")
    for name in (config.input_ids, config.attention_mask):
        if kinds[name] not in _INDEX_TYPES:
            raise StartError(Reason.UNFIT, f"input {name} is {kinds[name]}; use int64 or int32")


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    export = load_export(model_dir)
    engine = load_engine(
        model_dir,
        export,
        slots=options.slots,
        context_length=options.context_length,
        threads=options.threads,
        more_adapters={name: Path(file) for name, file in options.more_adapters},
    )
    defaults = GenerationDefaults(
        end_tokens=export.end_tokens, temperature=export.temperature, top_p=export.top_p
    )
    return with_scheduler(
        engine,
        defaults,
        cache_bytes=engine.cache_bytes,
        # A prefix that another request computed has other numbers where activations share a scale.
        reuse=Reuse.NONE if engine.alone else Reuse.PREFIX,
        spare_rows=engine.spare_rows,
    )


def load_engine(
    model_dir: Path,
    config: ExportConfig,
    *,
    slots: int,
    context_length: int,
    threads: int,
    more_adapters: Mapping[str, Path] | None = None,
) -> OnnxSlotsEngine:
    """Load the model; raises StartError with the cure when it cannot be served.

    `context_length` 0 means the model's own limit; more than that limit is cut to it. `threads` 0
    means as many as the model can use of the CPUs that this process may use.
    """
    ort.disable_telemetry_events()
    max_length = min(context_length or config.context_length, config.context_length)
    path = model_dir / config.filename
    model_bytes = sum(file.stat().st_size for file in model_dir.glob(f"{config.filename}*"))
    try:
        session, last_only = _open_session(
            path, choose_threads(threads, model_bytes=model_bytes), config.logits
        )
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to load the model") from error
    except Exception as error:
        raise StartError(Reason.UNFIT, f"ONNX Runtime cannot load the model: {brief(error)}") from error
    _check_inputs(session, config)
    adapters = load_adapters(model_dir, session, more_adapters or {})
    try:
        return OnnxSlotsEngine(
            session,
            config,
            slots=slots,
            max_length=max_length,
            last_only=last_only,
            alone=shares_scale(path),
            adapters=adapters,
        )
    except MemoryError as error:
        message = f"not enough memory for {slots} slots of {max_length} tokens; lower slots or context length"
        raise StartError(Reason.INSUFFICIENT_CAPACITY, message) from error
