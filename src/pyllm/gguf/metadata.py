"""A file's metadata: a mapping from keys to values; strings and arrays are decoded on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyllm.gguf import strings
from pyllm.gguf.mapped import MappedFile
from pyllm.gguf.types import ValueType
from pyllm.records import dataclass

DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""Types of values of fixed size, as stored."""

_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Field:
    """The place of a value. `offset`: of its first item (or a string's first character); `count`: their number.

    `item_type` is that of an array's items, None for other values.
    """

    type: ValueType
    offset: int
    count: int = 1
    item_type: ValueType | None = None

    def __str__(self) -> str:
        """The type in words: "uint32", "string", "string[151936]"."""
        return self.type.name.lower() if self.item_type is None else f"{self.item_type.name.lower()}[{self.count}]"


def locate(file: MappedFile, offset: int, type_id: int, depth: int = 0) -> tuple[Field, int]:
    """The value at `offset` as a field, and the offset after it. Raises GGUFError where it leaves the file."""
    kind = value_type(file, offset, type_id)
    if kind is ValueType.STRING:
        n = file.u64(offset, "the length of a string")
        file.need(offset + 8, n, "a string")
        return Field(kind, offset + 8, n), offset + 8 + n
    if kind is not ValueType.ARRAY:
        size = DTYPES[kind].itemsize
        file.need(offset, size, "a value")
        return Field(kind, offset), offset + size
    if depth == _MAX_DEPTH:
        raise file.error(offset, f"arrays are nested more than {_MAX_DEPTH} deep")
    item = value_type(file, offset, file.u32(offset, "an array's type"))
    count = file.u64(offset + 4, "an array's length")
    field, begin = Field(kind, offset + 12, count, item), offset + 12
    least = 8 if item is ValueType.STRING else 12 if item is ValueType.ARRAY else DTYPES[item].itemsize
    file.need(begin, count * least, f"an array of {count} items")
    if item is ValueType.STRING:
        return field, strings.skip(file, begin, count)
    if item is not ValueType.ARRAY:
        return field, begin + count * least
    for _ in range(count):
        begin = locate(file, begin, ValueType.ARRAY, depth + 1)[1]
    return field, begin


def value_type(file: MappedFile, offset: int, type_id: int) -> ValueType:
    """The type with this number. Raises GGUFError if there is none."""
    try:
        return ValueType(type_id)
    except ValueError:
        raise file.error(offset, f"value type {type_id} is unknown") from None


def read(file: MappedFile, field: Field) -> Any:
    """The value of a field, as `Metadata` describes it."""
    file.check_open()
    if field.type is ValueType.STRING:
        return file.map[field.offset : field.offset + field.count].decode("utf-8", "replace")
    if field.item_type is ValueType.STRING:
        return strings.decode(file, field.offset, field.count)
    if field.item_type is ValueType.ARRAY:
        return [read(file, item) for item in arrays_in(file, field)]
    kind = field.type if field.item_type is None else field.item_type
    values = np.frombuffer(file.map, DTYPES[kind], field.count, field.offset)
    if kind is ValueType.BOOL:
        if values.size and values.max() > 1:
            raise file.error(field.offset, f"a boolean has the value {values.max()}; 0 and 1 are allowed")
        values = values.view(np.bool_)
    if field.item_type is None:
        return values[0].item()
    array = values.astype(values.dtype.newbyteorder("="))  # a copy: aligned, and independent of the map
    array.flags.writeable = False
    return array


def arrays_in(file: MappedFile, field: Field) -> list[Field]:
    """The items of an array of arrays."""
    items, offset = [], field.offset
    for _ in range(field.count):
        item, offset = locate(file, offset, ValueType.ARRAY)
        items.append(item)
    return items


class Metadata(Mapping[str, Any]):
    """Keys and values of a file, in file order.

    Numbers and booleans are Python values, strings are str (bytes that are not UTF-8 replaced), arrays of numbers are
    read-only numpy arrays of the stored type, arrays of strings are lists of str (bytes that are not UTF-8 as lone
    surrogates, "surrogateescape": tokens may be any bytes), nested arrays are lists of these. A value is decoded at
    first use, then kept; `field` gives its type without decoding. Raises ClosedError for values read after the file was
    closed. `file` is the file that they are read from.
    """

    def __init__(self, file: MappedFile, fields: dict[str, Field]) -> None:
        self.file = file
        self._fields = fields
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            value = self._values[key] = read(self.file, self._fields[key])
            return value

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def field(self, key: str) -> Field:
        """Type, length and place of a value, without decoding it; `str(field)` names the type."""
        return self._fields[key]
