# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a GGUF file and checks that the file holds what the header promises.

llama.cpp ends the process on some malformed files, and then nobody learns why. What is checked here
before it sees the file: every count and length against the file's size, types, tensor shapes, and
that all tensor data is there. Only little-endian GGUF 2 and 3, which is what exists.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS: Final = 4
_MOST_NAME: Final = 63
_LARGEST: Final = 1 << 62
_BLOCKS: Final = {
    # type of ggml: (elements of a block, bytes of a block)
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""Tensor types whose size is known here; the size of another is not checked."""


class GgufError(ValueError):
    """The file is not GGUF, is cut off or contradicts itself; the message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Metadata by key (arrays of numbers and of text as tuples) and the shapes of tensors by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    def text(self, key: str) -> str:
        """A text value, empty when it is absent or something else."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """A whole number, 0 when it is absent or something else; the largest of an array."""
        value = self.values.get(key)
        if isinstance(value, tuple) and value:
            value = max(value, key=lambda one: one if isinstance(one, int) else 0)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


class _Reader:
    """A place in the file; every read is checked against its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    def _take(self, size: int, what: str) -> int:
        start = self.at
        if not 0 <= size <= len(self._data) - start:
            raise GgufError(f"the file ends inside {what} at byte {start}")
        self.at = start + size
        return start

    def bytes(self, size: int, what: str) -> bytes:
        start = self._take(size, what)
        return self._data[start : start + size]

    def scalar(self, code: str, what: str) -> Any:
        layout = f"<{code}"
        return struct.unpack_from(layout, self._data, self._take(struct.calcsize(layout), what))[0]

    def text(self, what: str) -> str:
        return self.bytes(self.scalar("Q", what), what).decode(errors="replace")

    def value(self, what: str) -> Any:
        kind = self.scalar("I", what)
        return self._array(what) if kind == _ARRAY else self._single(kind, what)

    def _single(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind not in _SCALARS:
            raise GgufError(f"{what} has the unknown type {kind}")
        return self.scalar(_SCALARS[kind], what)

    def _array(self, what: str) -> tuple[Any, ...]:
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == _STRING:
            # Each has a length of eight bytes at least: a count beyond that is a lie, not a long loop.
            if count * 8 > len(self._data):
                raise GgufError(f"{what} says it has {count} entries, more than the file can hold")
            return tuple(self.text(what) for _ in range(count))
        if kind not in _SCALARS:
            raise GgufError(f"{what} is an array of the unknown type {kind}")
        code = _SCALARS[kind]
        start = self._take(struct.calcsize(f"<{code}") * count, what)
        return struct.unpack_from(f"<{count}{code}", self._data, start)


def read_header(path: Path) -> GgufHeader:
    """Read and check the file; raises GgufError, or OSError when it cannot be opened."""
    with path.open("rb") as file:
        if path.stat().st_size < len(_MAGIC):
            raise GgufError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)


def _read(data: mmap.mmap) -> GgufHeader:
    reader = _Reader(data)
    if reader.bytes(4, "the magic number") != _MAGIC:
        raise GgufError("the file does not begin with GGUF")
    version = reader.scalar("I", "the version")
    if version not in _VERSIONS:
        raise GgufError(f"its version is {version}; 2 and 3 are known")
    tensor_count, value_count = reader.scalar("Q", "a count"), reader.scalar("Q", "a count")
    if max(tensor_count, value_count) > len(data):
        raise GgufError("it says it has more entries than the file can hold")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = reader.text("a key")
        if not key or key in values:
            raise GgufError(f"the key {key[:80]!r} is empty or there twice")
        values[key] = reader.value(f"the value of {key[:80]!r}")
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GgufError("general.alignment is not a power of two")
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, place = _tensor(reader)
        if name in places:
            raise GgufError(f"the tensor {name!r} is there twice")
        places[name] = place
    start = -(-reader.at // alignment) * alignment
    for name, (shape, kind, offset) in places.items():
        _check_place(name, shape, kind=kind, offset=offset, room=len(data) - start, alignment=alignment)
    return GgufHeader(values=values, tensors={name: place[0] for name, place in places.items()})


def _tensor(reader: _Reader) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name = reader.text("a tensor's name")
    if not name or len(name.encode()) > _MOST_NAME:
        raise GgufError(f"a tensor's name is empty or longer than {_MOST_NAME} bytes: {name[:80]!r}")
    dimensions = reader.scalar("I", f"tensor {name!r}")
    if dimensions > _MOST_DIMENSIONS:
        raise GgufError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reader.scalar("Q", f"tensor {name!r}") for _ in range(dimensions))
    if not all(shape) or math.prod(shape) > _LARGEST:
        raise GgufError(f"tensor {name!r} has the shape {shape}")
    return name, (shape, reader.scalar("I", f"tensor {name!r}"), reader.scalar("Q", f"tensor {name!r}"))


def _check_place(
    name: str, shape: tuple[int, ...], *, kind: int, offset: int, room: int, alignment: int
) -> None:
    if offset % alignment:
        raise GgufError(f"tensor {name!r} is not aligned to {alignment} bytes")
    elements, size = _BLOCKS.get(kind, (1, 0))
    if shape and shape[0] % elements:
        raise GgufError(f"tensor {name!r} has rows of {shape[0]}, not a multiple of {elements}")
    if offset + math.prod(shape) // elements * size > room:
        raise GgufError(f"the file ends before the data of tensor {name!r} does; copy it again")
