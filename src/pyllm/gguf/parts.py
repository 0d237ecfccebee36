"""Plan of a GGUF file, or of each file of a split model: its header as bytes, its tensors, its size.

Source: the GGUF specification (docs/gguf.md in the ggml repository), version 3; split files are named and marked as by
llama.cpp's gguf-split: the first has the model's metadata, each has its number, their count and the number of all
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from struct import Struct

from pyllm.errors import FormatError, GGUFError
from pyllm.gguf.types import ValueType, by_name
from pyllm.gguf.values import Value, string
from pyllm.records import dataclass

ALIGNMENT = "general.alignment"
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

_HEAD = Struct("<4sIQQ")
_VERSION = 3
_U32 = Struct("<I")
_TYPE_OFFSET = Struct("<IQ")
_MAX_DIMS = 4
_MAX_NAME = 65535  # bytes
_MAX_PARTS = 65535  # split.count is a uint16


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write; `shape` is outermost first, `format` as ggml writes it ("Q4_K").

    Raises FormatError where the format is unknown or rows are not whole blocks of it, GGUFError where GGUF does not
    allow the name or shape.
    """

    name: str
    shape: tuple[int, ...]
    format: str

    def __post_init__(self) -> None:
        kind = by_name(self.format)
        _check_name(self.name, "a tensor's name")
        if len(self.shape) > _MAX_DIMS or any(d < 0 for d in self.shape):
            raise GGUFError(f"tensor {self.name!r} cannot have the shape {self.shape}: at most {_MAX_DIMS} dimensions")
        if (self.shape[-1] if self.shape else 1) % kind.block_size:
            raise FormatError(
                f"tensor {self.name!r} of shape {self.shape} cannot be {self.format}: its rows are not whole blocks "
                f"of {kind.block_size} weights"
            )

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return by_name(self.format).n_bytes(self.n_elements)


@dataclass(frozen=True, slots=True)
class Part:
    """One file. `header` is padded: the data of `tensors` follows, each padded to the alignment."""

    path: Path
    header: bytes
    tensors: tuple[TensorSpec, ...]
    n_bytes: int


def part_path(path: Path, i: int, count: int) -> Path:
    """Name of part `i` (from 0) of the model `path`: NAME-00001-of-00003.gguf."""
    stem = path.stem if path.suffix.lower() == ".gguf" else path.name
    return path.with_name(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf")


def plan(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorSpec],
    alignment: int,
    most_bytes: int | None,
    most_tensors: int | None,
) -> list[Part]:
    """The files: `path` alone, or several where it would exceed `most_bytes` or `most_tensors`.

    Each takes as many tensors as allowed, in order, and at least one.
    """
    _check_unique(tensors)
    always = {ALIGNMENT: Value(ValueType.UINT32, alignment)} if ALIGNMENT in metadata or alignment != 32 else {}
    own = {key: value for key, value in metadata.items() if key not in SPLIT_KEYS} | always
    groups = [list(tensors)]
    if most_bytes is not None or most_tensors is not None:
        marks = always | _marks(0, 0, 0)
        heads = _n_bytes(_encoded(own | marks)), _n_bytes(_encoded(marks))
        groups = _grouped(tensors, heads, alignment, most_bytes, most_tensors)
    n = len(groups)
    if n == 1:
        return [_part(path, own, groups[0], alignment)]
    if n > _MAX_PARTS:
        raise GGUFError(f"{path} would be split into {n} files; allow larger ones")
    return [
        _part(part_path(path, i, n), (always if i else own) | _marks(i, n, len(tensors)), group, alignment)
        for i, group in enumerate(groups)
    ]


def _grouped(
    tensors: Sequence[TensorSpec],
    heads: tuple[int, int],
    alignment: int,
    most_bytes: int | None,
    most_tensors: int | None,
) -> list[list[TensorSpec]]:
    """Tensors by file. `heads`: bytes of the first file's header without tensors, and of the others'."""
    groups: list[list[TensorSpec]] = [[]]
    header, data = heads[0], 0
    for t in tensors:
        record, own = len(_record(t, 0)), _up(t.n_bytes, alignment)
        full = most_tensors is not None and len(groups[-1]) >= most_tensors
        full |= most_bytes is not None and _up(header + record, alignment) + data + own > most_bytes
        if full and groups[-1]:
            groups.append([])
            header, data = heads[1], 0
        groups[-1].append(t)
        header, data = header + record, data + own
    return groups


def _part(path: Path, fields: Mapping[str, Value], tensors: Sequence[TensorSpec], alignment: int) -> Part:
    encoded = _encoded(fields)
    records, offset = [], 0
    for t in tensors:
        records.append(_record(t, offset))
        offset += _up(t.n_bytes, alignment)
    head = _HEAD.pack(b"GGUF", _VERSION, len(tensors), len(encoded))
    header = b"".join([head, *encoded, *records])
    header += bytes(-len(header) % alignment)
    return Part(path, header, tuple(tensors), len(header) + offset)


def _marks(no: int, count: int, n_tensors: int) -> dict[str, Value]:
    values = (ValueType.UINT16, no), (ValueType.UINT16, count), (ValueType.INT32, n_tensors)
    return {key: Value(kind, value) for key, (kind, value) in zip(SPLIT_KEYS, values, strict=True)}


def _encoded(fields: Mapping[str, Value]) -> list[bytes]:
    """Metadata entries as bytes. Raises GGUFError with the key."""
    out = []
    for key, value in fields.items():
        _check_name(key, "a metadata key")
        try:
            out.append(string(key) + _U32.pack(value.type) + value.to_bytes())
        except GGUFError as error:
            raise GGUFError(f"metadata key {key!r}: {error}") from None
    return out


def _n_bytes(fields: Iterable[bytes]) -> int:
    return _HEAD.size + sum(map(len, fields))


def _record(tensor: TensorSpec, offset: int) -> bytes:
    dims = Struct(f"<I{len(tensor.shape)}Q").pack(len(tensor.shape), *tensor.shape[::-1])
    return string(tensor.name) + dims + _TYPE_OFFSET.pack(by_name(tensor.format).id, offset)


def _up(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _check_name(name: str, what: str) -> None:
    if not 0 < len(name.encode("utf-8", "replace")) <= _MAX_NAME or any("\ud800" <= c <= "\udfff" for c in name):
        raise GGUFError(f"{what} is text of 1 to {_MAX_NAME} bytes, unlike {name[:60]!r}")


def _check_unique(tensors: Sequence[TensorSpec]) -> None:
    seen: set[str] = set()
    for t in tensors:
        if t.name in seen:
            raise GGUFError(f"tensor {t.name!r} occurs twice")
        seen.add(t.name)
