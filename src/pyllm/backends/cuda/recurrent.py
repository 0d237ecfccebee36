"""Launches of recurrent ops, and the memory of their states: of each op an array [n_slots, stride], slot by slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import GROUP, Defines, Launch, StepShape, View, fill, round_up, struct
from pyllm.backends.plan.memory import Buffer
from pyllm.errors import BackendError
from pyllm.program import Recurrent, SlotSpec, Value
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_SCAN = dict.fromkeys(
    ("step", "seqs", "spans", "state_in", "saves", "save_after", "save_slot", "states", "out"), "ptr"
) | dict.fromkeys(("stride", "out_ld"), "int")
"""`struct Scan` of kernels/recurrent.cuh."""
_THREADS = 256
_HEAD_THREADS, _COLUMNS = 128, 32
"""Threads of a block of kernels/heads.cuh, and its columns."""
_MOST_ROWS = 512
"""Most rows of a state that a kernel has in registers."""


def stride(spec: SlotSpec) -> int:
    """Floats from one slot's state to the next's."""
    return round_up(spec.n_numbers, GROUP)


@dataclass(frozen=True, slots=True)
class Scan:
    """A recurrent op's launch: its kernel, and what that takes beside states.

    A kernel's `struct Args` has `Scan`, the inputs, the weights (None: null), the inputs' row strides (`<name>_ld`),
    and the numbers, in this order.
    """

    source: str
    """The file in kernels/; the kernel's name is `name`."""
    name: str
    label: str
    inputs: Mapping[str, Value | None]
    weights: Mapping[str, Buffer | None] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    defines: Defines = field(default_factory=dict)


def by_number(low: Lowering, node: Node, op: Recurrent, scan: Scan) -> None:
    """Add the launch of a kernel with a thread for each number of the op's value."""
    blocks = -(-op.out.width // _THREADS)
    _add(low, node, op, scan, lambda shape: (blocks, shape.n_tokens, 1), _THREADS)


def by_sequence(low: Lowering, node: Node, op: Recurrent, scan: Scan, n_rows: int, threads: int) -> None:
    """Add the launch of a kernel with a thread for each column of the op's value, over all tokens of a sequence.
    `n_rows`: numbers in the state of a column."""
    _check(n_rows)
    blocks = -(-op.out.width // threads)
    _add(low, node, op, scan, lambda shape: (blocks, shape.n_seqs, 1), threads)


def by_head(low: Lowering, node: Node, op: Recurrent, scan: Scan, n_heads: int, key_dim: int, value_dim: int) -> None:
    """Add the launch of a kernel of kernels/heads.cuh, for a state [n_heads, key_dim, value_dim]."""
    _check(key_dim)
    blocks = n_heads * -(-value_dim // _COLUMNS)
    shape_of_state = {"N_HEADS": n_heads, "KEY_DIM": key_dim, "VALUE_DIM": value_dim}
    _add(low, node, op, scan, lambda shape: (blocks, shape.n_seqs, 1), _HEAD_THREADS, shape_of_state)


def _check(n_rows: int) -> None:
    if n_rows > _MOST_ROWS:
        raise BackendError(
            f"the CUDA backend has recurrent states of up to {_MOST_ROWS} rows, not of {n_rows}; the CPU takes any "
            "(-ngl 0)"
        )


def _add(
    low: Lowering,
    node: Node,
    op: Recurrent,
    scan: Scan,
    grid: Callable[[StepShape], tuple[int, int, int]],
    threads: int,
    more: Defines | None = None,
) -> None:
    inputs: dict[str, View | None] = {name: low.f32(v) if v else None for name, v in scan.inputs.items()}
    out, states, a = low.new_f32(node), low.slots[op.state], low.arrays
    layout = struct(
        **_SCAN,
        **dict.fromkeys((*inputs, *scan.weights), "ptr"),
        **{f"{name}_ld": "int" for name in inputs},
        **dict.fromkeys(scan.numbers, "float"),
    )

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            layout, step=a.step, seqs=a.seqs, spans=a.spans, state_in=a.state_in, saves=a.saves,
            save_after=a.save_after, save_slot=a.save_slot, states=states, out=out,
            stride=stride(low.program.slots[op.state]), out_ld=out.ld, **inputs, **scan.weights,
            **{f"{name}_ld": view.ld if view else 0 for name, view in inputs.items()}, **scan.numbers,
        )  # fmt: skip

    launch = Launch(
        scan.source,
        scan.name,
        grid,
        threads,
        args,
        scan.label,
        defines={**scan.defines, **(more or {})},
        reads=tuple(view.buffer for view in inputs.values() if view),
        writes=(out.buffer, states),
    )
    low.add(node, launch)
