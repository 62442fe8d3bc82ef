# SPDX-License-Identifier: Apache-2.0
"""Makes an export compute logits for the last position only.

The builder's exports give logits for every prompt position, and a server needs the last one. With
a vocabulary of 150,000 that is a fifth of a prompt's work and 600 kB per token, for nothing. So a
Slice goes in front of the head as the model is loaded. It is done on the wire format (ONNX is a
protocol buffer): the onnx package would add 20 MB to the image for one node.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Field numbers of onnx.proto; stable by the rules of protocol buffers.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE = 1, 2, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_INT64: Final = 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_PREFIX: Final = "slmserve/last_position"
_HEADS: Final = {"MatMul", "MatMulNBits"}
_MOST_CASTS: Final = 4


class _MalformedError(ValueError):
    """Not a protocol buffer of the form that ONNX has."""


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    kind: int
    start: int
    """Where the field begins, tag included."""
    body: int
    """Where its value begins."""
    end: int


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _MalformedError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        body = at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, body = _varint(data, at)
            at = body + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _MalformedError
        if at > len(data):
            raise _MalformedError
        yield _Field(number, kind, start, body, at)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packed(number: int, body: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(body)) + body


def _number(number: int, value: int) -> bytes:
    return _encode(number << 3 | _VARINT) + _encode(value)


def _texts(node: memoryview, number: int) -> list[str]:
    return [bytes(node[f.body : f.end]).decode() for f in _fields(node) if f.number == number]


def _find_head(graph: memoryview, logits: str) -> tuple[_Field, memoryview] | None:
    """The node whose product becomes `logits`, casts between them allowed."""
    nodes = [(f, graph[f.body : f.end]) for f in _fields(graph) if f.number == _GRAPH_NODE]
    makers = {name: pair for pair in nodes for name in _texts(pair[1], _NODE_OUTPUT)}
    wanted = logits
    for _ in range(_MOST_CASTS):
        found = makers.get(wanted)
        if found is None:
            return None
        kind = _texts(found[1], _NODE_OP_TYPE)
        if kind and kind[0] in _HEADS:
            return found
        if kind != ["Cast"]:
            return None
        wanted = _texts(found[1], _NODE_INPUT)[0]
    return None


def _slice_node(source: str) -> bytes:
    inputs = [source, *(f"{_PREFIX}/{part}" for part in ("starts", "ends", "axes"))]
    body = b"".join(_packed(_NODE_INPUT, name.encode()) for name in inputs)
    body += _packed(_NODE_OUTPUT, _PREFIX.encode()) + _packed(_NODE_OP_TYPE, b"Slice")
    return _packed(_GRAPH_NODE, body)


def _initializer(part: str, value: int) -> bytes:
    raw = value.to_bytes(8, "little", signed=True)
    body = _number(_TENSOR_DIMS, 1) + _number(_TENSOR_TYPE, _INT64)
    body += _packed(_TENSOR_NAME, f"{_PREFIX}/{part}".encode()) + _packed(_TENSOR_RAW, raw)
    return _packed(_GRAPH_INITIALIZER, body)


def _redirect(node: memoryview) -> tuple[str, bytes]:
    """First input of the head, and the head reading the slice instead."""
    source, parts = "", []
    for field in _fields(node):
        if field.number == _NODE_INPUT and not source:
            source = bytes(node[field.body : field.end]).decode()
            parts.append(_packed(_NODE_INPUT, _PREFIX.encode()))
        else:
            parts.append(bytes(node[field.start : field.end]))
    return source, b"".join(parts)


def keep_last_position(model: bytes, logits: str) -> bytes | None:
    """The model with `logits` [batch, 1, vocab]; None when its form is not one that this knows."""
    view = memoryview(model)
    try:
        graphs = [f for f in _fields(view) if f.number == _MODEL_GRAPH and f.kind == _BYTES]
        if len(graphs) != 1:
            return None
        place = graphs[0]
        graph = view[place.body : place.end]
        found = _find_head(graph, logits)
        if found is None:
            return None
        field, node = found
        source, head = _redirect(node)
    except (_MalformedError, UnicodeDecodeError, IndexError):
        return None
    constants = _initializer("starts", -1) + _initializer("ends", (1 << 63) - 1) + _initializer("axes", 1)
    changed = b"".join(
        (
            graph[: field.start],
            _slice_node(source) + _packed(_GRAPH_NODE, head) + constants,
            graph[field.end :],
        )
    )
    return b"".join((view[: place.start], _packed(_MODEL_GRAPH, changed), view[place.end :]))
