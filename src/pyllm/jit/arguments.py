"""Arguments of a kernel: declared once by name and type, packed when a table is built, read by generated loads.

    class RMSNorm(Arguments):
        x: Rows                # two slots: `x`, the address of the first row, and `ld_x`, the bytes between rows
        y: Written | None      # rows that the kernel writes; both slots are 0 where there are none
        weight: Address | None
        eps: float
        group: int

A table keeps an instance; its addresses are asked for when memory is placed. In the kernel, `jit.reader.reader` makes
`read(args)` of the class, whose result has `step`, `counter` and these slots by name. Imports no numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from numpy.typing import NDArray

from pyllm.records import dataclass


class Address(Protocol):
    """Something in memory; its address may be assigned after the argument was created."""

    @property
    def address(self) -> int: ...


class Rows(Address, Protocol):
    """Rows in memory, `ld` bytes apart."""

    @property
    def ld(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Memory whose address is known: of rows, where `ld` is given."""

    address: int
    ld: int = 0


_WRITTEN = "written"
Written = Annotated[Rows, _WRITTEN]
"""Rows that the kernel writes."""
WrittenAddress = Annotated[Address, _WRITTEN]

PREFIX = ("step", "counter")
"""The slots before those of a class: the STEP block, and the counter that work items are taken from."""


class Field(NamedTuple):
    name: str
    kind: Any
    """int, float, Address or Rows."""
    optional: bool
    written: bool

    @property
    def slots(self) -> tuple[str, ...]:
        return (self.name, f"ld_{self.name}") if self.kind is Rows else (self.name,)


def _declared(kind: type[Arguments]) -> Iterator[Field]:
    """The fields of a class in order. Raises TypeError where one has another type than the four."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):  # type: ignore[arg-type]
        options = [t for t in get_args(hints[field.name]) if t is not type(None)]
        optional = type(None) in get_args(hints[field.name])
        hint = options[0] if optional else hints[field.name]
        written = get_origin(hint) is Annotated
        base = get_args(hint)[0] if written else hint
        if base not in (int, float, Address, Rows) or (optional and base in (int, float)):
            raise TypeError(f"{kind.__name__}.{field.name}: a kernel has no argument of type {hints[field.name]}")
        yield Field(field.name, base, optional, written)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Arguments:
    """The arguments of one call. A subclass's annotations are the slots, in order."""

    declared: ClassVar[tuple[Field, ...]] = ()

    def __init_subclass__(cls) -> None:
        # Nothing that every start would compile and no table needs: type checkers see to it that they are frozen.
        dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.declared = tuple(_declared(cls))

    @classmethod
    def slots(cls) -> list[str]:
        """Names of the slots in order, without `PREFIX`."""
        return [slot for field in cls.declared for slot in field.slots]

    def __post_init__(self) -> None:
        for name, kind, optional, _ in self.declared:
            value = getattr(self, name)
            if kind is int or kind is float:
                fits = isinstance(value, kind | int | np.integer)
            else:
                fits = (optional and value is None) or all(hasattr(value, n) for n in _ATTRIBUTES[kind])
            if not fits:
                raise TypeError(f"{type(self).__name__}.{name} cannot be {value!r}")

    def places(self, *, written: bool) -> Iterator[Address]:
        """The arguments in memory: those that the kernel writes, or all others."""
        for field in self.declared:
            value = getattr(self, field.name)
            if field.kind in _ATTRIBUTES and field.written == written and value is not None:
                yield value

    def values(self) -> list[int | float]:
        """Contents of the slots, with the addresses known so far."""
        out: list[int | float] = []
        for name, kind, _, _ in self.declared:
            value = getattr(self, name)
            if kind in _ATTRIBUTES:
                out += (0 if value is None else getattr(value, n) for n in _ATTRIBUTES[kind])
            else:
                out.append(kind(value))
        return out

    def write(self, slots: NDArray[np.int64]) -> None:
        """Write the values to the slots after `PREFIX`; floats as float64 bits."""
        for i, value in enumerate(self.values()):
            if isinstance(value, float):
                slots.view(np.float64)[i] = value
            else:
                slots[i] = value

    def block(self, step: int, counter: int) -> NDArray[np.int64]:
        """All slots of a kernel that is called by itself; `counter` must be the address of a zero."""
        out = np.array([step, counter, *[0] * len(self.slots())], np.int64)
        self.write(out[len(PREFIX) :])
        return out


_ATTRIBUTES = {Address: ("address",), Rows: ("address", "ld")}
