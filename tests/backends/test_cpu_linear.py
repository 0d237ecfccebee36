"""Packing and matrix products of the CPU backend, alone: every format against decoded weights in float64."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from cpu_tools import Memory
from oracle import decoded, nmse, random_tensor

pytest.importorskip("llvmlite")

from pyllm.backends.cpu import linear
from pyllm.backends.cpu.arguments.elementwise import Quantize
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.layouts import GATED_SCRATCH
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.arguments import Place
from pyllm.jit.compiler import LIBRARY, Kernel, assembly
from pyllm.jit.target import Target, host
from pyllm.quant import formats

FORMATS = [name for name in formats.names() if not linear.plan(name, 16, 256).decoded] + ["Q8_1"]
"""Those with kernels, and one of those without."""
# rows, columns, tokens: rows that do not fill a panel, an odd number of panels, every tile of the kernel
SHAPES = [(48, 512, 1), (40, 256, 2), (16, 512, 3), (100, 768, 5), (64, 256, 13), (7, 256, 40)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """All kernels at once, on all processors."""
    plans = [linear.plan(format, 32, 256) for format in FORMATS]
    kernels = [(p.kernel, p.pack_kernel, p.wide_kernel, p.gated_kernel("silu")) for p in plans]
    LIBRARY.load(k for of_format in kernels for k in of_format if k)


def aligned(n: int) -> np.ndarray:
    b = np.zeros(n + 64, np.uint8)
    o = -b.ctypes.data % 64
    return b[o : o + n]


def run(address: int, args: int) -> None:
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address)(args, 0, 1)


def call(k: Kernel, args: np.ndarray) -> None:
    run(LIBRARY.load([k])[k], args.ctypes.data)


def records(x: np.ndarray, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """Activation records of x [tokens, columns] made by the kernel, and the values that they stand for."""
    n, columns = x.shape
    out = aligned(n * 2 * columns)
    rows, counter, wide_from = np.array([0, n], np.int64), np.zeros(1, np.int64), np.array([0 if wide else n], np.int64)
    args = Quantize(
        x=Memory(x), records=Place(out.ctypes.data, 2 * columns), columns=columns, rows=Memory(rows),
        wide_from=Memory(wide_from),
    )  # fmt: skip
    call(kernel("elementwise", "quantize"), args.block(0, counter.ctypes.data))
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


class Case:
    """A random product: packed weights, activations in the kernels' form, and what the result should be."""

    def __init__(
        self,
        p: linear.LinearPlan,
        n: int,
        wide: bool,
        rng: np.random.Generator,
        tensor: TensorInfo | None = None,
        x_std: float = 1,
    ) -> None:
        tensor = tensor or random_tensor("w", (p.rows, p.columns), p.format, std=0.05, seed=n)
        w = decoded(tensor).astype(np.float64)
        self.packed = aligned(p.n_bytes)
        linear.pack(p, tensor, self.packed.ctypes.data, run)
        x = (x_std * rng.standard_normal((n, p.columns))).astype(np.float32)
        self.x, self.value = records(x, wide) if p.x_form == "q8" else (x, x.astype(np.float64))
        self.ldx = p.columns * (2 if p.x_form == "q8" else 4)
        padded = p.n_panels * 16
        self.y, self.residual = (aligned(n * padded * 4).view(np.float32).reshape(n, padded) for _ in range(2))
        self.bias = np.zeros(padded, np.float32)
        self.bias[: p.rows] = rng.standard_normal(p.rows)
        self.residual[:] = rng.standard_normal((n, padded))
        self.step, self.counter = np.zeros(32, np.int64), np.zeros(1, np.int64)
        self.step[1] = n
        self.scratch = aligned(GATED_SCRATCH)
        self.product = self.value @ w.T + self.bias[: p.rows]
        self.expected = self.product + self.residual[:, : p.rows]

    def wide_args(self, p: linear.LinearPlan, y: np.ndarray, ldy: int, residual: bool) -> np.ndarray:
        args = p.wide_args(
            w=Memory(self.packed), x=Place(self.x.ctypes.data, self.ldx), y=Place(y.ctypes.data, ldy),
            bias=Memory(self.bias), residual=Memory(self.residual) if residual else None, rows=Memory(self.step),
            scratch=Place(self.scratch.ctypes.data, len(self.scratch)),
        )  # fmt: skip
        return args.block(self.step.ctypes.data, self.counter.ctypes.data)


def narrow(p: linear.LinearPlan, c: Case) -> None:
    """Run the case's product for few tokens: with bias and residual, to c.y."""
    args = p.args(
        w=Memory(c.packed), x=Place(c.x.ctypes.data, c.ldx), y=Memory(c.y), bias=Memory(c.bias),
        residual=Memory(c.residual), ranges=Memory(c.step),
    )  # fmt: skip
    call(p.kernel, args.block(c.step.ctypes.data, c.counter.ctypes.data))


@pytest.mark.parametrize(("format", "field", "codes"), [("MXFP4", "e", range(224)), ("NVFP4", "d", range(256))])
def test_scales_of_one_byte(format: str, field: str, codes: range) -> None:
    """A row for each code, subnormal scales among them: its product is as exact as any."""
    rng = np.random.default_rng(7)
    quant = formats.get(format)
    blocks = np.frombuffer(rng.bytes(len(codes) * 256 // quant.block_size * quant.block_bytes), quant.layout).copy()
    blocks = blocks.reshape(len(codes), -1)
    blocks[field] = np.array(codes).reshape(-1, *[1] * (blocks[field].ndim - 1))
    tensor = TensorInfo("w", (len(codes), 256), format, blocks.view(np.uint8).reshape(-1))
    p = linear.plan(format, len(codes), 256)
    c = Case(p, 3, False, rng, tensor, x_std=2.0**20)
    c.bias[:], c.residual[:] = 0, 0
    narrow(p, c)
    norms = np.linalg.norm(decoded(tensor).astype(np.float64), axis=1) * np.linalg.norm(c.value, axis=1)[:, None]
    assert (np.abs(c.y[:, : p.rows] - c.value @ decoded(tensor).astype(np.float64).T) <= 1e-6 * norms).all()


@pytest.mark.parametrize("format", FORMATS)
def test_products(format: str) -> None:
    rng = np.random.default_rng(len(format))
    for rows, columns, n in SHAPES:
        p = linear.plan(format, rows, columns)
        c = Case(p, n, False, rng)
        narrow(p, c)
        assert nmse(c.y[:, :rows], c.expected) < (1e-7 if p.decoded else 1e-11), (rows, columns, n)


@pytest.mark.parametrize("format", ["F16", "Q4_K", "Q6_K"])
def test_tokens_get_the_same_in_any_number(format: str) -> None:
    """Whole tiles and what is left of them, in one step and one by one: to the bit."""
    p = linear.plan(format, 48, 512)
    most = 24
    c = Case(p, most, False, np.random.default_rng(0))

    def rows(first: int, n: int) -> np.ndarray:
        c.y[:] = np.nan
        c.step[1], c.counter[0] = n, 0
        x = Place(c.x.ctypes.data + first * c.ldx, c.ldx)
        args = p.args(w=Memory(c.packed), x=x, y=Memory(c.y), ranges=Memory(c.step))
        call(p.kernel, args.block(c.step.ctypes.data, c.counter.ctypes.data))
        assert np.isnan(c.y[n:]).all()
        return c.y[:n].copy()

    alone = np.concatenate([rows(token, 1) for token in range(most)])
    for n in range(1, most + 1):
        assert np.array_equal(rows(0, n), alone[:n]), n


@pytest.mark.skipif(not linear.wide_supported(host()), reason="this processor has no AMX")
@pytest.mark.parametrize("format", [f for f in FORMATS if linear.plan(f, 16, 256).wide_kernel])
def test_wide_products(format: str) -> None:
    rng = np.random.default_rng(len(format))
    # Several stretches of columns, several items, a single panel, full and partial tiles of tokens.
    for rows, columns, n in [*SHAPES, (48, 2048, 33), (304, 1792, 17), (16, 256, 600)]:
        p = linear.plan(format, rows, columns)
        c = Case(p, n, True, rng)
        assert p.wide_kernel is not None
        call(p.wide_kernel, c.wide_args(p, c.y, c.y.strides[0], residual=True))
        assert nmse(c.y[:, :rows], c.expected) < 2e-5, (rows, columns, n)


@pytest.mark.skipif(not linear.wide_supported(host()), reason="this processor has no AMX")
@pytest.mark.parametrize("format", ["Q4_K", "IQ2_XS"])
def test_wide_products_of_gates(format: str) -> None:
    rng = np.random.default_rng(3)
    for rows, columns, n in [(64, 256, 1), (608, 2048, 50), (32, 512, 530)]:
        p = linear.plan(format, rows, columns)
        c, half = Case(p, n, True, rng), rows // 2
        k = p.gated_kernel("silu")
        assert k is not None
        out = aligned(2 * n * half)
        call(k, c.wide_args(p, out, 2 * half, residual=False))
        y = (out.view(np.uint16).reshape(n, half).astype(np.uint32) << 16).view(np.float32)
        gate, up = c.product[:, :half], c.product[:, half:]
        assert nmse(y, gate / (1 + np.exp(-gate)) * up) < 5e-5, (rows, columns, n)


def test_dot_products_become_the_instructions_of_each_processor() -> None:
    """Cross-compiled: what this machine cannot run can at least be read."""
    k = kernel("linear", "linear", layout="q4_1", panels=1, tokens=2)
    x86 = host().triple if host().is_x86 else "x86_64-unknown-linux-gnu"
    assert "vpdpbusd" in assembly(k, Target(x86, "icelake-server", ""))
    assert "vpmaddubsw" in assembly(k, Target(x86, "haswell", ""))
    arm = assembly(k, Target("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+fp-armv8"))
    assert "sdot" in arm
    assert "usdot" in assembly(k, Target("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+i8mm"))
    k = kernel("linear", "linear", layout="iq4_xs", panels=1, tokens=1)
    assert "vpermb" in assembly(k, Target(x86, "icelake-server", ""))
    assert "vpshufb" in assembly(k, Target(x86, "haswell", ""))


def test_bits_that_the_documentation_states() -> None:
    text = (Path(__file__).parents[2] / "docs/backends.md").read_text()
    stated = {m[0]: (float(m[1]), float(m[2])) for m in re.findall(r"\| (\w+) \| ([\d.]+) \| ([\d.]+) (?=\|)", text)}
    for name in formats.names():
        p, quant = linear.plan(name, 16, 256), formats.get(name)
        if not (p.decoded or p.layout.is_float):
            bits = 8 * quant.block_bytes / quant.block_size, p.layout.block_bytes / 2 / p.layout.block_columns
            assert stated.pop(name) == pytest.approx(bits, abs=6e-4), name
    assert not stated
