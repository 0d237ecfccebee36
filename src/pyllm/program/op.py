"""The base of all ops, and what an op may ask while it is recorded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, NoReturn, Protocol, Self, cast, get_args, get_type_hints

from pyllm.errors import ModelError
from pyllm.program.values import StateSpec, Value, Weight

UNRECORDED = Value(-1, 0)


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One step of the pass.

    A subclass lies in `pyllm.program.ops.<module>`; each backend has its rule in a module of the same name. Fields of
    type `Value` are what it reads, fields of type `Weight` its tensors. `out` and `layer` are set on recording.
    """

    out: Value = UNRECORDED
    layer: int = -1
    """The block that it belongs to: -1 before the first, n_layers after the last."""

    selects_rows: ClassVar[bool] = False
    """Its value has one row per output row, not one per token, whatever it reads."""
    keeps_state: ClassVar[bool] = False
    """It must be computed in every step, whoever reads its value: later steps read what it keeps."""

    def settle(self, shapes: Shapes) -> Self:
        """The op with what follows from its inputs filled in: default sizes, the state that it keeps."""
        return self

    def infer(self, shapes: Shapes) -> int:
        """Width of its value. Raises ModelError where inputs, tensors and sizes do not fit together."""
        raise NotImplementedError


@dataclass
class Shapes:
    """Shapes of a model's tensors, and what has been recorded so far.

    `tensors` maps names to anything with a shape (outermost first), such as a file's `TensorInfo`s.
    """

    tensors: Mapping[str, Shaped]
    states: list[StateSpec] = field(default_factory=list)
    selected: set[int] = field(default_factory=set)
    """Ids of values that have one row per output row, not one per token."""

    def has(self, name: str) -> bool:
        """Is there a tensor of this name?"""
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost first; ModelError when there is none of this name."""
        try:
            return tuple(self.tensors[name].shape)
        except KeyError:
            raise ModelError(f"tensor {name} is missing: the file is incomplete, or of another architecture") from None

    def require(self, name: str | None, *shapes: tuple[int, ...]) -> None:
        """ModelError unless there is a tensor of this name and one of these shapes. None needs no tensor."""
        if name is not None and self.shape(name) not in shapes:
            self.refuse(name, shapes[0])

    def rows(self, name: str, columns: int) -> int:
        """Rows of a matrix with so many columns; ModelError where it is no such matrix."""
        shape = self.shape(name)
        if len(shape) != 2 or shape[1] != columns:
            self.refuse(name, (shape[0], columns))
        return shape[0]

    def require_rows(self, name: str, rows: int) -> None:
        """ModelError unless this matrix has so many rows."""
        shape = self.shape(name)
        if shape[:1] != (rows,):
            self.refuse(name, (rows, *shape[1:]))

    def refuse(self, name: str, wanted: tuple[int, ...]) -> NoReturn:
        """The ModelError of a tensor whose shape does not fit."""
        raise ModelError(f"tensor {name} has shape {list(self.shape(name))}, but the model needs {list(wanted)}")

    def same_width(self, verb: str, a: Value, b: Value) -> int:
        """The width of both; ModelError where they differ, in columns or in rows."""
        if a.width != b.width:
            raise ModelError(f"{a.width} and {b.width} columns cannot be {verb}")
        self.same_rows(a, b)
        return a.width

    def same_rows(self, a: Value, b: Value) -> None:
        """ModelError where one has a row per token and the other one per output row."""
        if (a.id in self.selected) != (b.id in self.selected):
            raise ModelError("selected rows and all tokens do not go together")

    def every_token(self, need: str, *values: Value) -> None:
        """ModelError, `need` in words, where a value has rows for some tokens only."""
        if any(v.id in self.selected for v in values):
            raise ModelError(f"{need}, not selected rows")


def known(word: str, words: tuple[str, ...]) -> None:
    """ModelError unless `word` is one of `words`."""
    if word not in words:
        raise ModelError(f"{word!r} is unknown; known are {', '.join(words)}")


@lru_cache(None)
def _weight_fields(kind: Any) -> tuple[str, ...]:
    """Names of the fields of an op that name weights, in order."""
    hints = get_type_hints(kind)
    return tuple(f.name for f in fields(kind) if Weight in (hints[f.name], *get_args(hints[f.name])))


def weight_names(op: Op) -> list[str]:
    """Names of the tensors that one op uses, in field order."""
    names = (getattr(op, name) for name in _weight_fields(cast(Hashable, type(op))))
    return [name for name in names if name is not None]


def inputs(op: Op) -> list[Value]:
    """The values that one op reads, in field order."""
    return [v for f in fields(op) if f.name != "out" and isinstance(v := getattr(op, f.name), Value)]
