"""Packing and matrix products of the CPU backend, alone: every format against the gguf package's decoder in float64."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from pyllm.backends.cpu import linear
from pyllm.backends.cpu.compiler import LIBRARY, Kernel, assembly, kernel
from pyllm.backends.cpu.target import Target, host
from pyllm.gguf.tensor import TensorInfo

FORMATS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SCALES_AT = {
    "Q4_0": 0,
    "Q4_1": 0,
    "Q5_0": 0,
    "Q5_1": 0,
    "Q8_0": 0,
    "Q2_K": 80,
    "Q3_K": 108,
    "Q4_K": 0,
    "Q5_K": 0,
    "Q6_K": 208,
}
# rows, columns, tokens: rows that do not fill a panel, an odd number of panels, every tile of the kernel
SHAPES = [(48, 512, 1), (40, 256, 2), (16, 512, 3), (100, 768, 5), (64, 256, 13), (7, 256, 40)]


def aligned(n: int) -> np.ndarray:
    b = np.zeros(n + 64, np.uint8)
    o = -b.ctypes.data % 64
    return b[o : o + n]


def run(address: int, args: int) -> None:
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address)(args, 0, 1)


def call(k: Kernel, args: np.ndarray) -> None:
    run(LIBRARY.load([k])[k], args.ctypes.data)


def weights(format: str, rows: int, columns: int, rng: np.random.Generator) -> tuple[TensorInfo, np.ndarray]:
    """Random blocks with sane scales, and what the gguf package decodes them to."""
    kind = gguf.GGMLQuantizationType[format]
    size, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    if format in ("F32", "F16", "BF16"):
        raw = gguf.quants.quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind)
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(rows, -1)
    else:
        blocks = rng.integers(0, 256, (rows, columns // size, n_bytes), dtype=np.uint8)
        for at in (SCALES_AT[format], SCALES_AT[format] + 2):
            if at + 2 <= n_bytes and (at == SCALES_AT[format] or format in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")):
                scale = (0.001 + 0.01 * rng.random(blocks.shape[:2])).astype(np.float16)
                blocks[:, :, at : at + 2] = scale.view(np.uint8).reshape(*blocks.shape[:2], 2)
        raw = blocks.reshape(rows, -1)
    decoded = gguf.quants.dequantize(raw if format != "F32" else raw.view(np.float32), kind)
    return TensorInfo("w", (rows, columns), format, raw.reshape(-1)), decoded.reshape(rows, columns).astype(np.float64)


def records(x: np.ndarray, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """Activation records of x [tokens, columns] made by the kernel, and the values that they stand for."""
    n, columns = x.shape
    out = aligned(n * 2 * columns)
    rows, counter, wide_from = np.array([0, n], np.int64), np.zeros(1, np.int64), np.array([0 if wide else n], np.int64)
    slots = [0, counter.ctypes.data, x.ctypes.data, 4 * columns, out.ctypes.data, 2 * columns, columns]
    call(kernel("elementwise", "quantize"), np.array([*slots, rows.ctypes.data, 0, wide_from.ctypes.data], np.int64))
    r = out.reshape(n, 2 * columns)
    if wide:
        return out, (r.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    q = r[:, :columns].view(np.int8).astype(np.float64).reshape(n, -1, 32)
    scale = r[:, columns : columns + columns // 8].copy().view(np.float32)
    return out, (q * scale[..., None]).reshape(n, columns)


@pytest.mark.parametrize("wide", [False, True])
def test_activation_records(wide: bool) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((9, 96)) * 10.0 ** rng.integers(-6, 6, (9, 1))).astype(np.float32)
    x[3, 32:64] = 0
    raw, value = records(x, wide)
    bound = (
        np.abs(x) * 2.0**-8
        if wide
        else np.abs(x).reshape(9, 3, 32).max(-1, keepdims=True).repeat(32, -1).reshape(9, 96) / 253
    )
    assert (np.abs(value - x) <= bound).all()
    if not wide:
        r = raw.reshape(9, 192)
        q = r[:, :96].view(np.int8).astype(np.int64)
        assert (r[:, 120:144].copy().view(np.int32) == q.reshape(9, 6, 16).sum(-1)).all()
        scale, scaled = (r[:, 96 + 12 * i : 108 + 12 * i].copy().view(np.float32) for i in range(2))
        np.testing.assert_allclose(scaled, scale * q.reshape(9, 3, 32).sum(-1), rtol=1e-6)


@pytest.mark.parametrize("wide", [False, True], ids=["", "wide"])
@pytest.mark.parametrize("format", FORMATS)
def test_products(format: str, wide: bool) -> None:
    rng = np.random.default_rng(len(format))
    for rows, columns, n in SHAPES:
        p = linear.plan(format, rows, columns)
        if wide and p.wide_kernel is None:
            pytest.skip("no wide kernel for this format on this processor")
        tensor, w = weights(format, rows, columns, rng)
        packed = aligned(p.n_bytes)
        linear.pack(p, tensor, packed.ctypes.data, run)
        x = rng.standard_normal((n, columns)).astype(np.float32)
        if p.x_form == "q8":
            source, value = records(x, wide)
            ldx = 2 * columns
        else:
            source, value, ldx = x, x.astype(np.float64), 4 * columns
        padded = p.n_panels * 16
        y, residual = (aligned(n * padded * 4).view(np.float32).reshape(n, padded) for _ in range(2))
        bias = np.zeros(padded, np.float32)
        bias[:rows] = rng.standard_normal(rows)
        residual[:] = rng.standard_normal((n, padded))
        step, counter = np.zeros(32, np.int64), np.zeros(1, np.int64)
        step[1] = n
        args = linear.args(
            p, step=step.ctypes.data, counter=counter.ctypes.data, w=packed.ctypes.data, x=source.ctypes.data,
            ldx=ldx, y=y.ctypes.data, ldy=4 * padded, bias=bias.ctypes.data, residual=residual.ctypes.data,
            ranges=step.ctypes.data,
        )  # fmt: skip
        call(p.wide_kernel if wide and p.wide_kernel else p.kernel, args)
        expected = value @ w.T + bias[:rows] + residual[:, :rows]
        nmse = np.mean((y[:, :rows] - expected) ** 2) / np.mean(expected**2)
        assert nmse < (2e-5 if wide else 1e-7 if p.decoded else 1e-11), (rows, columns, n)


def test_dot_products_become_the_instructions_of_each_processor() -> None:
    """Cross-compiled: what this machine cannot run can at least be read."""
    k = kernel("linear", "linear", layout="q4_1", panels=1, tokens=2)
    x86 = host().triple if host().is_x86 else "x86_64-unknown-linux-gnu"
    assert "vpdpbusd" in assembly(k, Target(x86, "icelake-server", ""))
    assert "vpmaddubsw" in assembly(k, Target(x86, "haswell", ""))
    arm = assembly(k, Target("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+fp-armv8"))
    assert "sdot" in arm
    assert "usdot" in assembly(k, Target("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+i8mm"))
