# ruff: noqa: E402 (what is imported needs mlx)
"""mlx's weights: exact packing, products of float32 and of halves, the Metal kernel's source against its twin."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
from oracle import nmse, random_tensor

mx = pytest.importorskip("mlx.core")

from pyllm.backends.mlx import matrices, metal, packing
from pyllm.backends.mlx.formats import CODED, LAYOUTS, Affine, Coded, Mode
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats


def packed(tensor: TensorInfo, half: bool) -> matrices.Matrix:
    return matrices.matrix(*packing.pack(packing.plan(tensor, half), tensor.data), half)


@pytest.mark.parametrize("fmt", formats.names())
def test_packed_weights_are_those_of_the_file(fmt: str) -> None:
    """Exactly, or as halves where that is what the matrix is decoded to. (Q8_K has scales of 24 bits.)"""
    tensor = random_tensor("w", (37, 512), fmt, std=0.05)
    for half in (False, fmt in CODED):
        m, wanted = packed(tensor, half), oracle.decoded(tensor)
        got = m.decode(m.arrays)
        assert m.n_bytes == packing.plan(tensor, half).n_bytes
        if got.dtype == mx.float16:
            np.testing.assert_array_equal(np.asarray(got), wanted.astype(np.float16))
        else:
            np.testing.assert_allclose(np.asarray(got), wanted, rtol=0, atol=2.0**-25 if fmt == "Q8_K" else 0)


@pytest.mark.parametrize("fmt", formats.names())
def test_products_of_halves(fmt: str) -> None:
    """As on a GPU, with numbers in x that no half holds. mlx's CPU build also sums in halves: hence the limit."""
    rng = np.random.default_rng(0)
    tensor, experts = random_tensor("w", (37, 256), fmt, std=0.05), random_tensor("e", (3, 9, 256), fmt, std=0.05)
    x = (rng.standard_normal((5, 256)) * [[1e7], [1], [1e-7], [3e4], [0]]).astype(np.float32)
    got, wanted = np.asarray(packed(tensor, True).product(mx.array(x))), x @ oracle.decoded(tensor).T
    assert (got[4] == 0).all()
    assert max(nmse(g, w) for g, w in zip(got[:4], wanted[:4], strict=True)) < 1e-4
    ids = np.array([[0, 2], [1, 0], [2, 1], [1, 1], [0, 0]], np.int32)
    got = np.asarray(packed(experts, True).experts(mx.array(x[:, None]), mx.array(ids)))
    wanted = np.einsum("tc,tkrc->tkr", x, oracle.decoded(experts)[ids])
    assert max(nmse(g, w) for g, w in zip(got[:4], wanted[:4], strict=True)) < 1e-4


def test_many_slots_are_sorted_by_expert() -> None:
    rng = np.random.default_rng(1)
    for fmt, per_token, half in (("Q4_0", 1, False), ("Q4_0", 2, False), ("F32", 2, False), ("Q6_K", 1, True)):
        tensor = random_tensor("e", (6, 9, 256), fmt, std=0.05)
        x = rng.standard_normal((40, per_token, 256)).astype(np.float32)
        ids = rng.integers(0, 6, (40, 2)).astype(np.int32)
        got = np.asarray(packed(tensor, half).experts(mx.array(x), mx.array(ids)))
        wanted = np.einsum("tkc,tkrc->tkr", np.broadcast_to(x, (40, 2, 256)), oracle.decoded(tensor)[ids])
        assert nmse(got, wanted) < (1e-5 if half else 1e-11)


def test_large_matrices_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_DECODED", 10 * 256)
    tensor = random_tensor("w", (37, 256), "Q3_K", std=0.05)
    x = np.random.default_rng(4).standard_normal((20, 256)).astype(np.float32)
    got = np.asarray(packed(tensor, True).product(mx.array(x)))
    assert nmse(got, x @ oracle.decoded(tensor).T) < 1e-5


def test_rows_are_split_among_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Metal kernel, for which its twin stands here."""
    sizes = []

    def product(layout: Coded, arrays: dict[str, mx.array], x: mx.array, *_: object) -> mx.array:
        sizes.append(len(x))
        return x.astype(mx.float32) @ matrices._decoder(layout)(arrays).astype(mx.float32).T

    monkeypatch.setattr(matrices, "kernel_works", lambda _: True)
    monkeypatch.setattr(metal, "product", product)
    tensor = random_tensor("w", (37, 256), "Q6_K", std=0.05)
    x = np.random.default_rng(5).standard_normal((33, 256)).astype(np.float32)
    m = packed(tensor, True)
    for n in (1, 8, 21, 32, 33):
        assert nmse(np.asarray(m.product(mx.array(x[:n]))), x[:n] @ oracle.decoded(tensor).T) < 1e-5
    assert sizes == [1, 8, 8, 8, 5, 8, 8, 8, 8]


@pytest.mark.parametrize("fmt", CODED)
def test_a_kernel_is_tried_before_it_is_used(
    fmt: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layout = CODED[fmt]
    decode = matrices._decoder(layout)
    assert matrices.kernel_works.__wrapped__(layout) == metal.available()
    monkeypatch.setattr(metal, "available", lambda: True)
    for gives, works in ((1.0, True), (1.1, False), (None, False)):

        def product(_: Coded, arrays: dict[str, mx.array], x: mx.array, *__: object, gives: float = gives) -> mx.array:
            if gives is None:
                raise RuntimeError("Unable to build metal library from source")
            return x.astype(mx.float32) @ decode(arrays).astype(mx.float32).T * gives

        monkeypatch.setattr(metal, "product", product)
        caplog.clear()
        assert matrices.kernel_works.__wrapped__(layout) == works
        assert bool(caplog.records) != works


def test_scales_that_no_half_holds_are_kept_wide() -> None:
    tensor = random_tensor("w", (4, 64), "Q8_0", std=0.05)
    blocks = tensor.data.copy().view(formats.get("Q8_0").layout)
    blocks["d"] = 600.0  # its bias is -76800
    planned = packing.plan(tensor, True)
    changed, arrays = packing.pack(planned, blocks.view(np.uint8), n_threads=2)
    assert (planned.dtype, changed.dtype, arrays["biases"].dtype) == ("float16", "float32", np.float32)


def test_columns_that_are_no_groups_are_floats() -> None:
    assert packing.plan(random_tensor("w", (4, 32), "Q8_0", std=1.0), False).layout is not None
    data = np.zeros(1, np.uint8)
    assert packing.plan(TensorInfo("w", (4, 64), "Q1_0", data), False).layout is None


def test_bytes_of_another_size_are_refused() -> None:
    tensor = random_tensor("w", (4, 64), "Q8_0", std=1.0)
    with pytest.raises(BackendError, match="Q8_0"):
        packing.pack(packing.plan(tensor, False), tensor.data[:-1])


def test_documented_formats() -> None:
    """docs/backends.md says how each format is kept, in how many bits, and where scales of halves round."""
    text = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")
    lines = text.partition("## Formats on mlx")[2].partition("\n## ")[0].splitlines()
    rows = {cells[0]: cells[1:] for line in lines if len(cells := [c.strip() for c in line.strip("|").split("|")]) == 5}
    for fmt, layout in LAYOUTS.items():
        how, halves, floats, error = rows[fmt]
        kind = layout.name if isinstance(layout, Mode) else type(layout).__name__.lower()
        assert how.startswith(f"{kind}, {layout.bits} bit")
        tensor = random_tensor("w", (64, 1024), fmt, std=0.05)
        for half, bits in ((True, halves), (False, floats)):
            assert float(bits) == pytest.approx(8 * packing.plan(tensor, half).n_bytes / tensor.n_elements, abs=0.001)
        assert _rounding(tensor) == pytest.approx(float(error), rel=0.6) if error else _rounding(tensor) == 0


def _rounding(tensor: TensorInfo) -> float:
    """NMSE of weights whose scales are halves."""
    planned, arrays = packing.pack(packing.plan(tensor, True), tensor.data)
    if not isinstance(planned.layout, Affine):
        return 0.0
    arrays |= {name: arrays[name].astype(np.float32) for name in ("scales", "biases")}
    m = matrices.matrix(replace(planned, dtype="float32"), arrays, False)
    return nmse(np.asarray(m.decode(m.arrays)), oracle.decoded(tensor))


# --- the Metal kernel


SHIM = """
#define device
#define thread
#define threadgroup static  // what lanes of a group share: computed one after the other, they do
#define threadgroup_barrier(flags)
#include <cstdint>
typedef unsigned int uint; typedef unsigned short ushort; typedef unsigned long ulong; typedef _Float16 half;
static struct { uint x, y, z; } threadgroup_position_in_grid;
static uint thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
static float totals[256]; static int call; static bool adding;
// every lane calls it as often: once for what lanes share, once to add up, then the first lane again for the sums
static float simd_sum(float v) { if (adding) totals[call] += v; return totals[call++]; }
"""
ENTRY = """
extern "C" void {name}(const {x}* x, const ushort* codes, const {scales}* scales, const half* halves, const uint* ids,
                       const float* values, float* out, int n_groups, int slots) {{
    for (int at = 0; at < n_groups * 2 * slots; at++) {{
        threadgroup_position_in_grid = {{uint(at / 2 % n_groups), 0, uint(at / 2 / n_groups)}};
        simdgroup_index_in_threadgroup = at % 2;
        for (float& t : totals) t = 0;
        for (int turn = 0; turn < 65; turn++) {{
            call = 0; adding = turn >= 32 && turn < 64; thread_index_in_simdgroup = turn % 32;
            {name}_body::run(x, codes, scales, halves, ids, values, out);
        }}
    }}
}}
"""
CASES = [(fmt, m, share) for fmt in CODED for m, share in ((1, 1), (3, 1), (1, 2))]
"""Format, rows of x, slots that share one: with 2, matrices are named by ids."""


def _source(name: str, layout: Coded, m: int, share: int) -> str:
    scales = {"i8": "int8_t", "u4": "uint8_t", "none": "half"}[layout.scales]
    constants = metal.constants(layout, 13, 512, m, share)
    lines = "".join(f"static constexpr int {k} = {int(v)};\n" for k, v in constants.items())
    return f"""
namespace {name}_body {{
#undef FACTOR
{metal.define(layout)}
{lines}
static void run(const float* x, const ushort* codes, const {scales}* scales, const half* halves, const uint* ids,
                const float* values, float* out) {{ {metal.SOURCE} }}
}}
{ENTRY.format(name=name, x="float", scales=scales)}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not (compiler := shutil.which("g++")):
        pytest.skip("g++ is not here to compile the Metal kernel as C++")
    folder: Path = tmp_path_factory.mktemp("metal")
    parts = (_source(f"{fmt}_{m}_{share}", CODED[fmt], m, share) for fmt, m, share in CASES)
    (folder / "kernel.cpp").write_text(SHIM + "".join(parts))
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "kernel.cpp", "-o", "kernel.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode and "_Float16" in done.stderr:
        pytest.skip("this g++ has no _Float16")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernel.so"))


@pytest.mark.parametrize(("fmt", "m", "share"), CASES)
def test_metal_kernel_as_cpp(kernels: ctypes.CDLL, fmt: str, m: int, share: int) -> None:
    rng = np.random.default_rng(2)
    tensor = random_tensor("e", (3, 13, 512), fmt, std=0.05)
    _, arrays = packing.pack(packing.plan(tensor, True), tensor.data)
    ids = np.array([2, 0, 1, 1] if share == 2 else [0], np.uint32)
    x = rng.standard_normal((len(ids) // share if share == 2 else m, 512)).astype(np.float32)
    out = np.full((len(ids) * m, 13), np.nan, np.float32)
    values = np.asarray(metal.table(CODED[fmt]))
    inputs = [x, arrays["codes"], arrays.get("scales", arrays["halves"]), arrays["halves"], ids, values, out]
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in inputs]
    kernels[f"{fmt}_{m}_{share}"](*pointers, metal.n_threadgroups(13), len(ids))
    weights = oracle.decoded(tensor)
    wanted = [weights[e] @ x[i // 2] for i, e in enumerate(ids)] if share == 2 else x @ weights[0].T
    assert nmse(out, np.array(wanted)) < 1e-11


@pytest.mark.skipif(not metal.available(), reason="there is no Metal here")
@pytest.mark.parametrize("fmt", CODED)
def test_metal_kernel(fmt: str) -> None:
    rng = np.random.default_rng(3)
    m = packed(random_tensor("e", (3, 13, 512), fmt, std=0.05), True)
    assert isinstance(m, matrices.CodedMatrix)
    layout, weights = CODED[fmt], np.asarray(m.decode(m.arrays).astype(mx.float32))
    x, ids = mx.array(rng.standard_normal((2, 512)).astype(np.float32)), mx.array([2, 0, 1, 1])
    got = np.asarray(metal.product(layout, m.arrays, x, 13, ids, 2))
    assert nmse(got, np.array([weights[e] @ np.asarray(x)[i // 2] for i, e in enumerate([2, 0, 1, 1])])) < 1e-6
