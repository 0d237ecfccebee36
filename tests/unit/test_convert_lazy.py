"""Tensors computed in pieces: any piece is that of the whole, and the whole is what numpy computes."""

from __future__ import annotations

import itertools
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.lazy import Lazy
from pyllm_convert.quantized import mxfp4, without_scales

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
"""Magnitudes of E2M1, OCP Microscaling Formats specification, table 5."""


def stored(name: str, values: NDArray[Any], dtype: str | None = None) -> Lazy:
    """A tensor as a checkpoint has it."""
    kinds = {"f4": "F32", "f2": "F16", "u1": "U8", "i1": "I8", "f8": "F64", "u2": "BF16"}
    columns = values.shape[-1] if values.ndim else 1
    flat = values.reshape(-1, columns)
    return Lazy(name, values.shape, dtype or kinds[values.dtype.str[1:]], lambda a, b: flat[a:b])


def whole(t: Lazy) -> NDArray[Any]:
    return t.rows(0, t.n_rows).reshape(t.shape)


def check_pieces(t: Lazy, cuts: list[int]) -> None:
    """Rows read in any pieces are those of the whole."""
    everything = t.rows(0, t.n_rows)
    bounds = sorted({0, t.n_rows, *(c % (t.n_rows + 1) for c in cuts)})
    pieces = [t.rows(a, b) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), everything)
    assert t.rows(0, 0).shape == (0, everything.shape[1])


cuts = st.lists(st.integers(0, 1000), max_size=5)


@given(n_heads=st.integers(1, 4), half=st.integers(1, 4), cuts=cuts)
def test_halves_become_neighbours(n_heads: int, half: int, cuts: list[int]) -> None:
    x = np.arange(n_heads * 2 * half * 3, dtype=np.float32).reshape(-1, 3)
    t = lazy.permuted_heads(stored("q", x), n_heads)
    got = whole(t).reshape(n_heads, 2 * half, 3)
    source = x.reshape(n_heads, 2 * half, 3)
    for j in range(half):
        assert np.array_equal(got[:, 2 * j], source[:, j])
        assert np.array_equal(got[:, 2 * j + 1], source[:, half + j])
    check_pieces(t, cuts)
    bias = lazy.permuted_heads(stored("b", x[:, 0].copy()), n_heads)
    assert np.array_equal(whole(bias), whole(t)[:, 0])


@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)), step=st.integers(1, 3), cuts=cuts)
def test_slices_stacks_and_transposes(shape: tuple[int, int, int], step: int, cuts: list[int]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for t, wanted in (
        (lazy.slice_rows(stored("x", x), 0, shape[1], step), x[:, ::step]),
        (lazy.slice_columns(stored("x", x), 0, None, step), x[..., ::step]),
        (lazy.transposed(stored("x", x)), x.swapaxes(1, 2)),
        (lazy.stack([stored(str(i), part) for i, part in enumerate(x)]), x),
        (lazy.plus(stored("x", x), 1.0), x + 1),
    ):
        assert t.shape == wanted.shape
        assert np.array_equal(whole(t), wanted)
        check_pieces(t, cuts)


def test_parts_of_a_stack_are_alike() -> None:
    with pytest.raises(ModelError, match="belong together"):
        lazy.stack([stored("a", np.zeros((2, 3), np.float32)), stored("b", np.zeros((3, 2), np.float32))])


def test_float8_values() -> None:
    """Some of each kind: OCP 8-bit Floating Point Specification, table 2."""
    e4m3 = lazy.as_float32(np.array([0, 0x80, 0x01, 0x07, 0x08, 0x38, 0x7E, 0xFE, 0x7F], np.uint8), "F8_E4M3")
    assert e4m3.tolist()[:8] == [0, 0, 2.0**-9, 7 * 2.0**-9, 2.0**-6, 1, 448, -448]
    assert np.isnan(e4m3[8])
    e5m2 = lazy.as_float32(np.array([0x01, 0x04, 0x3C, 0x7B, 0x7C, 0xFC], np.uint8), "F8_E5M2")
    assert e5m2.tolist() == [2.0**-16, 2.0**-14, 1, 57344, np.inf, -np.inf]


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kind=st.sampled_from(["one", "rows", "blocks", "vector"]),
    stacked=st.booleans(),
    cuts=cuts,
)
def test_scales(shape: tuple[int, int, int], block: tuple[int, int], kind: str, stacked: bool, cuts: list[int]) -> None:
    random = np.random.default_rng(sum(shape))
    n, r, c = shape
    lead = (n,) if stacked else ()
    codes = random.integers(0, 127, (*lead, r, c), dtype=np.uint8)
    grid = {
        "one": (),
        "vector": (r,),
        "rows": (*lead, r, 1),
        "blocks": (*lead, -(-r // block[0]), -(-c // block[1])),
    }[kind]
    if kind == "vector" and (stacked or r == 1):
        return
    scale = random.uniform(0.5, 2, grid).astype(np.float32)
    if kind == "blocks":
        full = scale.repeat(block[0], -2)[..., :r, :].repeat(block[1], -1)[..., :c]
    else:
        full = scale[:, None] if kind == "vector" else scale
    tensors = {
        "x.weight": stored("x.weight", codes, "F8_E4M3"),
        "x.weight_scale_inv": stored("x.weight_scale_inv", scale),
        "x.input_scale": stored("x.input_scale", np.ones(1, np.float32)),
    }
    out = without_scales(tensors, {"quant_method": "fp8", "weight_block_size": list(block)})
    assert list(out) == ["x.weight"]
    assert np.array_equal(whole(out["x.weight"]), lazy.E4M3[codes] * full)
    check_pieces(out["x.weight"], cuts)


@pytest.mark.parametrize(
    ("shape", "config", "said"),
    [
        ((3, 1), {}, "do not fit"),
        ((2, 2, 2), {}, "do not fit"),
        ((2, 2), {"weight_block_size": [0, 4]}, "two counts"),
        ((2, 2), {"weight_block_size": "128"}, "two counts"),
    ],
)
def test_scales_that_do_not_fit(shape: tuple[int, ...], config: dict[str, Any], said: str) -> None:
    tensors = {
        "x.weight": stored("x.weight", np.zeros((8, 8), np.uint8), "F8_E4M3"),
        "x.weight_scale": stored("x.weight_scale", np.ones(shape, np.float32)),
    }
    with pytest.raises(ModelError, match=said):
        without_scales(tensors, config)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ],
)
def test_other_quantizations_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="cannot be converted; take the original"):
        without_scales({}, config)


def test_mxfp4_is_repacked_exactly() -> None:
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = random.integers(100, 150, (2, 6, 3), dtype=np.uint8)
    fused = mxfp4("x", stored("b", blocks), stored("s", scales))
    codes = np.stack((blocks & 15, blocks >> 4), -1).reshape(2, 6, 3, 32)
    wanted = np.take(FP4, codes & 7) * np.where(codes & 8, -1, 1) * 2.0 ** (scales[..., None].astype(int) - 127)
    got = gguf.quants.dequantize(fused.rows(0, 12), gguf.GGMLQuantizationType.MXFP4)
    assert fused.shape == (2, 6, 96)
    assert np.array_equal(got.reshape(2, 6, 96), wanted.reshape(2, 6, 96))
    check_pieces(fused, [1, 5, 8])
    up = mxfp4("x", stored("b", blocks), stored("s", scales), 1, 2)
    check_pieces(up, [1, 5])
    assert up.shape == (2, 3, 96)
    assert np.array_equal(up.rows(0, 6), fused.rows(0, 12)[1::2])
