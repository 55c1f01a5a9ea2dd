"""Reads the header of a GGUF file within limits: its metadata, and where each tensor lies.

The package `gguf` has a reader too. It takes 12 s for a vocabulary of 49,000 tokens (gguf 0.19), where this one takes
1 s, and believes the counts that it reads: a file of 100 bytes can keep it busy for ever. Everything is checked here
before the file goes to OpenVINO GenAI, which follows offsets unchecked.
Source: docs/gguf.md of ggml.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from cluster.models.folder import ModelFolderError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 128 << 20
_MAX_STRING_BYTES = 1 << 20
_MAX_KEYS = 4096
_MAX_TENSORS = 16_384
_MAX_ITEMS = 4 << 20
"""Of all arrays together. A vocabulary of 256,000 tokens has about 1.3 million: tokens, types, scores and merges."""
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Number = int | float | bool
Value = Number | str | tuple[Number, ...] | tuple[str, ...]
_Kind = TypeVar("_Kind", int, str)


class GgufError(ModelFolderError):
    """The GGUF file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """How weights are stored in blocks. bytes: of a block of `weights`."""

    name: str
    weights: int
    bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    14: TensorType("Q6_K", 256, 210),
}
"""Those that OpenVINO GenAI converts, by their number in the file."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape: as in the file, the innermost dimension first. offset: in the file, in bytes."""

    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.weights // self.type.weights * self.type.bytes


_Entry = TypeVar("_Entry", Value, TensorInfo)


@dataclass(frozen=True)
class Header:
    """A file's metadata and tensors."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]

    def text(self, key: str, default: str | None = None) -> str:
        """A text of the metadata. Raises GgufError where it is missing and there is no default, or is no text."""
        return self._value(key, str, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """As `text`, for an integer of at least 0."""
        number = self._value(key, int, default)
        if isinstance(number, bool) or not 0 <= number < 2**31:
            raise GgufError(f"{key} must be an integer from 0 to {2**31 - 1}, got {number!r}")
        return number

    def number(self, key: str, default: float | None = None) -> float:
        """As `text`, for a finite number."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise GgufError(f"{key} must be a number, got {_shown(value)}")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts. Raises GgufError where it is missing or another thing."""
        values = self.metadata.get(key)
        if not isinstance(values, tuple) or not values or not isinstance(values[0], str):
            raise GgufError(f"{key} must be a list of texts, got {_shown(values)}")
        return tuple(str(value) for value in values)

    def integers(self, key: str) -> tuple[int, ...]:
        """As `texts`, for integers."""
        values = self.metadata.get(key)
        if not isinstance(values, tuple) or not values or not isinstance(values[0], int):
            raise GgufError(f"{key} must be a list of integers, got {_shown(values)}")
        return tuple(int(value) for value in values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """As `texts`, for finite numbers."""
        values = self.metadata.get(key)
        if not isinstance(values, tuple) or not all(isinstance(value, int | float) for value in values):
            raise GgufError(f"{key} must be a list of numbers, got {_shown(values)}")
        numbers = tuple(float(value) for value in values)
        if not all(map(math.isfinite, numbers)):
            raise GgufError(f"{key} has a number that is not finite")
        return numbers

    def _value(self, key: str, kind: type[_Kind], default: _Kind | None) -> _Kind:
        value = self.metadata.get(key, default)
        if not isinstance(value, kind):
            raise GgufError(f"{key} must be {'a text' if kind is str else 'an integer'}, got {_shown(value)}")
        return value


def read_header(file: Path) -> Header:
    """Reads and checks a file's header. Raises GgufError, whatever the file holds, and OSError."""
    size = file.stat().st_size
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise GgufError(f"{file} is no GGUF file")
        try:
            return _Reader(content, size).header()
        except GgufError as error:
            raise GgufError(f"{file}: {error}") from None


class _Reader:
    """Reads one value after the other, and no more than the limits allow."""

    def __init__(self, content: BinaryIO, size: int) -> None:
        self._content = content
        self._size = size
        self._read = content.tell()
        self._items = 0

    def header(self) -> Header:
        version = self._number("I")
        if version not in _VERSIONS:
            raise GgufError(f"its version of the format is {version}; supported are {', '.join(map(str, _VERSIONS))}")
        tensors = self._count(_MAX_TENSORS, "tensors")
        keys = self._count(_MAX_KEYS, "keys of metadata")
        metadata = self._table(keys, self._value, "key")
        places = self._table(tensors, self._tensor, "tensor")
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment not in [2**power for power in range(3, 17)]:
            raise GgufError(f"general.alignment must be a power of two from 8 to 65536, got {_shown(alignment)}")
        start = -(-self._read // alignment) * alignment
        return Header(metadata, {name: self._placed(name, tensor, start, alignment) for name, tensor in places.items()})

    def _table(self, count: int, read: Callable[[], _Entry], kind: str) -> dict[str, _Entry]:
        table: dict[str, _Entry] = {}
        for _ in range(count):
            name = self._text()
            if name in table:
                raise GgufError(f"it has the {kind} {_shown(name)} twice")
            table[name] = read()
        return table

    def _value(self) -> Value:
        kind = self._number("I")
        if kind != _ARRAY:
            return self._text() if kind == _STRING else self._number(self._letter(kind))
        kind = self._number("I")
        count = self._count(_MAX_ITEMS - self._items, "items of lists")
        self._items += count
        if kind == _STRING:
            return tuple(self._text() for _ in range(count))
        form = struct.Struct(f"<{count}{self._letter(kind)}")
        numbers: tuple[Number, ...] = form.unpack(self._bytes(form.size))
        return numbers

    def _tensor(self) -> TensorInfo:
        dimensions = self._count(_MAX_DIMENSIONS, "dimensions of a tensor", "I")
        shape = tuple(int(self._number("Q")) for _ in range(dimensions))
        kind = int(self._number("I"))
        if kind not in TENSOR_TYPES:
            supported = ", ".join(known.name for known in TENSOR_TYPES.values())
            raise GgufError(f"it has weights of type {kind}; supported are {supported}")
        return TensorInfo(TENSOR_TYPES[kind], shape, int(self._number("Q")))

    def _placed(self, name: str, tensor: TensorInfo, start: int, alignment: int) -> TensorInfo:
        """The tensor with its offset in the file. Raises GgufError where it does not lie in the file."""
        placed = TensorInfo(tensor.type, tensor.shape, start + tensor.offset)
        if not tensor.shape or not all(tensor.shape) or tensor.shape[0] % tensor.type.weights:
            raise GgufError(f"the tensor {_shown(name)} cannot have the shape {tensor.shape} as {tensor.type.name}")
        if tensor.offset % alignment or placed.offset + placed.bytes > self._size:
            raise GgufError(f"the tensor {_shown(name)} does not lie within its {self._size} bytes: it is incomplete")
        return placed

    def _count(self, limit: int, what: str, letter: str = "Q") -> int:
        count = int(self._number(letter))
        if count > limit:
            raise GgufError(f"it has {count} {what}; supported are {limit}")
        return count

    def _text(self) -> str:
        length = self._count(_MAX_STRING_BYTES, "bytes of a text")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise GgufError("it has a text that is not UTF-8") from None

    def _letter(self, kind: Number) -> str:
        letter = _NUMBERS.get(int(kind))
        if letter is None:
            raise GgufError(f"it has a value of type {kind}, which the format does not have here")
        return letter

    def _number(self, letter: str) -> Number:
        number: Number
        (number,) = struct.unpack("<" + letter, self._bytes(struct.calcsize("<" + letter)))
        return number

    def _bytes(self, count: int) -> bytes:
        self._read += count
        if self._read > min(self._size, _MAX_HEADER_BYTES):
            raise GgufError(
                f"its header has more than {_MAX_HEADER_BYTES >> 20} MiB"
                if self._read > _MAX_HEADER_BYTES
                else "it ends within its header: it is incomplete"
            )
        return self._content.read(count)


def _shown(value: object) -> str:
    """A foreign value, short and in one line."""
    text = repr(value)
    return "none" if value is None else text if len(text) <= 80 else f"{text[:80]}..."
