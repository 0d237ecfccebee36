"""Matrices on the device and their products; x and results are float32, intermediate types vary.

Float16 products (`half`, on a GPU) first scale each row of x so that its largest magnitude is 16: no activation
overflows, and sums of a row stay far below the largest float16.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pyllm.backends.mlx import metal
from pyllm.backends.mlx.formats import Affine, Coded, Mode
from pyllm.backends.mlx.packing import Arrays, Plan

_MANY = 32
"""Rows of x from which decoding a matrix first is faster on the CPU."""
_LAUNCHES = 4
"""Launches of the Metal kernel, each of which reads the matrix: about the cost of decoding it to memory and reading
that."""
_DECODED = 1 << 25
"""Weights that are decoded at a time."""
_SORTED = 64
"""Slots from which mlx's products of experts want them sorted."""


class Matrix(ABC):
    """Matrices [n, rows, columns] of one tensor ([rows, columns] where it is one)."""

    def __init__(self, planned: Plan, arrays: Arrays, half: bool) -> None:
        self.plan, self.half = planned, half
        self.arrays = {name: _array(values) for name, values in arrays.items()}
        mx.eval(*self.arrays.values())

    @property
    def rows(self) -> int:
        return self.plan.shape[-2]

    @property
    def n_bytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def dtype(self) -> mx.Dtype:
        """Type of x in a product."""
        return mx.float16 if self.half else mx.float32

    def product(self, x: mx.array, bounded: bool = False) -> mx.array:
        """x [tokens, columns] → [tokens, rows]. `bounded`: values of x are within the bound of float16 products."""
        return self._scaled(x, bounded, self._product)

    def experts(self, x: mx.array, ids: mx.array) -> mx.array:
        """x [tokens, 1 or k, columns], each row with the matrix that ids [tokens, k] names → [tokens, k, rows]."""
        return self._scaled(x, False, lambda rows: self._experts(rows, ids))

    @abstractmethod
    def decode(self, arrays: dict[str, mx.array]) -> mx.array:
        """Weights of `arrays`, this matrix's or some of its experts', as `dtype` [..., rows, columns]."""

    @abstractmethod
    def _product(self, x: mx.array) -> mx.array: ...

    @abstractmethod
    def _experts(self, x: mx.array, ids: mx.array) -> mx.array: ...

    def _scaled(self, x: mx.array, bounded: bool, product: Callable[[mx.array], mx.array]) -> mx.array:
        if self.dtype == mx.float32:
            return product(x)
        if bounded:
            return product(x.astype(mx.float16)).astype(mx.float32)
        scale = mx.maximum(mx.max(mx.abs(x), axis=-1, keepdims=True) * (1 / 16), 1e-30)
        return product((x / scale).astype(mx.float16)).astype(mx.float32) * scale


class FloatMatrix(Matrix):
    """A matrix kept and multiplied as floats."""

    @property
    def dtype(self) -> mx.Dtype:
        return mx.float16 if self.plan.dtype == "float16" else mx.float32

    def decode(self, arrays: dict[str, mx.array]) -> mx.array:
        return arrays["w"]

    def _product(self, x: mx.array) -> mx.array:
        return x @ self.arrays["w"].T

    def _experts(self, x: mx.array, ids: mx.array) -> mx.array:
        return _gather_float(x, self.decode(self.arrays), ids)


class QuantizedMatrix(Matrix):
    """A matrix in mlx's affine groups, or one of its modes."""

    def __init__(self, planned: Plan, arrays: Arrays, half: bool) -> None:
        super().__init__(planned, arrays, half)
        layout = planned.layout
        assert isinstance(layout, Affine | Mode)
        mode = "affine" if isinstance(layout, Affine) else layout.name
        self._options = {"group_size": layout.group, "bits": layout.bits, "mode": mode}

    @property
    def dtype(self) -> mx.Dtype:
        return mx.float16 if self.half and self.plan.dtype == "float16" else mx.float32

    def decode(self, arrays: dict[str, mx.array]) -> mx.array:
        return mx.dequantize(arrays["codes"], arrays["scales"], arrays.get("biases"), dtype=self.dtype, **self._options)

    def _product(self, x: mx.array) -> mx.array:
        a = self.arrays
        if len(x) >= _MANY and not self.half:
            return x @ self.decode(a).T
        return mx.quantized_matmul(x, a["codes"], a["scales"], a.get("biases"), transpose=True, **self._options)

    def _experts(self, x: mx.array, ids: mx.array) -> mx.array:
        a = self.arrays

        def gather(rows: mx.array, which: mx.array, ordered: bool) -> mx.array:
            return mx.gather_qmm(
                rows, a["codes"], a["scales"], a.get("biases"), rhs_indices=which, transpose=True,
                sorted_indices=ordered, **self._options,
            )  # fmt: skip

        return _gather(x, ids, gather)


class CodedMatrix(Matrix):
    """A matrix in groups of 16 or with tables of values: the Metal kernel for few rows of x; for more, decoded in
    parts."""

    def __init__(self, planned: Plan, arrays: Arrays, half: bool) -> None:
        super().__init__(planned, arrays, half)
        assert isinstance(planned.layout, Coded)
        self._layout = planned.layout
        self._decode, self._has_kernel = _decoder(planned.layout), kernel_works(planned.layout)

    def decode(self, arrays: dict[str, mx.array]) -> mx.array:
        return self._decode(arrays)

    def _product(self, x: mx.array) -> mx.array:
        if self._has_kernel and len(x) <= _LAUNCHES * metal.MOST_ROWS:
            rows = [x[i : i + metal.MOST_ROWS] for i in range(0, len(x), metal.MOST_ROWS)]
            done = [metal.product(self._layout, self.arrays, part, self.rows, None, 1) for part in rows]
            return done[0] if len(done) == 1 else mx.concatenate(done)
        step = max(1, _DECODED // self.plan.columns)
        parts = [{n: a[i : i + step] for n, a in self.arrays.items()} for i in range(0, self.rows, step)]
        out = [x @ self.decode(part).T for part in parts]
        return out[0] if len(out) == 1 else mx.concatenate(out, axis=-1)

    def _experts(self, x: mx.array, ids: mx.array) -> mx.array:
        if self._has_kernel and ids.size <= _SORTED:
            share = ids.shape[1] // x.shape[1]
            out = metal.product(
                self._layout, self.arrays, x.reshape(-1, x.shape[-1]), self.rows, ids.reshape(-1), share
            )
            return out.reshape(*ids.shape, self.rows)
        if 2 * ids.size <= self.plan.shape[0]:
            chosen = self.decode({name: a[ids.reshape(-1)] for name, a in self.arrays.items()})
            chosen = chosen.reshape(*ids.shape, *chosen.shape[1:])
            return (x[:, :, None] @ chosen.swapaxes(-1, -2))[:, :, 0]
        return _gather_float(x, self.decode(self.arrays), ids)


def bytes_decoded(planned: Plan, half: bool, n: int) -> int:
    """Estimated bytes that a product of `n` rows decodes at a time: integers as float16, and weights."""
    weights = planned.rows * planned.columns
    if isinstance(planned.layout, Coded):
        if len(planned.shape) == 3:
            return 2 * 2 * weights
        return 2 * 2 * min(weights, 2 * _DECODED) if n > _LAUNCHES * metal.MOST_ROWS else 0
    return 4 * weights if planned.layout is not None and not half and n >= _MANY else 0


def matrix(planned: Plan, arrays: Arrays, half: bool) -> Matrix:
    """The matrices of a plan on the device."""
    if planned.layout is None:
        return FloatMatrix(planned, arrays, half)
    return (CodedMatrix if isinstance(planned.layout, Coded) else QuantizedMatrix)(planned, arrays, half)


@cache
def _decoder(layout: Coded) -> Callable[[dict[str, mx.array]], mx.array]:
    """Weights of a layout's arrays, as halves: [..., columns]. One function for all matrices of a layout, on Metal a
    compiled one: mlx would hold the matrix with a method of its own."""

    def decode(arrays: dict[str, mx.array]) -> mx.array:
        codes, halves = arrays["codes"], arrays["halves"].astype(mx.float32)
        columns = codes.shape[-1] * 32 // layout.bits
        ones = mx.ones((*codes.shape[:-1], columns // 32), mx.float16)
        # mlx unpacks bits as a part of dequantizing, which a scale of 1 and a bias of 0 leave as they are
        numbers = mx.dequantize(codes, ones, mx.zeros_like(ones), group_size=32, bits=layout.bits)
        if layout.values:
            numbers = metal.table(layout).astype(mx.float16)[numbers.astype(mx.uint8)]
        else:
            numbers = numbers - layout.offset
        halves = halves.reshape(*codes.shape[:-1], -1, 1, layout.n_halves)  # [..., blocks, 1, 1 or 2]
        per_block = layout.block // layout.group
        scale = halves[..., 0] * layout.factor  # [..., blocks, 1]
        minimum = None
        if "scales" in arrays:
            scales = arrays["scales"].reshape(*codes.shape[:-1], -1, per_block)
            if layout.scales == "u4":
                minimum = halves[..., 1] * (scales >> 4).astype(mx.float32)
                scales = scales & 15
            scale = scale * scales.astype(mx.float32)  # [..., blocks, groups of a block]
        numbers = numbers.reshape(*codes.shape[:-1], -1, per_block, layout.group)
        numbers = scale[..., None] * numbers  # float32, as scale is
        if minimum is not None:
            numbers = numbers - minimum[..., None]
        return numbers.reshape(*codes.shape[:-1], columns).astype(mx.float16)

    compiled: Callable[[dict[str, mx.array]], mx.array] = mx.compile(decode) if metal.available() else decode
    return compiled


@cache
def kernel_works(layout: Coded) -> bool:
    """Whether the Metal kernel compiles, runs, and agrees with decoding on random numbers; else a warning is issued and
    all products decode, which is slower."""
    if not metal.available():
        return False
    rng, rows, columns = np.random.default_rng(0), 9, 512
    halves = (0.01 * rng.standard_normal((rows, columns // layout.block * layout.n_halves))).astype(np.float16)
    codes = rng.integers(0, 1 << 32, (rows, columns * layout.bits // 32), np.uint32)
    arrays = {"codes": mx.array(codes), "halves": mx.array(halves)}
    if layout.scales != "none":
        scales = rng.integers(0, 128, (rows, columns // layout.group), np.uint8)
        arrays["scales"] = mx.array(scales.view(np.int8) if layout.scales == "i8" else scales)
    x = mx.array(rng.standard_normal((3, columns)).astype(np.float16))
    try:
        got = np.asarray(metal.product(layout, arrays, x, rows, None, 1))
        wanted = np.asarray(x.astype(mx.float32) @ _decoder(layout)(arrays).astype(mx.float32).T)
        works = bool(np.mean((got - wanted) ** 2) < 1e-5 * np.mean(wanted**2))
        reason = "it computes something else than decoding does"
    except (RuntimeError, ValueError) as error:
        works, reason = False, str(error)[:500]
    if not works:
        logging.getLogger("pyllm").warning("mlx: no Metal kernel of our own, so some weights are slow here: %s", reason)
    return works


def _array(values: NDArray[np.generic]) -> mx.array:
    return mx.array(values)


def _gather_float(x: mx.array, weights: mx.array, ids: mx.array) -> mx.array:
    if not metal.available():  # mlx has it on the CPU in float32 only
        x, weights = x.astype(mx.float32), weights.astype(mx.float32)
    transposed = weights.swapaxes(-1, -2)
    return _gather(x, ids, lambda rows, which, ordered: mx.gather_mm(
        rows, transposed, rhs_indices=which, sorted_indices=ordered
    ))  # fmt: skip


def _gather(x: mx.array, ids: mx.array, product: Callable[[mx.array, mx.array, bool], mx.array]) -> mx.array:
    """x [tokens, 1 or k, columns], ids [tokens, k] → [tokens, k, rows] by products of single rows with experts, sorted
    by expert where they are many."""
    tokens, k = ids.shape
    if ids.size < _SORTED:
        return product(x[:, :, None], ids, False)[:, :, 0]
    flat = ids.reshape(-1)
    order = mx.argsort(flat)
    rows = x.reshape(-1, x.shape[-1])[order // (k // x.shape[1])]
    out = product(rows[:, None], flat[order], True)[:, 0]
    return out[mx.argsort(order)].reshape(tokens, k, -1)
