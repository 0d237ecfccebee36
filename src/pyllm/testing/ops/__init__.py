"""Test cases of every op, in modules named as the ops' own: `CASES` maps a name to its recording function.

A module is found by its name, a case by its entry; there is no other list. Ops with matrices or tables also have
`FORMATS`: cases for weights of every format.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op
from pyllm.program import ops as op_modules
from pyllm.testing.models import Model, Record, one_op

USUAL = ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_K", "IQ2_XS", "MXFP4")
"""A format of each kind: floats, blocks without a minimum and with one, blocks of blocks, grids, tables of values."""


@dataclass(frozen=True)
class FormatCase:
    """A case for every format, with few rows and with many."""

    record: Record
    width: int = 512
    """Columns of the op's input; whole blocks of every format."""
    in_f32: tuple[str, ...] = ("table",)
    """Matrices that stay F32."""
    n_products: int = 1
    """Successive products, each of which may round its input. 0: only decoding."""
    usual: tuple[str, ...] = USUAL
    """Formats of the usual checks; `cross` checks all others."""

    def model(self) -> Model:
        return one_op(self.record, width=self.width)

    def tensors(self, fmt: str) -> dict[str, TensorInfo]:
        model = self.model()
        floats = model.tensors("F32")
        return model.tensors(fmt) | {name: floats[name] for name in self.in_f32}


@cache
def cases() -> dict[str, Record]:
    """All cases, by "module-case"."""
    return {f"{m.__name__.rpartition('.')[2]}-{name}": case for m in _modules() for name, case in m.CASES.items()}


@cache
def format_cases() -> dict[str, FormatCase]:
    """All cases for every format, by "module-case"."""
    return {
        f"{m.__name__.rpartition('.')[2]}-{name}": case
        for m in _modules()
        for name, case in getattr(m, "FORMATS", {}).items()
    }


def op_kinds() -> list[type[Op]]:
    """Every op class of `pyllm.program.ops`."""
    return [
        kind
        for info in pkgutil.iter_modules(op_modules.__path__)
        for kind in vars(importlib.import_module(f"{op_modules.__name__}.{info.name}")).values()
        if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == f"{op_modules.__name__}.{info.name}"
    ]


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{info.name}")
