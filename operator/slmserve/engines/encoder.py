# SPDX-License-Identifier: Apache-2.0
"""Embeddings on plain ONNX Runtime: BERT-type exports with `model.onnx` and `config.json`.

The graph takes input_ids and attention_mask [n, length] (token_type_ids and position_ids where it has them)
and gives one vector per token [n, length, d], or the texts' vectors [n, d] as `sentence_embedding`. Texts go
through it sorted by length, so that little is padding. Where the graph quantises its activations as they
come, the scale is that of the whole batch, and a text's vector would depend on its company: there each text
goes alone.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

# Set before the library loads: no event leaves the device.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from slmserve.backend import EngineInfo, GenerationDefaults, LoadedEngine
from slmserve.config import available_cpus
from slmserve.engines.encoder_config import EncoderConfig, Pooling, load_encoder_config
from slmserve.engines.loading import brief, shares_scale
from slmserve.engines.registry import EngineOptions
from slmserve.errors import StartError
from slmwire.reasons import Reason

MODEL_FILE: Final = "model.onnx"
_IDS, _MASK, _TYPES, _POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
_POOLED: Final = ("sentence_embedding",)
_PER_TOKEN: Final = ("last_hidden_state", "token_embeddings")
_INDEX_TYPES: Final[dict[str, Any]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_OUTPUT_TYPES: Final = {"tensor(float)", "tensor(float16)", "tensor(int8)"}
"""An int8 vector has one scale, which normalising takes out again."""
_BATCH_TOKENS: Final = 4096
"""Bounds the memory that a long list takes."""


def group_by_length(lengths: Sequence[int], *, most_tokens: int) -> list[list[int]]:
    """Indices of sequences to run together; at most half of a group's positions are padding.

    `lengths` are positive. `most_tokens` bounds a group's count times its longest; a group has at least
    one, and with a bound of 1 exactly one.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        last = groups[-1] if groups else []
        longest = lengths[index]
        fits = last and (len(last) + 1) * longest <= most_tokens and longest <= 2 * lengths[last[0]]
        if fits:
            last.append(index)
        else:
            groups.append([index])
    return groups


def pool(states: NDArray[Any], lengths: NDArray[np.int64], pooling: Pooling) -> NDArray[np.float32]:
    """Vectors [n, d] from `states` [n, length, d], of which row i counts up to lengths[i]."""
    rows = np.arange(len(states))
    if pooling is Pooling.CLS:
        return states[:, 0].astype(np.float32)
    if pooling is Pooling.LAST:
        return states[rows, lengths - 1].astype(np.float32)
    counted = np.arange(states.shape[1]) < lengths[:, None]
    total = np.where(counted[..., None], states, 0).sum(axis=1, dtype=np.float32)
    means: NDArray[np.float32] = total / lengths[:, None].astype(np.float32)
    return means


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row with length 1; a row of zeros stays."""
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(sizes, np.finfo(np.float32).tiny)
    return unit


class Encoder:
    """See the module; construct with `load_encoder`."""

    def __init__(self, session: Any, config: EncoderConfig, *, max_length: int, batch_tokens: int) -> None:
        """`batch_tokens`: most positions of one run, padding included; 1: every text alone."""
        self.max_length = max_length
        self._session = session
        self._config = config
        self._batch_tokens = batch_tokens
        self._types = {node.name: _INDEX_TYPES[node.type] for node in session.get_inputs()}
        self._output, self._pooled = _find_output(session)
        self.dimensions = int(self._run([[0]]).shape[1])

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        lengths = [len(tokens) for tokens in batch]
        if wrong := [n for n in lengths if not 1 <= n <= self.max_length]:
            raise ValueError(f"a text has {wrong[0]} tokens; it must have 1 to {self.max_length}")
        vectors = np.empty((len(batch), self.dimensions), np.float32)
        for group in group_by_length(lengths, most_tokens=self._batch_tokens):
            vectors[group] = self._run([batch[index] for index in group])
        return normalise(vectors)

    def _run(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, d] of one padded batch, as long as they come."""
        lengths = np.array([len(tokens) for tokens in batch])
        width = int(lengths.max())
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, self._config.pad_token, np.int64)
        ids[mask] = np.concatenate([np.asarray(tokens, np.int64) for tokens in batch])
        positions = np.broadcast_to(np.arange(width), mask.shape)
        values = {_IDS: ids, _MASK: mask, _TYPES: np.zeros_like(ids), _POSITIONS: positions}
        feed = {name: values[name].astype(kind) for name, kind in self._types.items()}
        (output,) = self._session.run([self._output], feed)
        if self._pooled:
            return np.asarray(output, np.float32)
        return pool(output, lengths, self._config.pooling)


def _find_output(session: Any) -> tuple[str, bool]:
    """Name of the output to take, and whether it has the texts' vectors already."""
    outputs = {node.name: node for node in session.get_outputs()}
    for name in _POOLED:
        if name in outputs:
            return _checked(outputs[name]), True
    for name in _PER_TOKEN:
        if name in outputs:
            return _checked(outputs[name]), False
    for node in outputs.values():
        if len(node.shape) == 3:
            return _checked(node), False
    raise StartError(
        Reason.UNFIT, f"the model's outputs {sorted(outputs)[:4]} have no {_PER_TOKEN[0]} [n, length, d]"
    )


def _checked(node: Any) -> str:
    if node.type not in _OUTPUT_TYPES:
        raise StartError(Reason.UNFIT, f"output {node.name} is {node.type}; use float32, float16 or int8")
    return str(node.name)


def _check_inputs(session: Any) -> None:
    kinds = {node.name: node.type for node in session.get_inputs()}
    if missing := sorted({_IDS, _MASK} - kinds.keys()):
        raise StartError(Reason.UNFIT, f"the model lacks inputs {missing}; export it with its attention mask")
    if unknown := sorted(kinds.keys() - {_IDS, _MASK, _TYPES, _POSITIONS}):
        raise StartError(
            Reason.UNFIT, f"the model needs inputs that this engine does not give: {unknown[:4]}"
        )
    if wrong := sorted(name for name, kind in kinds.items() if kind not in _INDEX_TYPES):
        raise StartError(Reason.UNFIT, f"input {wrong[0]} is {kinds[wrong[0]]}; use int64 or int32")


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    config = load_encoder_config(model_dir)
    encoder = load_encoder(model_dir, config, options)
    info = EngineInfo(
        name="encoder",
        version=ort.__version__,
        slots=options.slots,
        max_length=encoder.max_length,
        vocab_size=config.vocab_size,
        capabilities=frozenset(),
    )
    return LoadedEngine(
        info=info,
        defaults=GenerationDefaults(end_tokens=frozenset()),
        build_backend=None,
        embedder=encoder,
    )


def load_encoder(model_dir: Path, config: EncoderConfig, options: EngineOptions) -> Encoder:
    """Load the graph and embed one token; raises StartError with the cure when it cannot be served."""
    ort.disable_telemetry_events()
    path = model_dir / MODEL_FILE
    max_length = min(options.context_length or config.max_length, config.max_length)
    try:
        session = _open_session(path, options.threads or available_cpus())
        _check_inputs(session)
        batch_tokens = 1 if shares_scale(path) else _BATCH_TOKENS
        encoder = Encoder(session, config, max_length=max_length, batch_tokens=batch_tokens)
        vector = encoder.embed([[0]])
    except StartError:
        raise
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to load the model") from error
    except Exception as error:
        raise StartError(Reason.UNFIT, f"ONNX Runtime cannot run the model: {brief(error)}") from error
    if not np.isfinite(vector).all():
        raise StartError(Reason.UNFIT, "the model's vectors are not finite numbers")
    return encoder


def _open_session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Texts differ in length, so a memory plan per shape would only grow.
    options.enable_mem_pattern = False
    # See onnx_slots: on busy cores a spinning thread keeps the one it waits for from running.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
