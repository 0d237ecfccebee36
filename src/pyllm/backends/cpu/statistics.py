"""Importance of weights: which sums each step collects, and the totals over all steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cpu.arguments.statistics import SumSquares
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.table import View, round_up
from pyllm.backends.plan.memory import Buffer
from pyllm.jit.memory import aligned_zeros
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.base import ImportanceSums
    from pyllm.backends.cpu.table import Table


@dataclass(frozen=True, slots=True)
class _Place:
    """Sums of one input: `n_groups` rows of `columns` from float `start` on, and counts from `group` on."""

    start: int
    group: int
    n_groups: int
    columns: int
    sums: Buffer
    errors: Buffer
    counts: Buffer
    """Has an address after `allocate`."""

    @property
    def padded(self) -> int:
        return round_up(self.columns, 16)


class Statistics:
    """Weights that multiply the same input share its sums. Only successful steps count."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, ...], _Place] = {}
        self._of_value: dict[int, _Place] = {}
        self._of_weight: dict[str, _Place] = {}
        self._n_floats = self._n_groups = 0
        self._step: NDArray[np.float32] = np.empty((2, 0), np.float32)
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def n_bytes(self) -> int:
        return 16 * self._n_floats + 16 * self._n_groups

    def observe(
        self,
        table: Table,
        value: int | None,
        weights: Sequence[str],
        x: View,
        columns: int,
        ranges: View,
        n_groups: int,
        *,
        x_stride: int = 0,
        range_stride: int = 16,
    ) -> None:
        """Sum squares of the rows of `x` in each of the `n_groups` ranges, as importance of `weights`. The strides are
        those of a grouped product.

        `value`: the id of the program's value that `x` is, if any; each value is summed once.
        """
        place = self._of_value.get(value) if value is not None else None
        if place is None:
            buffers = (Buffer(0, outside=True) for _ in range(3))
            place = _Place(self._n_floats, self._n_groups, n_groups, columns, *buffers)
            self._n_floats += n_groups * place.padded
            self._n_groups += n_groups
            if value is not None:
                self._of_value[value] = place
            table.add(
                kernel("statistics", "sum_squares"),
                SumSquares(
                    x=x,
                    columns=columns,
                    ranges=ranges,
                    n_groups=n_groups,
                    x_stride=x_stride,
                    range_stride=range_stride,
                    sums=place.sums,
                    errors=place.errors,
                    counts=place.counts,
                ),
                label="sum squares",
            )
        self._of_weight.update(dict.fromkeys(weights, place))

    def allocate(self) -> None:
        """Allocate zeroed sums; all `observe` calls must have been made."""
        self._step = aligned_zeros((2, self._n_floats), np.float32)
        self._counts = aligned_zeros((self._n_groups,), np.int64)
        self._totals = np.zeros(self._n_floats, np.float64)
        self._total_counts = np.zeros(self._n_groups, np.int64)
        for p in self._of_weight.values():
            p.sums.address, p.errors.address = (part[p.start :].ctypes.data for part in self._step)
            p.counts.address = self._counts[p.group :].ctypes.data

    def begin(self) -> None:
        """Begin a step: discard sums of an interrupted one."""
        self._step.fill(0)
        self._counts.fill(0)

    def commit(self) -> None:
        """Add the sums of a successful step to the totals."""
        for part in self._step:
            self._totals += part
        self._total_counts += self._counts

    def result(self) -> ImportanceSums:
        """The totals, as `Executable.importance` returns them."""
        out = {}
        for name, p in self._of_weight.items():
            sums = self._totals[p.start : p.start + p.n_groups * p.padded].reshape(p.n_groups, p.padded)
            out[name] = sums[:, : p.columns].copy(), self._total_counts[p.group : p.group + p.n_groups].copy()
        return out
