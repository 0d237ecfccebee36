"""SIMD vectors as numba values: types, loads, arithmetic, and the few operations that differ by instruction set.

Every vector has 16 lanes of 32 bits (or 64 of 8): one AVX-512 register, two of AVX2, four of SSE2 or NEON, as LLVM splits
them, so loops are written once. Addresses are int64 and offsets are added in Python; nothing is checked here.
Imported only where kernels are compiled.
"""

from pyllm.backends.cpu.simd.core import set_target
from pyllm.backends.cpu.simd.math import exp_f32, sigmoid_f32, tanh_f32
from pyllm.backends.cpu.simd.memory import (
    atomic_add,
    atomic_load,
    atomic_store,
    load_bf16x16,
    load_f16,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_f64,
    load_i8,
    load_i8x16,
    load_i8x64,
    load_i16,
    load_i32,
    load_i32x16,
    load_i64,
    load_u8,
    load_u8x16,
    load_u16,
    pause,
    prefetch,
    splat4_i8x64,
    splat_f32,
    splat_i8,
    splat_i32,
    store_bf16x16,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i8,
    store_i8x16,
    store_i8x64,
    store_i16,
    store_i32,
    store_i32x16,
    store_i64,
    zero_f32,
    zero_i32,
)
from pyllm.backends.cpu.simd.ops import (
    abs_f32,
    dot4,
    dot4_wide,
    first_lane,
    fma,
    hmax_f32,
    hsum_f32,
    hsum_i32,
    max_f32,
    min_f32,
    mul_i32,
    nibbles_high,
    nibbles_low,
    round_to_i32,
    select_lt,
    shift_left_i8,
    shift_right_i8,
    sqrt_f32,
    to_f32,
)

__all__ = [
    "abs_f32", "atomic_add", "atomic_load", "atomic_store", "dot4", "dot4_wide", "exp_f32", "first_lane", "fma", "hmax_f32",
    "hsum_f32", "hsum_i32", "load_bf16x16", "load_f16", "load_f16x16", "load_f32", "load_f32x16", "load_f64", "load_i8",
    "load_i8x16", "load_i8x64", "load_i16", "load_i32", "load_i32x16", "load_i64", "load_u8", "load_u8x16", "load_u16",
    "max_f32", "min_f32", "mul_i32", "nibbles_high", "nibbles_low", "pause", "prefetch", "round_to_i32", "select_lt",
    "set_target", "shift_left_i8", "shift_right_i8", "sigmoid_f32", "splat4_i8x64", "splat_f32", "splat_i8", "splat_i32",
    "sqrt_f32", "store_bf16x16", "store_f16x16", "store_f32", "store_f32x16", "store_i8", "store_i8x16", "store_i8x64", "store_i16",
    "store_i32", "store_i32x16", "store_i64", "tanh_f32", "to_f32", "zero_f32", "zero_i32",
]  # fmt: skip
