"""The base of all ops, and the checks that an op makes while it is recorded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import field, fields, replace
from functools import lru_cache
from typing import ClassVar, NoReturn, Protocol, Self, cast, get_args, get_type_hints

from pyllm.errors import ModelError
from pyllm.program.values import SlotSpec, StateSpec, Value, Weight
from pyllm.records import dataclass

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
    """Its block: -1 before the first, n_layers after the last."""

    selects_rows: ClassVar[bool] = False
    """Its value has one row per output row, not one per token, whatever its inputs have."""
    keeps_state: ClassVar[bool] = False
    """Computed in every step, even where nothing reads its value: later steps read its state."""

    def settle(self, shapes: Shapes) -> Self:
        """The op with default sizes and its state filled in, as its inputs determine them."""
        return self

    def infer(self, shapes: Shapes) -> int:
        """Width of its value, in columns. Raises ModelError where inputs, tensors and sizes do not fit together."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached(Op):
    """An op that writes or reads a KV cache."""

    keeps_state: ClassVar[bool] = True

    cache: int = -1
    """Number of its KV cache; -1: a new one, set on recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent(Op):
    """An op whose value of a token depends on a state that earlier tokens of the sequence left, and changes it.

    Where a batch holds only some of a sequence's tokens, the result is the same: to the bit where the backend is
    exact in company.
    """

    keeps_state: ClassVar[bool] = True

    state: int = -1
    """Number of its state among those of its kind; -1: a new one, set on recording."""

    def settle(self, shapes: Shapes) -> Self:
        if self.state >= 0:
            return self
        shapes.states.append(self.slot(shapes))
        return replace(self, state=sum(isinstance(spec, SlotSpec) for spec in shapes.states) - 1)

    def slot(self, shapes: Shapes) -> SlotSpec:
        """The shape of its state. Raises ModelError where inputs and tensors do not tell."""
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
        """Whether there is a tensor of this name."""
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, outermost first. Raises ModelError for an unknown name."""
        try:
            return tuple(self.tensors[name].shape)
        except KeyError:
            raise ModelError(f"tensor {name} is missing: the file is incomplete, or of another architecture") from None

    def require(self, name: str | None, *shapes: tuple[int, ...]) -> None:
        """Raise ModelError unless the tensor exists and has one of these shapes. The name None requires nothing."""
        if name is not None and self.shape(name) not in shapes:
            self.refuse(name, shapes[0])

    def rows(self, name: str, columns: int) -> int:
        """Number of rows of a matrix of `columns` columns. Raises ModelError for another shape."""
        shape = self.shape(name)
        if len(shape) != 2 or shape[1] != columns:
            self.refuse(name, (shape[0], columns))
        return shape[0]

    def require_rows(self, name: str, rows: int) -> None:
        """Raise ModelError unless the matrix has `rows` rows."""
        shape = self.shape(name)
        if shape[:1] != (rows,):
            self.refuse(name, (rows, *shape[1:]))

    def refuse(self, name: str, wanted: tuple[int, ...]) -> NoReturn:
        """Raise the ModelError for a tensor whose shape does not fit."""
        raise ModelError(f"tensor {name} has shape {list(self.shape(name))}, but the model needs {list(wanted)}")

    def same_width(self, verb: str, a: Value, b: Value) -> int:
        """The common width. Raises ModelError where the values differ in columns or rows."""
        if a.width != b.width:
            raise ModelError(f"{a.width} and {b.width} columns cannot be {verb}")
        self.same_rows(a, b)
        return a.width

    def same_rows(self, a: Value, b: Value) -> None:
        """Raise ModelError where one value has a row per token and the other a row per output row."""
        if (a.id in self.selected) != (b.id in self.selected):
            raise ModelError("a value of the output rows and a value of all tokens cannot be combined")

    def every_token(self, need: str, *values: Value) -> None:
        """Raise ModelError, beginning with `need`, unless each value has a row per token."""
        if any(v.id in self.selected for v in values):
            raise ModelError(f"{need}, not the output rows")


def known(word: str, words: tuple[str, ...]) -> None:
    """Raise ModelError unless `word` is one of `words`."""
    if word not in words:
        raise ModelError(f"{word!r} is unknown; known are {', '.join(words)}")


@lru_cache(None)
def _fields_of(kind: Hashable) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the fields of an op's class that hold values that it reads, and of those that name weights, in order."""
    hints = get_type_hints(kind)
    types = {f.name: (hints[f.name], *get_args(hints[f.name])) for f in fields(cast(type[Op], kind)) if f.name != "out"}
    values, weights = (tuple(name for name, found in types.items() if of in found) for of in (Value, Weight))
    return values, weights


def weight_names(op: Op) -> list[str]:
    """Names of the tensors that one op uses, in field order."""
    names = (getattr(op, name) for name in _fields_of(cast(Hashable, type(op)))[1])
    return [name for name in names if name is not None]


def inputs_by_field(op: Op) -> dict[str, Value]:
    """The values that one op reads, by field, in order."""
    values = ((name, getattr(op, name)) for name in _fields_of(cast(Hashable, type(op)))[0])
    return {name: value for name, value in values if value is not None}


def inputs(op: Op) -> list[Value]:
    """The values that one op reads, in field order."""
    return list(inputs_by_field(op).values())
