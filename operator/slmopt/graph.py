# SPDX-License-Identifier: Apache-2.0
"""An export of the onnxruntime-genai builder, opened for changes: its matrices by what they do."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from slmopt.errors import unfit
from slmopt.model_dir import GENAI_CONFIG, carry_files, describe_format, read_json

FLOAT_TYPES: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_QUANTIZED: Final = frozenset(
    {
        "MatMulNBits",
        "MatMulInteger",
        "GatherBlockQuantized",
        "QMoE",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
    }
)
_LAYER: Final = re.compile(r"/model/layers\.(\d+)/(?:attn|mlp)/(\w+)/MatMul")
_ATTENTION: Final = "GroupQueryAttention"
_FILE: Final = "model.onnx"
SMALL_BYTES: Final = 1024
"""Tensors below that stay in the graph's file."""
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}\.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A MatMul with a constant right side [inputs, outputs]."""

    node: str
    """Name of the node."""
    weight: str
    """Name of the initializer."""
    source: str
    """Tensor that goes in."""
    bias: str = ""
    """Initializer [outputs] that is added to the product; empty when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer block: its matrices by the builder's names (`qkv_proj`, `down_proj`, ...)."""

    index: int
    matrices: Mapping[str, Matrix]

    def get(self, name: str) -> Matrix:
        """The matrix of that name; raises OptimizeError (Unfit)."""
        if name not in self.matrices:
            raise unfit(
                f"layer {self.index} has no {name}: this step knows models with gate, up and down projection "
                "and grouped attention (Llama, Mistral, Qwen 2 and 3); leave the step out"
            )
        return self.matrices[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What genai_config.json says of the decoder."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocab: int
    context: int
    type: str
    """Architecture in the builder's words: `llama`, `qwen2`, ..."""


class OnnxExport:
    """The whole model in memory: about as much as its files."""

    def __init__(self, directory: Path) -> None:
        """Raises OptimizeError (Unfit) for anything but a decoder that the builder exported."""
        form = describe_format(directory)
        if form != "onnx":
            raise unfit(
                f"the source is {form}, and this step works on exports of the onnxruntime-genai builder "
                f"({GENAI_CONFIG} and {_FILE}); convert to onnx first, or move the step before the conversion"
            )
        self.directory = directory
        self.config = read_json(directory, GENAI_CONFIG)
        self.geometry = _parse_geometry(self.config)
        self.filename = _parse_filename(self.config)
        path = directory / self.filename
        try:
            self.model = onnx.load(str(path), load_external_data=False)
            self.data_files = load_external_data(self.model, directory)
            _check_sizes(self.model)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise unfit(f"{self.filename} cannot be read as ONNX: {text}") from error
        self._initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def nodes(self) -> Sequence[Any]:
        """The graph's nodes."""
        nodes: Sequence[Any] = self.model.graph.node
        return nodes

    @property
    def overridable(self) -> frozenset[str]:
        """Inputs with a default value: initializers that a caller, or an adapter, may override."""
        return frozenset(value.name for value in self.model.graph.input) & self._initializers.keys()

    def refuse_adaptable(self, step: str) -> None:
        """Raises OptimizeError (Unfit) when there are low-rank inputs, which the step would leave behind."""
        if found := sorted(self.overridable):
            raise unfit(
                f"{step}: the model has inputs for adapters ({found[0]}); put {step} before the step "
                "loraInputs"
            )

    def refuse_quantized(self, step: str) -> None:
        """Raises OptimizeError (Unfit) when weights are integers already."""
        found = sorted({node.op_type for node in self.nodes} & _QUANTIZED)
        if found:
            raise unfit(
                f"{step}: the model is quantized already ({found[0]}); put {step} before the step that "
                "quantizes, and start from an fp32 or fp16 export"
            )

    def is_float(self, name: str) -> bool:
        """Whether `name` is an fp32 or fp16 initializer."""
        return name in self._initializers and self._initializers[name].data_type in FLOAT_TYPES

    @property
    def is_half(self) -> bool:
        """Whether the matrices are fp16."""
        weights = [matrix.weight for matrix in self.matrices()]
        return any(self._initializers[w].data_type == onnx.TensorProto.FLOAT16 for w in weights)

    def read(self, name: str) -> NDArray[np.float32]:
        """An initializer as fp32; raises OptimizeError (Unfit) when there is none."""
        if name not in self._initializers:
            raise unfit(f"{self.filename} has no {name}; the builder's exports have; export the model again")
        return np.asarray(numpy_helper.to_array(self._initializers[name]), np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an initializer that is there."""
        return tuple(self._initializers[name].dims)

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replace an initializer; the type stays what it was."""
        tensor = self._initializers[name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, kind), name))

    def matrices(self) -> Iterator[Matrix]:
        """All products with a constant matrix, in the graph's order; what an adapter fills is none."""
        overridable = self.overridable
        biases = {node.input[0]: node.input[1] for node in self.nodes if node.op_type == "Add"}
        for node in self.nodes:
            if node.op_type != "MatMul" or not self.is_float(node.input[1]):
                continue
            if node.input[1] in overridable:
                continue
            bias = biases.get(node.output[0], "")
            yield Matrix(
                node=node.name,
                weight=node.input[1],
                source=node.input[0],
                bias=bias if self.is_float(bias) else "",
            )

    def layers(self) -> tuple[Layer, ...]:
        """The blocks in order; raises OptimizeError (Unfit) when some are not found."""
        found: dict[int, dict[str, Matrix]] = {}
        for matrix in self.matrices():
            if match := _LAYER.fullmatch(matrix.node):
                found.setdefault(int(match[1]), {})[match[2]] = matrix
        if sorted(found) != list(range(self.geometry.layers)):
            raise unfit(
                f"{self.filename} names the blocks of {len(found)} layers and {GENAI_CONFIG} says "
                f"{self.geometry.layers}: architecture {self.geometry.type} is not known; leave the step out"
            )
        layers = tuple(Layer(index=index, matrices=found[index]) for index in sorted(found))
        self._check_geometry(layers)
        return layers

    def _check_geometry(self, layers: Sequence[Layer]) -> None:
        """Raises OptimizeError (Unfit) where genai_config.json says other than the matrices."""
        shape = self.geometry
        inner, cached = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        expected = {
            "qkv_proj": (shape.hidden, inner + 2 * cached),
            "q_proj": (shape.hidden, inner),
            "k_proj": (shape.hidden, cached),
            "v_proj": (shape.hidden, cached),
            "o_proj": (inner, shape.hidden),
        }
        for layer in layers:
            for name, wanted in expected.items():
                if name not in layer.matrices:
                    continue
                actual = self.shape(layer.matrices[name].weight)
                if actual != wanted:
                    raise unfit(
                        f"layer {layer.index}: {name} is {list(actual)}, and by heads, head_size and "
                        f"hidden_size of {GENAI_CONFIG} it is {list(wanted)}; export the model again"
                    )

    def refuse_shared(self, matrices: Sequence[Matrix], *, step: str) -> None:
        """Raises OptimizeError (Unfit) when a step would cut weights that several places use."""
        users: dict[str, int] = {}
        for node in self.nodes:
            for name in node.input:
                users[name] = users.get(name, 0) + 1
        for matrix in matrices:
            shared = next((w for w in (matrix.weight, matrix.bias) if w and users[w] > 1), "")
            if shared:
                raise unfit(
                    f"{step}: {shared} is used in {users[shared]} places; this step knows no shared weights"
                )

    def attention(self, layer: int) -> Any:
        """The GroupQueryAttention node of a layer; raises OptimizeError (Unfit)."""
        for node in self.nodes:
            if node.op_type == _ATTENTION and f"/layers.{layer}/" in node.name:
                return node
        raise unfit(f"layer {layer} has no {_ATTENTION}; export the model with the builder for `cpu`")

    def select(self, exclude: Sequence[str], *, step: str) -> list[Matrix]:
        """The matrices whose node names hold none of `exclude`; raises OptimizeError (Unfit)."""
        every = list(self.matrices())
        for part in exclude:
            if not any(part in matrix.node for matrix in every):
                some = ", ".join(sorted({matrix.node.split("/")[-2] for matrix in every}))
                raise unfit(f"{step}.exclude: no matrix has {part!r} in its name; there are {some}")
        chosen = [matrix for matrix in every if not any(part in matrix.node for part in exclude)]
        if not chosen:
            raise unfit(f"{step}.exclude leaves no matrix to work on; name fewer")
        return chosen

    def constant(self, name: str) -> list[int]:
        """Whole numbers of an initializer or a Constant node; empty for anything else."""
        held = self._initializers.get(name)
        for node in self.nodes if held is None else ():
            if node.op_type == "Constant" and name in node.output:
                held = next((a.t for a in node.attribute if a.name == "value"), None)
        if held is None or held.data_type != onnx.TensorProto.INT64:
            return []
        return [int(value) for value in numpy_helper.to_array(held).reshape(-1)]

    def add_constant(self, name: str, values: Sequence[int]) -> None:
        """An initializer of whole numbers, unless it is there."""
        if name not in self._initializers:
            tensor = self.model.graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.int64), name))
            self._initializers[name] = tensor

    def save(self, target: Path) -> None:
        """Write the model and everything else of the source directory into `target`, but no manifest."""
        carry_files(self.directory, target, without={self.filename, *self.data_files})
        save_onnx(self.model, target / self.filename)


def load_external_data(model: Any, directory: Path) -> set[str]:
    """Read the weights that lie in other files into `model`; the names of those files.

    The onnx package refuses files with several hard links, and in a content-addressed store every file
    has. ValueError for a location outside `directory`, or beyond a file's end.
    """
    names = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        name = fields.get("location", "")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{tensor.name} lies in {name!r}, outside the model directory")
        names.add(name)
        with (directory / name).open("rb") as file:
            file.seek(int(fields.get("offset", 0)))
            length = int(fields["length"]) if "length" in fields else -1
            if length < -1:
                raise ValueError(f"{tensor.name} has a length of {length}")
            tensor.raw_data = file.read(length)
        if length >= 0 and len(tensor.raw_data) != length:
            raise ValueError(f"{name} ends before {tensor.name} does; it is cut off")
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return names


def _tensors(graph: Any) -> Iterator[Any]:
    """All constant tensors of a graph and of those inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _check_sizes(model: Any) -> None:
    """ValueError where a tensor does not have the bytes that its shape says."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOAT_TYPES or not tensor.HasField("raw_data"):
            continue
        width = 4 if tensor.data_type == onnx.TensorProto.FLOAT else 2
        if min(tensor.dims, default=0) < 0 or len(tensor.raw_data) != math.prod(tensor.dims) * width:
            raise ValueError(
                f"{tensor.name} has {len(tensor.raw_data)} bytes and the shape {list(tensor.dims)[:8]}"
            )


def save_onnx(model: Any, path: Path) -> None:
    """Write `path` and its weights to `<name>.data` beside it, as the builder does."""
    # A graph that was changed has stale shapes of what lies between; engines infer them again.
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=SMALL_BYTES,
    )


def _parse_filename(config: Mapping[str, Any]) -> str:
    """The decoder's file; the changed one is written by the same name, so it must stay in its folder."""
    name = config["model"]["decoder"].get("filename", _FILE)
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise unfit(
            f"{GENAI_CONFIG}: model.decoder.filename is {str(name)[:80]!r}; it must be a plain name, "
            f"{_FILE} say"
        )
    return name


def _parse_geometry(config: Mapping[str, Any]) -> Geometry:
    try:
        model = config["model"]
        decoder = model["decoder"]
        if extra := sorted({"encoder", "vision", "speech", "embedding"} & model.keys()):
            raise unfit(
                f"{GENAI_CONFIG} has a part {extra[0]}: only plain decoders are known; leave the step out"
            )
        geometry = Geometry(
            layers=int(decoder["num_hidden_layers"]),
            heads=int(decoder["num_attention_heads"]),
            kv_heads=int(decoder["num_key_value_heads"]),
            head_size=int(decoder["head_size"]),
            hidden=int(decoder["hidden_size"]),
            vocab=int(model["vocab_size"]),
            context=int(model["context_length"]),
            type=str(model["type"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise unfit(f"{GENAI_CONFIG} lacks or misstates {error}; export the model again") from error
    numbers = (value for value in astuple(geometry) if not isinstance(value, str))
    if min(numbers) < 1 or geometry.heads % geometry.kv_heads:
        raise unfit(
            f"{GENAI_CONFIG}: numbers of layers, heads and sizes are at least 1, and num_attention_heads "
            f"({geometry.heads}) is a multiple of num_key_value_heads ({geometry.kv_heads}); export the "
            "model again"
        )
    return geometry
