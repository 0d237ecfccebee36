"""One planned kernel launch: what to compile, its grid, and its arguments once memory is placed.

During lowering nothing has an address, so a `Launch` keeps functions that are called once buffers are placed. What
varies between steps is in device memory (`StepArrays`); the grid depends only on a step's rounded-up sizes
(`StepShape`), so that the launches of one shape can be one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.records import dataclass

FEW = 8
"""Most rows of matrix-vector kernels; more take matrix-matrix kernels."""
ALIGNMENT = 256
"""Alignment of buffers in bytes."""
GROUP = 32
"""Columns that rows are padded to, and that share a scale where they are quantized."""

Defines = Mapping[str, int | str]
KernelKey = tuple[str, tuple[tuple[str, int | str], ...], str]


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a device that plans depend on."""

    n_sm: int
    """Multiprocessors."""
    max_shared: int
    """Most bytes of shared memory that a block can have."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """Rounded-up sizes of a step, which determine grids. The launches of a shape are one graph."""

    n_tokens: int
    n_rows: int
    n_seqs: int
    n_generated: int
    """Decode tokens, which come first: 0, or `n_tokens` where all are."""
    max_context: int
    """Positions of the longest sequence, this step's included."""
    max_span: int
    """Most tokens of one sequence."""


@dataclass(frozen=True, slots=True)
class Count:
    """Number of rows of a value, which kernels read from memory: a member of `struct Step`, or a multiple of one in
    another buffer (slots of experts: tokens times the experts of each)."""

    member: str
    offset: int
    """Bytes from the start of `struct Step`."""
    times: int = 1
    buffer: Buffer | None = None
    """Buffer of the number, if not in `struct Step`."""

    def of(self, shape: StepShape) -> int:
        return int(getattr(shape, self.member)) * self.times

    def most(self, options: ExecutionOptions) -> int:
        return int({"n_tokens": options.max_tokens, "n_rows": options.max_rows}[self.member]) * self.times

    @property
    def few(self) -> int:
        """Most rows that steps of up to FEW tokens have."""
        return FEW * self.times


TOKENS, ROWS = Count("n_tokens", 0), Count("n_rows", 4)


@dataclass(frozen=True, slots=True)
class View:
    """float32 rows in a buffer: `ld` floats apart, the first at `offset` bytes."""

    buffer: Buffer
    ld: int
    offset: int = 0

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset

    @staticmethod
    def room(n_rows: int, width: int) -> View:
        ld = round_up(width, GROUP)
        return View(Buffer(4 * n_rows * ld), ld)


@dataclass(frozen=True, slots=True)
class Q8:
    """Rows as int8 [n][ld]; for each 32 columns a float scale and a word of sums of the integers, both [n][ld / 32]
    (kernels/forms.cuh). Columns from the width to `ld` are zero."""

    values: Buffer
    scales: Buffer
    sums: Buffer
    ld: int

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.values, self.scales, self.sums

    @staticmethod
    def room(n_rows: int, width: int) -> Q8:
        ld = round_up(width, GROUP)
        return Q8(Buffer(n_rows * ld), Buffer(n_rows * ld // 8), Buffer(n_rows * ld // 8), ld)


@dataclass(frozen=True, slots=True)
class Half:
    """Rows as f16 [n][ld], divided by its factor, a power of two: float [n]. Columns from the width on are zero."""

    values: Buffer
    factors: Buffer
    ld: int

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.values, self.factors

    @staticmethod
    def room(n_rows: int, width: int) -> Half:
        ld = round_up(width, GROUP)
        return Half(Buffer(2 * n_rows * ld), Buffer(4 * n_rows), ld)


@dataclass(frozen=True, slots=True)
class Forms:
    """Activation dtypes that the producer of a value writes: float32 always; for products, q8 in steps of up to `few`
    rows and half in larger ones. None: not read."""

    f32: View | None = None
    q8: Q8 | None = None
    half: Half | None = None
    few: int = FEW

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        f32 = (self.f32.buffer,) if self.f32 else ()
        return (*f32, *(self.q8.buffers if self.q8 else ()), *(self.half.buffers if self.half else ()))

    def at(self, n: int) -> Forms:
        """Dtypes written in a step of `n` rows."""
        return Forms(self.f32, self.q8 if n <= self.few else None, self.half if n > self.few else None, self.few)


@dataclass(frozen=True, slots=True)
class StepArrays:
    """Uploads of a step, at fixed addresses: `struct Step`, then the arrays of a `Batch`, all int32."""

    step: Buffer
    tokens: Buffer
    positions: Buffer
    seqs: Buffer
    spans: Buffer
    page_tables: Buffer
    rows: Buffer
    state_in: Buffer
    saves: Buffer
    save_after: Buffer
    save_slot: Buffer
    page_stride: int
    """Ints from one sequence's page table to the next."""

    @staticmethod
    def of(options: ExecutionOptions) -> StepArrays:
        o, stride = options, round_up(options.n_pages, 4)
        n_states = o.max_seqs if o.n_slots else 0

        def ints(n: int) -> Buffer:
            return Buffer(4 * n, outside=True)

        return StepArrays(
            step=ints(4),
            tokens=ints(o.max_tokens),
            positions=ints(o.max_tokens),
            seqs=ints(o.max_tokens),
            spans=ints(2 * o.max_seqs),
            page_tables=ints(o.max_seqs * stride),
            rows=ints(o.max_rows),
            state_in=ints(n_states),
            saves=ints(2 * n_states),
            save_after=ints(o.max_saves),
            save_slot=ints(o.max_saves),
            page_stride=stride,
        )

    @property
    def all(self) -> tuple[Buffer, ...]:
        """Arrays in memory order; the last one is uploaded only for the step's sequences."""
        return (
            self.step, self.tokens, self.positions, self.seqs, self.spans, self.rows, self.state_in, self.saves,
            self.save_after, self.save_slot, self.page_tables,
        )  # fmt: skip

    def count(self, count: Count) -> int:
        """Address of the number of rows in this step; resolved when addresses are known."""
        return count.buffer.address if count.buffer else self.step.address + count.offset


def always(shape: StepShape) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel of a step. `grid` and `args` are evaluated once per shape, after all buffers have addresses."""

    source: str
    """File in kernels/."""
    name: str
    """The kernel in it."""
    grid: Callable[[StepShape], tuple[int, int, int]]
    block: int
    """Threads of a block."""
    args: Callable[[StepShape], NDArray[np.void]]
    """The kernel's `struct Args`: a 0-d structured array (`struct`, `fill`)."""
    label: str
    """Label in profiles."""
    defines: Defines = field(default_factory=dict)
    shared: int = 0
    """Bytes of dynamic shared memory."""
    when: Callable[[StepShape], bool] = always
    """Whether steps of a shape need it: e.g. only those of few tokens."""
    reads: tuple[Buffer, ...] = ()
    writes: tuple[Buffer, ...] = ()
    """Work memory that it reads or writes, whatever `when` decides: extends live ranges."""

    @property
    def key(self) -> KernelKey:
        """Key of the compiled kernel; launches with equal keys share it."""
        return self.source, tuple(sorted(self.defines.items())), self.name


_TYPES = {"ptr": np.uint64, "int": np.int32, "float": np.float32}


def struct(**members: str) -> np.dtype[np.void]:
    """A `struct Args` in C layout from its members in order: "ptr", "int" or "float"."""
    return np.dtype([(name, _TYPES[kind]) for name, kind in members.items()], align=True)


def fill(layout: np.dtype[np.void], **values: Any) -> NDArray[np.void]:
    """Arguments as a 0-d array of `struct`'s layout. Buffers and views give their address, None gives null.

    Raises ValueError unless every member is given.
    """
    if values.keys() != set(layout.names or ()):
        raise ValueError(f"arguments {sorted(values)} do not make {layout.names}")
    out = np.zeros((), layout)
    for name, value in values.items():
        out[name] = 0 if value is None else getattr(value, "address", value)
    return out
