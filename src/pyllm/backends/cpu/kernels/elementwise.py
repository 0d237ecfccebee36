"""Elementwise ops: sums, factors, caps, copies, activations and gated activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.elementwise import XIELU, Elementwise, Gated, Quantize
from pyllm.backends.cpu.kernels.activation import store_activation
from pyllm.backends.cpu.kernels.rows import row_of, rows_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    abs_f32,
    atomic_add,
    exp_f32,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32,
    min_f32,
    select_lt,
    sigmoid_f32,
    splat_f32,
    store_f32,
    store_f32x16,
    tanh_f32,
    zero_f32,
)
from pyllm.program.ops.gate import LIMITED

read_elementwise, read_gated = reader(Elementwise), reader(Gated)
read_quantize, read_xielu = reader(Quantize), reader(XIELU)

_COLUMNS = 4096
"""Columns of one work item: long rows (logits) are shared among threads."""


@register_jitable
def _add(a, b, f):
    return a + b


@register_jitable
def _scale(a, b, f):
    return a * f


@register_jitable
def _softcap(a, b, f):
    return tanh_f32(a / f) * f


@register_jitable
def _clamp(a, b, f):
    return max_f32(min_f32(a, f), zero_f32() - f)


@register_jitable
def _copy(a, b, f):
    return a


_OPS = {"add": _add, "scale": _scale, "softcap": _softcap, "clamp": _clamp, "copy": _copy}


def elementwise(kind: str) -> Callable[[int, int, int], None]:
    """Y = op(X, B, factor)."""
    function: Any = _OPS[kind]

    def k(args, thread, n_threads):
        a = read_elementwise(args)
        factor = splat_f32(np.float32(a.factor))
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        parts = (a.columns + _COLUMNS - 1) // _COLUMNS
        while True:
            item = atomic_add(a.counter, 1)
            if item >= n * parts:
                break
            t = first + item // parts
            start = item % parts * _COLUMNS
            s = row_of(a.step, t, a.selects_rows)
            for c in range(start, min(start + _COLUMNS, a.columns), 16):
                store_f32x16(
                    a.y + t * a.ld_y + 4 * c,
                    function(load_f32x16(a.x + s * a.ld_x + 4 * c), load_f32x16(a.b + s * a.ld_b + 4 * c), factor),
                )

    return k


@register_jitable
def _erf(x):
    """Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    one = splat_f32(np.float32(1))
    a = abs_f32(x)
    t = one / fma(splat_f32(np.float32(0.3275911)), a, one)
    p = splat_f32(np.float32(1.061405429))
    p = fma(p, t, splat_f32(np.float32(-1.453152027)))
    p = fma(p, t, splat_f32(np.float32(1.421413741)))
    p = fma(p, t, splat_f32(np.float32(-0.284496736)))
    p = fma(p, t, splat_f32(np.float32(0.254829592)))
    y = one - p * t * exp_f32(zero_f32() - a * a)
    return select_lt(x, zero_f32(), zero_f32() - y, y)


@register_jitable
def _silu(x):
    return x * sigmoid_f32(x)


@register_jitable
def _gelu(x):
    one = splat_f32(np.float32(1))
    half = splat_f32(np.float32(0.5))
    inner = x * splat_f32(np.float32(0.79788456080286535588)) * fma(splat_f32(np.float32(0.044715)) * x, x, one)
    return half * x * (one + tanh_f32(inner))


@register_jitable
def _gelu_erf(x):
    one = splat_f32(np.float32(1))
    half = splat_f32(np.float32(0.5))
    return half * x * (one + _erf(x * splat_f32(np.float32(0.70710678118654752440))))


@register_jitable
def _relu(x):
    return max_f32(x, zero_f32())


@register_jitable
def _relu2(x):
    x = max_f32(x, zero_f32())
    return x * x


@register_jitable
def _sigmoid(x):
    return sigmoid_f32(x)


@register_jitable
def _tanh(x):
    return tanh_f32(x)


@register_jitable
def softplus(x):
    """max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 artanh(e / (2 + e)) by its series, within 1e-8."""
    e = exp_f32(zero_f32() - abs_f32(x))
    s = e / (e + splat_f32(np.float32(2)))
    q = s * s
    p = splat_f32(np.float32(1 / 13))
    for n in (11, 9, 7, 5, 3, 1):
        p = fma(p, q, splat_f32(np.float32(1) / np.float32(n)))
    return fma(s + s, p, max_f32(x, zero_f32()))


@register_jitable
def _exp(x):
    return exp_f32(x)


@register_jitable
def _identity(x):
    return x


@register_jitable
def _clamped_swish(x):
    x = min_f32(x, splat_f32(np.float32(7)))
    return x * sigmoid_f32(x * splat_f32(np.float32(1.702)))


_FUNCTIONS = {
    "silu": _silu, "gelu": _gelu, "gelu_erf": _gelu_erf, "relu": _relu, "swiglu_oai": _clamped_swish, "relu2": _relu2,
    "sigmoid": _sigmoid, "softplus": softplus, "tanh": _tanh, "exp": _exp, "identity": _identity,
}  # fmt: skip


def gate_of(act: str) -> Any:
    """act(gate) * up as a function of vectors."""
    function: Any = _FUNCTIONS[act]
    clamped = act == "swiglu_oai"

    @register_jitable
    def gate(g, u):
        if clamped:
            seven = splat_f32(np.float32(7))
            return function(g) * (max_f32(min_f32(u, seven), zero_f32() - seven) + splat_f32(np.float32(1)))
        return function(g) * u

    return gate


@register_jitable
def _spread(row, c, spread):
    """Columns c .. c + 15 of a row in which one number applies to `spread` columns."""
    if spread == 1:
        return load_f32x16(row + 4 * c)
    return splat_f32(load_f32(row + 4 * (c // spread)))


@register_jitable
def _expand(row, out, columns, spread):
    """Each number of a row, repeated `spread` times."""
    for c in range(columns):
        store_f32(out + 4 * c, load_f32(row + 4 * (c // spread)))


def gated(act: str) -> Callable[[int, int, int], None]:
    """y = act(gate) * up, and its quantized activations."""
    if act not in LIMITED:
        return _rows_kernel(gate_of(act))
    before = act == "swiglu_clamp"

    @register_jitable
    def gate(g, u, limit):
        g = _silu(min_f32(g, limit)) if before else min_f32(_silu(g), limit)
        return g * max_f32(min_f32(u, limit), zero_f32() - limit)

    return _rows_kernel(gate, True)


def activation(act: str) -> Callable[[int, int, int], None]:
    """y = act(x), and its quantized activations. Up is x, too."""
    function: Any = _FUNCTIONS[act]

    @register_jitable
    def unary(x, same):
        return function(x)

    return _rows_kernel(unary)


def mul_weight() -> Callable[[int, int, int], None]:
    """y = x * weight, and its quantized activations. Gate is the weight, with 0 bytes between rows."""

    @register_jitable
    def product(w, x):
        return x * w

    return _rows_kernel(product)


def add_weight() -> Callable[[int, int, int], None]:
    """y = x + weight, and its quantized activations. Gate is the weight, with 0 bytes between rows."""

    @register_jitable
    def total(w, x):
        return x + w

    return _rows_kernel(total)


def _rows_kernel(function: Any, limited: bool = False) -> Callable[[int, int, int], None]:
    """y = function(gate, up), or function(gate, up, limit), and its quantized activations."""

    def k(args, thread, n_threads):
        a = read_gated(args)
        scratch = a.scratch + thread * a.ld_scratch
        expanded = scratch + 4 * ((a.columns + 31) // 32 * 32)
        wide_from = load_i64(a.wide_from)
        limit = splat_f32(np.float32(a.limit))
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                out = a.y + t * a.ld_y if a.y != 0 else scratch
                row, each = a.gate + t * a.ld_gate, a.spread
                if a.spread % 16 != 0 and a.spread != 1:
                    _expand(row, expanded, a.columns, a.spread)
                    row, each = expanded, 1
                for c in range(0, a.columns, 16):
                    g = _spread(row, c, each)
                    u = load_f32x16(a.up + t * a.ld_up + 4 * c)
                    store_f32x16(out + 4 * c, function(g, u, limit) if limited else function(g, u))
                if a.records != 0:
                    store_activation(out, a.records + t * a.ld_records, a.columns, 1 if t >= wide_from else 0)

    return k


def xielu() -> Callable[[int, int, int], None]:
    """y = alpha_p x^2 + beta x for x > 0, else alpha_n (expm1(min(x, eps)) - x) + beta x."""

    def k(args, thread, n_threads):
        a = read_xielu(args)
        alpha_n = splat_f32(np.float32(a.alpha_n))
        alpha_p = splat_f32(np.float32(a.alpha_p))
        beta = splat_f32(np.float32(a.beta))
        eps = splat_f32(np.float32(a.eps))
        one = splat_f32(np.float32(1))
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                for c in range(0, a.columns, 16):
                    v = load_f32x16(a.x + t * a.ld_x + 4 * c)
                    below = alpha_n * (exp_f32(min_f32(v, eps)) - one - v)
                    bent = select_lt(zero_f32(), v, alpha_p * v * v, below)
                    store_f32x16(a.y + t * a.ld_y + 4 * c, fma(beta, v, bent))

    return k


def quantize() -> Callable[[int, int, int], None]:
    """Quantized activations of rows."""

    def k(args, thread, n_threads):
        a = read_quantize(args)
        wide_from = load_i64(a.wide_from)
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                row = a.x + row_of(a.step, t, a.selects_rows) * a.ld_x
                store_activation(row, a.records + t * a.ld_records, a.columns, 1 if t >= wide_from else 0)

    return k
