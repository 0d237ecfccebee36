"""Packing, matrix products and tables of the CUDA backend on the emulator: every format against decoded weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cuda_tools
import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import decoded, nmse, random_tensor

from pyllm.backends.cuda import elementwise, linear, matrices
from pyllm.backends.cuda.experts import Routing
from pyllm.backends.cuda.launch import Q8, TOKENS, Count, Forms, Half, Launch, StepArrays, StepShape, View
from pyllm.backends.cuda.launcher import Launcher
from pyllm.backends.layouts import LAYOUTS, Layout
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Value
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.quant import formats

F32 = NDArray[np.float32]
OPTIONS = ExecutionOptions(n_pages=4, page_size=16, max_tokens=256, max_seqs=2, max_rows=4)
QUANTIZED = [name for name in formats.names() if name.lower() in LAYOUTS and not LAYOUTS[name.lower()].is_float]
KINDS = ["Q1_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q6_K", "MXFP4", "NVFP4", "IQ1_S", "IQ2_XS", "Q8_1", "BF16"]
"""Every way in which integers and scales lie; all formats go through products in test_ops.py."""
SOME = ["Q4_K", "Q6_K", "IQ2_XS", "F16", "F32"]
"""Formats of different kinds, for what all formats share."""


@pytest.fixture(scope="module")
def device() -> Launcher:
    return cuda_tools.emulator()


@dataclass
class Bench:
    """Buffers on a device, and the launches of one step run on them."""

    device: Launcher
    n: int
    arrays: StepArrays = field(init=False)
    placed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arrays = StepArrays.of(OPTIONS)
        self.put(self.arrays.step, np.array([self.n, 0, 1, 0], np.int32))

    def put(self, buffer: Buffer, array: NDArray[Any] | None = None) -> Buffer:
        """Give a buffer memory, and contents: zeros where it is to be kept, else NaN bytes."""
        buffer.address = self.device.allocate(max(1, buffer.n_bytes))
        self.placed.append(buffer.address)
        if array is not None:
            assert array.nbytes <= buffer.n_bytes
            self.device.upload(buffer.address, np.ascontiguousarray(array), wait=True)
        elif buffer.keep:
            self.device.zero(buffer.address, buffer.n_bytes)
        return buffer

    def get(self, buffer: Buffer, dtype: str, *shape: int) -> NDArray[Any]:
        out = np.zeros(shape, dtype)
        self.device.download(out, buffer.address, wait=True)
        return out

    def view(self, x: F32, extra: int = 0) -> View:
        """Rows of x; what lies behind their width is NaN."""
        n, width = x.shape
        view = View.room(n + extra, width)
        rows = np.full((n + extra, view.ld), np.nan, np.float32)
        rows[:n, :width] = x
        self.put(view.buffer, rows)
        return view

    def run(self, launches: Sequence[Launch], shape: StepShape | None = None) -> int:
        """Run those that the step needs; how many these are."""
        shape = shape or StepShape(self.n, 0, 1, 0, self.n, self.n)
        needed = [launch for launch in launches if launch.when(shape)]
        for launch in needed:
            (kernel,) = self.device.kernels(launch.source, launch.defines, [launch.name])
            self.device.launch(kernel, launch.grid(shape), launch.block, launch.args(shape), launch.shared)
        return len(needed)

    def forms(self, x: F32, count: Count = TOKENS, few: int = 8) -> tuple[Forms, F32]:
        """x in all its forms, and the numbers that the one for a step of so many rows stands for."""
        n, width = x.shape
        view = self.view(x)
        q8, half = Q8.room(n, width), Half.room(n, width)
        for b in (*q8.buffers, *half.buffers):
            self.put(b)
        forms = Forms(view, q8, half, few)
        self.run(elementwise.convert(self.arrays, count, view, Forms(None, q8, half, few), width))
        if n <= few:
            values = self.get(q8.values, "int8", n, q8.ld).astype(np.float32)
            scales = self.get(q8.scales, "float32", n, q8.ld // 32)
            return forms, (values * scales.repeat(32, axis=1))[:, :width]
        values = self.get(half.values, "float16", n, half.ld).astype(np.float32)
        return forms, (values * self.get(half.factors, "float32", n)[:, None])[:, :width]

    def matrix(self, tensors: Sequence[TensorInfo], n_matrices: int = 1) -> tuple[matrices.MatrixPlan, Buffer]:
        plan = linear.plan(tensors[0].format, sum(t.shape[-2] for t in tensors), tensors[0].shape[-1], n_matrices)
        place = self.put(Buffer(plan.n_bytes))
        linear.pack(self.device, plan, tensors, place.address)
        return plan, place

    def parts(self) -> linear.Parts:
        parts = linear.Parts.of(self.device.n_sm, self.device.max_shared)
        self.put(parts.sums)
        self.put(parts.arrived)
        return parts

    def close(self) -> None:
        for address in self.placed:
            self.device.release(address)


def bits(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., n] -> [..., 8 n], lowest first."""
    return np.unpackbits(data, axis=-1, bitorder="little")


def unpack(spec: Layout, n: int, planes: list[NDArray[np.uint8]]) -> F32:
    """Weights [groups, 32] out of planes, as kernels/unpack.cuh describes them."""
    high = {3: 1, 5: 1, 6: 2}.get(spec.bits, 0)
    low = spec.bits - high
    codes = np.zeros((n, 32), np.int64)
    for plane, width, shift in ((planes[0], low, 0), (planes[1], high, low)):
        if not width:
            continue
        stored = bits(plane[: 4 * width * n].reshape(n, width, 4))  # [groups, words, bits]
        for column in range(32):
            quad, octet = column // 4, column // 8
            if not spec.values:
                word, at = quad * width // 8, quad * width % 8 + 8 * (column % 4)
            elif width == 4:
                word, at = octet, 4 * (column % 8)
            else:
                word, at = (octet // 2, 2 * (octet % 2)) if width == 2 else (0, octet)
                at += 4 * (column % 8)
            for b in range(width):
                codes[:, column] |= stored[:, word, at + b].astype(np.int64) << (b + shift)
    if spec.values:
        integers = np.array(spec.values)[codes]
    else:
        integers = codes.astype(np.int8).astype(np.int64) if spec.bits == 8 else spec.step * codes - spec.offset
    halves = 32 // spec.scale_columns
    n_bytes, n_floats = matrices.scale_bytes(spec), matrices.float_bytes(spec)
    floats = planes[3][: n_floats * n // spec.groups_per_block].view(np.uint16).reshape(-1, max(1, n_floats // 2))
    as_float = (floats.astype(np.uint32) << 16).view(np.float32) if spec.scales == "bf16" else floats.view(np.float16)
    d = as_float.astype(np.float32).repeat(spec.groups_per_block, axis=0)
    small = planes[2][: n_bytes * n].reshape(n, n_bytes)
    minima = np.zeros((n, halves), np.float32)
    if spec.scales == "i8":
        scales = d[:, :1] * small[:, :halves].view(np.int8)
        if spec.minima:
            minima = d[:, 1:] * small[:, halves:]
    elif spec.scales == "u4":
        scales, minima = d[:, :1] * (small & 15), d[:, 1:] * (small >> 4)
    elif spec.scales == "e4m3":
        scales = (small.astype(np.uint16) << 7).view(np.float16).astype(np.float32)
    else:
        scales = d[:, :1]
        if spec.minima:
            minima = d[:, 1:]
    width = 32 // scales.shape[1]
    scaled = scales.repeat(width, axis=1) * integers + minima.repeat(32 // minima.shape[1], axis=1)
    return np.asarray(np.float32(spec.factor) * scaled, np.float32)


@pytest.mark.parametrize("fmt", QUANTIZED)
def test_packing_is_exact(device: Launcher, fmt: str) -> None:
    """Two tensors below each other, two matrices of each."""
    tensors = [random_tensor(name, (2, rows, 512), fmt, std=0.05) for name, rows in (("a", 3), ("b", 2))]
    bench = Bench(device, 1)
    plan, place = bench.matrix(tensors, 2)
    starts = np.array(plan.planes) * 256
    data = bench.get(place, "uint8", 2, int(starts[4]))
    wanted = np.concatenate([decoded(t) for t in tensors], axis=1)
    for m in range(2):
        planes = [data[m, a:b] for a, b in pairwise(starts)]
        got = unpack(plan.layout, 5 * 16, planes).reshape(5, 512)
        np.testing.assert_allclose(got, wanted[m], rtol=1e-6, atol=1e-7 * np.abs(wanted).max())
        assert np.abs(wanted[m]).max() <= data[m, :4].view(np.float32)[0] < 256 * np.abs(wanted[m]).max()
    bench.close()


def check_product(
    device: Launcher, fmt: str, rows: int, columns: int, n: int, limit: float, *, bound: int | None = None
) -> None:
    """One product with bias and residual; `bound`: rows that the launches are made for."""
    rng = np.random.default_rng(rows + n)
    bench = Bench(device, n)
    tensor = random_tensor("w", (rows, columns), fmt, std=columns**-0.5)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    bias, residual = rng.standard_normal(rows).astype(np.float32), rng.standard_normal((n, rows)).astype(np.float32)
    plan, place = bench.matrix([tensor])
    forms, value = bench.forms(x)
    if (plan.few_form if n <= 8 else plan.many_form) == "f32":
        value = x
    y = bench.view(np.zeros((n, rows), np.float32))
    launches = linear.product(
        bench.arrays, TOKENS, plan, place, forms, y, bench.parts(), bias=bench.put(Buffer(bias.nbytes), bias),
        residual=bench.view(residual),
    )  # fmt: skip
    shape = StepShape(bound or n, 0, 1, 0, n, n)
    assert bench.run(launches, shape) == 1
    got = bench.get(y.buffer, "float32", n, y.ld)
    wanted = value.astype(np.float64) @ decoded(tensor).astype(np.float64).T + bias + residual
    assert nmse(got[:, :rows], wanted.astype(np.float32)) < limit
    assert not got[:, rows:].any() or np.isnan(got[:, rows:]).all()
    bench.close()


@pytest.mark.parametrize("fmt", KINDS)
def test_few_rows(device: Launcher, fmt: str) -> None:
    limit = 1e-7 if linear.plan(fmt, 1, 256).decoded else 1e-12
    check_product(device, fmt, 37, 512, 1, limit)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("fmt", SOME)
def test_any_few_rows(device: Launcher, fmt: str, n: int) -> None:
    check_product(device, fmt, 19, 2304, n, 1e-11, bound=8 if n == 5 else None)


@pytest.mark.parametrize("fmt", KINDS)
def test_many_rows(device: Launcher, fmt: str) -> None:
    check_product(device, fmt, 37, 768, 11, 1e-12 if fmt == "F32" else 3e-7)


@pytest.mark.parametrize(("n", "rows", "columns"), [(9, 130, 64), (25, 128, 96), (61, 150, 2048), (70, 129, 160)])
@pytest.mark.parametrize("fmt", ["Q4_0", "Q8_0", "F16", "F32"])
def test_tiles(device: Launcher, fmt: str, n: int, rows: int, columns: int) -> None:
    """Every shape of tile, columns that end within one, columns in parts, rows and tokens that do not fill theirs."""
    check_product(device, fmt, rows, columns, n, 1e-12 if fmt == "F32" else 3e-7)


def test_odd_columns(device: Launcher) -> None:
    for n in (3, 12):
        for fmt in ("F32", "F16"):
            check_product(device, fmt, 6, 75, n, 1e-7)


def routing_of(bench: Bench, chosen: NDArray[np.int32], n_experts: int) -> Routing:
    """Routing [tokens, used] as kernels would leave it, slots of an expert in falling order."""
    n, used = chosen.shape
    v = Value(0, 0)
    op = MixtureOfExperts(
        out=v, layer=0, x=v, router=v, gate="", up="", down="", n_experts=n_experts, n_used=used, n_ff=0
    )
    r = Routing.room(op, TOKENS, n)
    slots = np.argsort(chosen.reshape(-1)[::-1], kind="stable").astype(np.int32)
    offsets = np.searchsorted(np.sort(chosen.reshape(-1)), np.arange(n_experts + 1)).astype(np.int32)
    bench.put(r.chosen, chosen)
    bench.put(r.n_slots, np.array([n * used], np.int32))
    bench.put(r.offsets, offsets)
    bench.put(r.slots, np.int32(n * used - 1) - slots)
    return r


@pytest.mark.parametrize("n", [3, 9, 40])
@pytest.mark.parametrize("per_slot", [False, True])
@pytest.mark.parametrize("fmt", ["Q4_K", "F16", "F32"])
def test_experts(device: Launcher, fmt: str, per_slot: bool, n: int) -> None:
    """Each slot by its expert's matrix, with scales and biases; an expert that nobody chose, one that all did."""
    rng = np.random.default_rng(n)
    n_experts, used, rows, columns = 5, 2, 37, 256
    bench = Bench(device, n)
    tensor = random_tensor("w", (n_experts, rows, columns), fmt, std=columns**-0.5)
    scale = rng.uniform(0.5, 2, n_experts).astype(np.float32)
    bias = rng.standard_normal((n_experts, rows)).astype(np.float32)
    chosen = np.stack([np.full(n, 2), rng.choice([0, 1, 4], n)], axis=1).astype(np.int32)
    plan, place = bench.matrix([tensor], n_experts)
    r = routing_of(bench, chosen, n_experts)
    count, n_slots = r.slot_count, n * used
    x = rng.standard_normal((n_slots if per_slot else n, columns)).astype(np.float32)
    forms, value = bench.forms(x, count if per_slot else TOKENS, count.few if per_slot else TOKENS.few)
    if (plan.few_form if n <= 8 else plan.many_form) == "f32":
        value = x
    y = bench.view(np.zeros((n_slots, rows), np.float32))
    launches = linear.product(
        bench.arrays, count, plan, place, forms, y, bench.parts(), routing=r,
        scale=bench.put(Buffer(scale.nbytes), scale), bias=bench.put(Buffer(bias.nbytes), bias),
    )  # fmt: skip
    assert bench.run(launches) == 1
    got = bench.get(y.buffer, "float32", n_slots, y.ld)[:, :rows]
    w, experts = decoded(tensor).astype(np.float64), chosen.reshape(-1)
    rows_of_x = value if per_slot else value.repeat(used, axis=0)
    wanted = np.einsum("src,sc->sr", w[experts], rows_of_x) * scale[experts, None] + bias[experts]
    assert nmse(got, wanted) < 3e-7
    bench.close()


@pytest.mark.parametrize("fmt", ["Q6_K", "IQ1_M", "IQ3_XXS", "Q8_1", "BF16"])
def test_tables(device: Launcher, fmt: str) -> None:
    bench = Bench(device, 3)
    tensor = random_tensor("w", (7, 512), fmt, std=1.0)
    bench.put(bench.arrays.tokens, np.array([6, 0, 6], np.int32))
    table = bench.put(Buffer(linear.table_bytes(tensor)))
    linear.load_table(device, tensor, table.address)
    y = bench.view(np.zeros((3, 512), np.float32))
    bench.run([linear.embed(bench.arrays, tensor, table, y, 1.5)])
    got = bench.get(y.buffer, "float32", 3, y.ld)
    np.testing.assert_allclose(got, 1.5 * decoded(tensor)[[6, 0, 6]], rtol=1e-6, atol=1e-6)
    bench.close()


def test_halves_do_not_overflow(device: Launcher) -> None:
    """Activations and weights far outside of what halves hold."""
    rng = np.random.default_rng(5)
    bench = Bench(device, 12)
    tensor = random_tensor("w", (20, 64), "BF16", std=1e-12)
    x = (rng.standard_normal((12, 64)) * 10.0 ** rng.integers(-12, 12, (12, 1))).astype(np.float32)
    x[3] = 0
    plan, place = bench.matrix([tensor])
    forms, value = bench.forms(x)
    assert (np.abs(value - x) <= 2.0**-11 * np.abs(x) + 2.0**-38 * np.abs(x).max(axis=1, keepdims=True)).all()
    y = bench.view(np.zeros((12, 20), np.float32))
    bench.run(linear.product(bench.arrays, TOKENS, plan, place, forms, y, bench.parts()))
    got = bench.get(y.buffer, "float32", 12, y.ld)[:, :20]
    wanted = x.astype(np.float64) @ decoded(tensor).astype(np.float64).T
    for i in range(12):
        assert not got[i].any() if i == 3 else nmse(got[i], wanted[i].astype(np.float32)) < 1e-6
    bench.close()
