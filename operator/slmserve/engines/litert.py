# SPDX-License-Identifier: Apache-2.0
"""Decoding slots on LiteRT (TFLite), over an export of litert-torch with `prefill_<n>` and `decode`.

Such an export takes one stream: tokens [1, n], their positions [n], a mask [1, 1, n, cache] and per layer a
key and a value cache. The caches of each row are buffers of the runtime, bound as input *and* output, so a
step writes its one position in place and copies nothing. Only tokens, positions, masks and logits are copied.
A decode step runs the rows one after the other: k rows cost k times one row, where engines with a batch
dimension read the weights once for all of them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import ai_edge_litert
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_options import CpuOptions
from ai_edge_litert.environment import Environment, EnvironmentOptions
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import Options
from numpy.typing import NDArray

from slmserve.backend import LoadedEngine
from slmserve.defaults import load_defaults
from slmserve.engines.loading import brief, choose_threads
from slmserve.engines.logits import with_scheduler
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmwire.reasons import Reason

_DECODE: Final = "decode"
_TOKENS, _POSITIONS, _MASK, _LOGITS = "tokens", "input_pos", "mask", "logits"
_CACHE: Final = re.compile(r"kv_cache_[kv]_\d+")
_PREFILL: Final = re.compile(r"prefill_(\d+)")
_HIDDEN: Final = -1e9
"""Added to the score of a position that is not to be seen."""
_CALL_TOKENS: Final = 256
"""About as many prompt tokens as one `prefill` call may take, so that other rows need not wait long."""
_NOWHERE: Final = "/nonexistent"
"""Where no plugin of a chip's vendor is found: it would compile the model anew at each start."""
_SHARED_WEIGHTS: Final = ":memory"
"""A name that XNNPACK knows: weights are packed once for all signatures instead of once for each."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a prompt: `count` tokens in a call of `width`, 0 for single steps of the decode signature."""

    count: int
    width: int


def plan_prefill(count: int, offset: int, widths: Sequence[int], max_length: int) -> list[Piece]:
    """How to append `count` tokens to `offset` held ones with calls of the fixed `widths`, ascending.

    A call that is not full is padded: that costs as much as a full one, and its place [offset, offset +
    width) has to lie within `max_length` (the runtime would move it otherwise, over what is held). So the
    widest full call is taken; the rest gets the narrowest call that holds it where that is at least half
    full or the narrowest of all; and single steps where no call fits.
    """
    pieces: list[Piece] = []
    while count:
        room = max_length - offset
        holding = next((w for w in widths if count <= w <= room), 0)
        full = max((w for w in widths if w <= min(count, room)), default=0)
        if holding and (not full or count * 2 >= holding):
            piece = Piece(count, holding)
        elif full:
            piece = Piece(full, full)
        else:
            piece = Piece(count, 0)
        pieces.append(piece)
        count, offset = count - piece.count, offset + piece.count
    return pieces


class _Call:
    """One signature with its own input buffers."""

    def __init__(self, model: Any, name: str) -> None:
        details = model.get_input_tensor_details(name)
        self._model = model
        self._name = name
        self._inputs = {
            key: model.create_input_buffer_by_name(name, key) for key in (_TOKENS, _POSITIONS, _MASK)
        }
        self._types = {key: np.dtype(details[key]["dtype"]) for key in self._inputs}
        width, length = details[_MASK]["shape"][-2:]
        self.width: Final = int(width)
        self._columns = np.arange(length)

    def run(
        self, tokens: NDArray[np.int64], offset: int, cache: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        """Append `tokens` [1..width] at `offset`; positions beyond them get what nobody will see."""
        padded = np.zeros(self.width, np.int64)
        padded[: len(tokens)] = tokens
        positions = np.arange(offset, offset + self.width)
        seen = self._columns <= positions[:, None]
        mask_type = self._types[_MASK]
        mask = seen if mask_type == np.bool_ else np.where(seen, 0, _HIDDEN)
        values = {_TOKENS: padded[None], _POSITIONS: positions, _MASK: mask[None, None]}
        for key, buffer in self._inputs.items():
            buffer.write(values[key].astype(self._types[key]))
        self._model.run_by_name(self._name, {**self._inputs, **cache}, {**cache, **outputs})


class LiteRtEngine:
    """See the module; construct with `load_engine`."""

    name: Final = "litert"

    def __init__(self, model: Any, *, slots: int, max_length: int) -> None:
        """`max_length` is at most the length of the export's cache."""
        details = model.get_input_tensor_details(_DECODE)
        logits = model.get_output_tensor_details(_DECODE)[_LOGITS]
        self.version: Final[str] = version("ai-edge-litert")
        self.slots: Final = slots
        self.max_length: Final = max_length
        self.vocab_size: Final = int(logits["shape"][-1])
        self._model = model
        self._logits = model.create_output_buffer_by_name(_DECODE, _LOGITS)
        self._logits_type = np.dtype(logits["dtype"])
        self._cache: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            key: (tuple(detail["shape"]), np.dtype(detail["dtype"]))
            for key, detail in details.items()
            if _CACHE.fullmatch(key)
        }
        self._rows: list[dict[str, Any] | None] = [None] * slots
        self._step = _Call(model, _DECODE)
        names = sorted(filter(_PREFILL.fullmatch, model.get_signature_list()))
        self._calls = {call.width: call for call in (_Call(model, name) for name in names)}
        self._widths = sorted(self._calls)
        widest = max(self._widths, default=1)
        # One more than full calls take: the last token goes through `decode`, which gives the logits.
        self.prefill_chunk: Final = max(1, _CALL_TOKENS // widest) * widest + 1

    @property
    def cache_bytes(self) -> int:
        """Most memory that the attention cache of all slots can take."""
        return self.slots * sum(math.prod(shape) * kind.itemsize for shape, kind in self._cache.values())

    def prefill(self, row: int, tokens: NDArray[np.int64], offset: int) -> NDArray[np.float32]:
        """See `Engine.prefill`."""
        cache = self._row(row)
        last = len(tokens) - 1
        at = 0
        for piece in plan_prefill(last, offset, self._widths, self.max_length):
            part = tokens[at : at + piece.count]
            if piece.width:
                self._calls[piece.width].run(part, offset + at, cache, {})
            else:
                for index in range(piece.count):
                    self._run_step(cache, part[index : index + 1], offset + at + index)
            at += piece.count
        self._run_step(cache, tokens[last:], offset + last)
        return self._read_logits()

    def decode(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.decode`; the rows run one after the other."""
        logits = np.empty((len(tokens), self.vocab_size), np.float32)
        for row, length in enumerate(lengths.tolist()):
            self._run_step(self._row(row), tokens[row : row + 1], length)
            logits[row] = self._read_logits()
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """See `Engine.move`; whatever `length` is, the whole row is copied."""
        held, goal = self._row(source), self._row(target)
        for key, (shape, kind) in self._cache.items():
            goal[key].write(held[key].read(math.prod(shape), kind))

    def _row(self, row: int) -> dict[str, Any]:
        """The row's caches, made at first use: an idle slot costs no memory."""
        made = self._rows[row]
        if made is None:
            made = {key: self._model.create_input_buffer_by_name(_DECODE, key) for key in self._cache}
            for key, (shape, kind) in self._cache.items():
                # What the mask hides still is multiplied by zero, and must be a number for that.
                made[key].write(np.zeros(shape, kind).reshape(-1))
            self._rows[row] = made
        return made

    def _run_step(self, cache: Mapping[str, Any], token: NDArray[np.int64], length: int) -> None:
        self._step.run(token, length, cache, {_LOGITS: self._logits})

    def _read_logits(self) -> NDArray[np.float32]:
        logits: NDArray[Any] = self._logits.read(self.vocab_size, self._logits_type)
        return logits.astype(np.float32, copy=False)


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    defaults = load_defaults(model_dir)
    engine = load_engine(model_dir, options)
    return with_scheduler(engine, defaults, cache_bytes=engine.cache_bytes)


def load_engine(model_dir: Path, options: EngineOptions) -> LiteRtEngine:
    """Load the directory's .tflite; raises StartError with the cure when it cannot be served."""
    paths = sorted(model_dir.glob("*.tflite"))
    if len(paths) != 1:
        raise StartError(Reason.UNFIT, f"{len(paths)} .tflite files in the model directory; it must have one")
    threads = choose_threads(options.threads, model_bytes=paths[0].stat().st_size)
    try:
        model = _open_model(paths[0], threads)
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to load the model") from error
    except Exception as error:
        raise StartError(Reason.UNFIT, f"LiteRT cannot load {paths[0].name}: {brief(error)}") from error
    cache_length = _check_signatures(model)
    max_length = min(options.context_length or cache_length, cache_length)
    return LiteRtEngine(model, slots=options.slots, max_length=max_length)


def _open_model(path: Path, threads: int) -> Any:
    environment = Environment.create(
        options=EnvironmentOptions(
            runtime_path=str(Path(ai_edge_litert.__file__).parent),
            compiler_plugin_path=_NOWHERE,
            dispatch_library_path=_NOWHERE,
        )
    )
    processor = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=_SHARED_WEIGHTS)
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=processor)
    return CompiledModel.from_file(str(path), environment=environment, options=options)


def _check_signatures(model: Any) -> int:
    """Length of the export's cache; raises StartError when it is not of the form that this engine runs."""
    cure = "export it with litert-torch export_hf --bundle_litert_lm=False"
    signatures = model.get_signature_list()
    if _DECODE not in signatures:
        raise StartError(Reason.UNFIT, f"the .tflite has no signature {_DECODE!r}; {cure}")
    for name in signatures:
        if name != _DECODE and not _PREFILL.fullmatch(name):
            continue
        inputs = model.get_input_tensor_details(name)
        missing = sorted({_TOKENS, _POSITIONS, _MASK} - inputs.keys())
        unknown = sorted(
            key for key in inputs.keys() - {_TOKENS, _POSITIONS, _MASK} if not _CACHE.fullmatch(key)
        )
        if missing or unknown:
            raise StartError(
                Reason.UNFIT,
                f"signature {name!r} lacks {missing} or needs {unknown[:4]}, which this engine does not "
                f"give; {cure}, without an external embedder and with one cache length",
            )
        if inputs[_TOKENS]["shape"][0] != 1 or min(inputs[_MASK]["shape"]) < 1:
            raise StartError(Reason.UNFIT, f"signature {name!r} has a batch or a dynamic shape; {cure}")
    if _LOGITS not in model.get_output_tensor_details(_DECODE):
        raise StartError(Reason.UNFIT, f"signature {_DECODE!r} gives no {_LOGITS!r}; {cure}")
    return int(model.get_input_tensor_details(_DECODE)[_MASK]["shape"][-1])
