"""Launches of row-wise ops: norms, sums, scalings, copies, gated activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import (
    Count,
    Forms,
    Launch,
    StepArrays,
    StepShape,
    View,
    always,
    fill,
    round_up,
    struct,
)
from pyllm.backends.plan.memory import Buffer
from pyllm.program.ops.gate import ACTIVATIONS

_THREADS, _MOST_THREADS = 128, 512
_KINDS = {
    "copy": 0, "add": 1, "scale": 2, "softcap": 3, "gated": 4, "activation": 5, "mul weight": 6,
    "add weight": 7, "clamp": 8,
}  # fmt: skip
FORMS = {
    "f32": "ptr", "q8": "ptr", "scales": "ptr", "sums": "ptr", "half": "ptr", "factors": "ptr",
    "f32_ld": "int", "q8_ld": "int", "half_ld": "int", "width": "int",
}  # fmt: skip
"""Members of `struct Forms` of kernels/rows.cuh, which begins each `struct Args`."""
_NORM = struct(
    **FORMS, count="ptr", rows="ptr", x="ptr", z="ptr", total="ptr", weight="ptr", bias="ptr",
    x_ld="int", z_ld="int", total_ld="int", weight_step="int", bias_step="int", eps="float",
)  # fmt: skip
_ELEMENTWISE = struct(
    **FORMS, count="ptr", rows="ptr", x="ptr", z="ptr", x_ld="int", z_ld="int", factor="float",
    alpha_n="float", alpha_p="float", beta="float", eps="float",
)  # fmt: skip


def norm(
    arrays: StepArrays,
    count: Count,
    *,
    x: View,
    y: Forms,
    weight: tuple[Buffer | None, int],
    eps: float,
    group: int,
    width: int,
    bias: tuple[Buffer | None, int] = (None, 0),
    centred: bool = False,
    selects_rows: bool = False,
    z: View | None = None,
    total: View | None = None,
) -> Launch:
    """y = norm(x + z) * weight + bias over groups of `group` columns; x + z also goes to `total`.

    weight, bias: address, and floats from one group's to the next's (0: shared). centred: subtract the mean.
    selects_rows: read x and z at the output rows.
    """
    threads = min(_MOST_THREADS, round_up(-(-width // 4), 32))

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _NORM, **form_members(y.at(count.of(shape)), width), count=arrays.count(count),
            rows=arrays.rows if selects_rows else None, x=x, z=z, total=total,
            weight=weight[0], bias=bias[0], x_ld=x.ld, z_ld=_ld(z), total_ld=_ld(total),
            weight_step=weight[1], bias_step=bias[1], eps=eps,
        )  # fmt: skip

    return Launch(
        "norm.cu",
        "norm_rows",
        lambda shape: (count.of(shape), 1, 1),
        threads,
        args,
        "norm",
        defines={"WIDTH": width, "GROUP": group, "THREADS": threads, "CENTRED": int(centred)},
        reads=_buffers(x, z),
        writes=(*y.buffers, *_buffers(total)),
    )


def elementwise(
    kind: str,
    arrays: StepArrays,
    count: Count,
    *,
    x: View,
    z: View | None = None,
    y: View,
    factor: float = 0.0,
    width: int,
    selects_rows: bool = False,
) -> Launch:
    """y = "copy": x, "add": x + z, "scale": x * factor, "softcap": factor * tanh(x / factor), "clamp": x within factor.

    selects_rows: read x at the output rows. Only "copy" accepts an x that is not aligned to 16 bytes.
    """
    return _launch(kind, arrays, count, x, z, Forms(y), width, factor=factor, selects_rows=selects_rows)


def gated(
    arrays: StepArrays,
    count: Count,
    act: str,
    gate: View,
    up: View,
    y: Forms,
    width: int,
    spread: int = 1,
    limit: float = 0.0,
) -> list[Launch]:
    """y = act(gate) * up; one number of `gate` applies to `spread` columns. `limit`: of an activation that has one."""
    number = ACTIVATIONS.index(act)
    return in_forms("gated", arrays, count, gate, up, y, width, act=number, spread=spread, factor=limit)


def activation(
    arrays: StepArrays, count: Count, act: str, x: View, y: Forms, width: int, parameters: tuple[float, ...]
) -> list[Launch]:
    """y = act(x)."""
    number = -1 if act == "xielu" else ACTIVATIONS.index(act)
    return in_forms("activation", arrays, count, x, None, y, width, act=number, parameters=parameters)


def with_weight(
    kind: str, arrays: StepArrays, count: Count, x: View, weight: Buffer, y: Forms, width: int, spread: int
) -> list[Launch]:
    """y = "mul weight": x * weight, "add weight": x + weight; one weight applies to `spread` columns."""
    return in_forms(kind, arrays, count, x, View(weight, 0), y, width, spread=spread)


def convert(arrays: StepArrays, count: Count, x: View, y: Forms, width: int) -> list[Launch]:
    """y = x, in other activation dtypes."""
    return in_forms("copy", arrays, count, x, None, y, width)


def in_forms(
    kind: str, arrays: StepArrays, count: Count, x: View, z: View | None, y: Forms, width: int, **options: Any
) -> list[Launch]:
    """Launches for steps that want float16 rows, where a block computes a whole row for its factor, and for other
    steps."""

    def halves(shape: StepShape) -> bool:
        return y.at(count.of(shape)).half is not None

    launches = []
    if y.f32 or y.q8:
        rest = Forms(y.f32, y.q8, None, y.few)
        launches.append(
            _launch(kind, arrays, count, x, z, rest, width, when=lambda shape: not halves(shape), **options)
        )
    if y.half:
        launches.append(_launch(kind, arrays, count, x, z, y, width, when=halves, **options))
    return launches


def _launch(
    kind: str,
    arrays: StepArrays,
    count: Count,
    x: View,
    z: View | None,
    y: Forms,
    width: int,
    *,
    act: int = 0,
    spread: int = 1,
    factor: float = 0.0,
    parameters: tuple[float, ...] = (),
    selects_rows: bool = False,
    when: Callable[[StepShape], bool] = always,
) -> Launch:
    threads, per_thread = whole_row(width) if y.half else (_THREADS, 1)
    blocks = -(-width // (4 * threads * per_thread))
    xielu = dict(zip(("alpha_n", "alpha_p", "beta", "eps"), parameters or (0.0,) * 4, strict=True))

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _ELEMENTWISE, **form_members(y.at(count.of(shape)), width), count=arrays.count(count),
            rows=arrays.rows if selects_rows else None, x=x, z=z, x_ld=x.ld, z_ld=_ld(z), factor=factor, **xielu,
        )  # fmt: skip

    return Launch(
        "elementwise.cu",
        "elementwise",
        lambda shape: (count.of(shape), blocks, 1),
        threads,
        args,
        kind,
        defines={
            "KIND": _KINDS[kind], "ACT": act, "SPREAD": spread, "ALIGNED": int(x.offset % 16 == 0), "THREADS": threads,
            "PER_THREAD": per_thread,
        },
        when=when,
        reads=_buffers(x, z),
        writes=y.buffers,
    )  # fmt: skip


def whole_row(width: int) -> tuple[int, int]:
    """Threads of a block for a whole row, and fours of columns of each thread."""
    fours = round_up(width, 32) // 4
    threads = min(_MOST_THREADS, round_up(fours, 32))
    return threads, -(-fours // threads)


def form_members(y: Forms, width: int) -> dict[str, Any]:
    """Values of FORMS' members."""
    q8, half = y.q8, y.half
    return {
        "f32": y.f32, "q8": q8 and q8.values, "scales": q8 and q8.scales, "sums": q8 and q8.sums,
        "half": half and half.values, "factors": half and half.factors, "f32_ld": _ld(y.f32),
        "q8_ld": q8.ld if q8 else 0, "half_ld": half.ld if half else 0, "width": width,
    }  # fmt: skip


def _ld(view: View | None) -> int:
    return view.ld if view else 0


def _buffers(*views: View | None) -> tuple[Buffer, ...]:
    return tuple(v.buffer for v in views if v)
