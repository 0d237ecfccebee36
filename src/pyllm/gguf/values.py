"""Metadata values to write: a value with its type, and its bytes.

Source: the GGUF specification (docs/gguf.md in the ggml repository), "File Structure".
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np

from pyllm.errors import GGUFError
from pyllm.gguf.mapped import MappedFile
from pyllm.gguf.metadata import DTYPES, Field, Metadata, arrays_in, read
from pyllm.gguf.types import ValueType
from pyllm.records import dataclass

_U64 = Struct("<Q")
_ARRAY_HEAD = Struct("<IQ")
_INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
_ITEM_INTEGERS = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
_TYPES = {DTYPES[t]: t for t in DTYPES if t is not ValueType.BOOL} | {np.dtype(np.bool_): ValueType.BOOL}


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A metadata value and its type; `item` is the type of an array's items, None for other values.

    `value` is a number, a bool, a str (lone surrogates stand for bytes that are not UTF-8, "surrogateescape"), a
    sequence of these or a numpy array; of an array of arrays, a sequence of Values.
    """

    type: ValueType
    value: Any
    item: ValueType | None = None

    @classmethod
    def of(cls, value: Any) -> Value:
        """A value with a suitable type.

        int: UINT32, INT32 where negative, 64 bits where needed; items of lists: INT32 where they fit, as in the gguf
        package; float: FLOAT32; numpy arrays: their own type, half precision as FLOAT32. Raises GGUFError for values
        without a type in GGUF, and for empty lists, whose item type is unknown.
        """
        if isinstance(value, bool | np.bool_):
            return cls(ValueType.BOOL, bool(value))
        if isinstance(value, int | np.integer):
            return cls(_integer_type([int(value)], _INTEGERS), int(value))
        if isinstance(value, float | np.floating):
            return cls(ValueType.FLOAT32, float(value))
        if isinstance(value, str):
            return cls(ValueType.STRING, value)
        if isinstance(value, np.ndarray):
            return cls._of_array(value)
        if isinstance(value, list | tuple) and value:
            return cls._of_list(value)
        raise GGUFError(f"GGUF metadata has no type for {_shown(value)}")

    @classmethod
    def _of_array(cls, value: np.ndarray[Any, Any]) -> Value:
        if value.ndim > 1:
            return cls(ValueType.ARRAY, [cls._of_array(v) for v in value], ValueType.ARRAY)
        kind = _TYPES.get(value.dtype.newbyteorder("<"), ValueType.FLOAT32)
        if value.ndim == 0 or not np.can_cast(value.dtype, DTYPES[kind], "safe"):
            raise GGUFError(f"GGUF metadata has no type for arrays of {value.dtype} and shape {value.shape}")
        return cls(ValueType.ARRAY, value, kind)

    @classmethod
    def _of_list(cls, value: Sequence[Any]) -> Value:
        if all(isinstance(v, str) for v in value):
            return cls(ValueType.ARRAY, value, ValueType.STRING)
        if all(isinstance(v, bool | np.bool_) for v in value):
            return cls(ValueType.ARRAY, value, ValueType.BOOL)
        if all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in value):
            return cls(ValueType.ARRAY, value, _integer_type([int(v) for v in value], _ITEM_INTEGERS))
        if all(isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool) for v in value):
            return cls(ValueType.ARRAY, value, ValueType.FLOAT32)
        if all(isinstance(v, list | tuple | np.ndarray) for v in value):
            return cls(ValueType.ARRAY, [cls.of(v) for v in value], ValueType.ARRAY)
        raise GGUFError(f"GGUF metadata has no type for {_shown(value)}: an array's items are of one type")

    def to_bytes(self) -> bytes:
        """The value's bytes, after the number of its type. Raises GGUFError where it does not fit its type."""
        try:
            return self._to_bytes()
        except (ValueError, TypeError, OverflowError, AttributeError):
            kind = self.type if self.item is None else self.item
            what = f"an array of {kind.name}" if self.item is not None else kind.name
            raise GGUFError(f"{_shown(self.value)} cannot be stored as {what}") from None

    def _to_bytes(self) -> bytes:
        if self.type is ValueType.STRING:
            return string(self.value)
        if self.type is not ValueType.ARRAY:
            return _numbers(self.type, [self.value])
        if self.item is None:
            raise TypeError("an array has items")
        head = _ARRAY_HEAD.pack(self.item, len(self.value))
        if self.item is ValueType.STRING:
            raw = [v.encode("utf-8", "surrogateescape") for v in self.value]
            return head + b"".join(part for r in raw for part in (_U64.pack(len(r)), r))
        if self.item is ValueType.ARRAY:
            return head + b"".join(v._to_bytes() for v in self.value)
        return head + _numbers(self.item, self.value)


def string(text: str) -> bytes:
    """A string's bytes: its length, then its text."""
    raw = text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(raw)) + raw


def copy_metadata(metadata: Metadata) -> dict[str, Value]:
    """A file's metadata, ready to be written: every value with its type, text byte for byte."""
    return {key: _copy(metadata.file, metadata.field(key)) for key in metadata}


def _copy(file: MappedFile, field: Field) -> Value:
    if field.type is ValueType.STRING:
        raw = file.map[field.offset : field.offset + field.count]
        return Value(field.type, raw.decode("utf-8", "surrogateescape"))
    if field.item_type is ValueType.ARRAY:
        return Value(field.type, [_copy(file, f) for f in arrays_in(file, field)], field.item_type)
    return Value(field.type, read(file, field), field.item_type)


def _integer_type(values: list[int], candidates: tuple[ValueType, ...]) -> ValueType:
    least, most = min(values), max(values)
    for kind in candidates:
        info = np.iinfo(DTYPES[kind])
        if info.min <= least and most <= info.max:
            return kind
    raise GGUFError(f"GGUF metadata has no integers as large as {most if most > 0 else least}")


def _numbers(kind: ValueType, values: Any) -> bytes:
    dtype = DTYPES[kind]
    if dtype.kind != "f" and not isinstance(values, np.ndarray):
        types = (bool, np.bool_) if kind is ValueType.BOOL else (int, np.integer)
        if not all(isinstance(v, types) for v in values):
            raise TypeError("not values of this kind")
        return np.array([int(v) for v in values], dtype).tobytes()
    array = np.asarray(values)
    if array.shape == (0,):
        return b""
    fitting = "b" if kind is ValueType.BOOL else "iuf" if dtype.kind == "f" else "iu"
    if array.ndim != 1 or array.dtype.kind not in fitting:
        raise TypeError("not values of this kind")
    stored = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(stored, array):
        raise OverflowError("does not fit")
    return stored.tobytes()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
