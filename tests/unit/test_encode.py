"""Encoders: errors no larger than llama.cpp's, bounds on any weights, odd values, sources, threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from encode_cases import importances, matrices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.errors import FormatError
from pyllm.jit.compiler import LIBRARY
from pyllm.quant import formats
from pyllm.quant.encoder import Encoder, encoding_kernel
from pyllm.quant.formats import QuantFormat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "encode.json").read_text())
NAMES = list(GOLDEN)
FLOATS = ["F32", "F16", "BF16"]
SINGLE = ["Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4"]
"""Formats whose groups have one scale, which can be told from what was decoded."""

# Largest root mean square error of a block, in units of its largest weight: half a step of levels laid over all of
# its range, which is what a plain encoder would be held to.
BOUNDS = {
    "Q4_0": 0.07, "Q4_1": 0.07, "Q5_0": 0.035, "Q5_1": 0.035, "Q8_0": 0.0045, "Q2_K": 0.35, "Q3_K": 0.16, "Q4_K": 0.08,
    "Q5_K": 0.045, "Q6_K": 0.02, "IQ4_NL": 0.1, "IQ4_XS": 0.11, "TQ1_0": 0.5, "TQ2_0": 0.5, "MXFP4": 0.2,
    "Q1_0": 1.0, "Q2_0": 0.5,
}  # fmt: skip
"""Largest error of a block, as a root mean square, in its largest value. MXFP4: its scale is a power of two, so that a
block of equal values may lie between 4 and 6, at 5, whatever the scale."""


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    kernels = [encoding_kernel(formats.get(name), "F32") for name in NAMES + FLOATS]
    kernels += [encoding_kernel(formats.get(name), source) for name in ("Q4_K", "Q5_0") for source in ("F16", "BF16")]
    LIBRARY.load(kernels)  # all at once: compiled by as many processes as there are processors
    with Encoder(1) as made:
        yield made


def encode(
    encoder: Encoder, fmt: QuantFormat, x: NDArray[np.float32], w: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    data, _ = encoder.encode(fmt, np.ascontiguousarray(x, np.float32).view(np.uint8), "F32", w)
    return data, fmt.decode(data)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_no_larger_than_llama_cpps(encoder: Encoder, name: str) -> None:
    fmt = formats.get(name)
    for matrix, x in matrices().items():
        for kind, w in importances().items():
            data, error = encoder.encode(fmt, x.view(np.uint8), "F32", w)
            weights = np.ones(x.shape[1]) if w is None else w.astype(np.float64)
            measured = float((np.square(fmt.decode(data).astype(np.float64) - x) * weights).sum())
            assert error.squared == pytest.approx(measured, rel=1e-4)
            assert error.power == pytest.approx(float((x.astype(np.float64) ** 2 * weights).sum()), rel=1e-4)
            golden = GOLDEN[name][f"{matrix} {kind}"]
            assert measured <= golden * (1 + 1e-6), f"{name}, {matrix}, {kind}: {measured / golden} of llama.cpp's"


@st.composite
def rows(draw: st.DrawFn) -> NDArray[np.float32]:
    """Two rows of up to 768 weights: any magnitudes that halves hold, in any mixture, some of them zero."""
    columns = 256 * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal((2, columns)) * 10 ** draw(st.floats(-3, 3))
    x *= np.exp2(draw(st.floats(0, 6)) * rng.standard_normal((2, columns // 16))).repeat(16, axis=1)
    x += draw(st.sampled_from([0.0, 0.0, 1.0, -3.0])) * np.abs(x).mean()
    x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.0, 0.3, 0.95]))] = 0
    return x.clip(-3e4, 3e4).astype(np.float32)


@pytest.mark.parametrize("name", BOUNDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=rows(), weighted=st.booleans(), seed=st.integers(0, 1000))
def test_error_is_bounded(encoder: Encoder, name: str, x: NDArray[np.float32], weighted: bool, seed: int) -> None:
    fmt = formats.get(name)
    w = np.random.default_rng(seed).lognormal(0, 1, x.shape[1]).astype(np.float32) if weighted else None
    _, decoded = encode(encoder, fmt, x, w)
    weights = np.ones(x.shape[1], np.float32) if w is None else w
    error = (np.square(decoded - x) * weights).reshape(-1, fmt.block_size).sum(axis=1)
    total = np.broadcast_to(weights, x.shape).reshape(-1, fmt.block_size).sum(axis=1)
    largest = np.abs(x).reshape(-1, fmt.block_size).max(axis=1)
    # Scales below 6e-8 are none, and round to multiples of that.
    assert np.all(error <= total * (BOUNDS[name] * largest + 4e-6) ** 2)


@pytest.mark.parametrize("name", SINGLE)
def test_what_was_decoded_encodes_without_loss(encoder: Encoder, name: str) -> None:
    fmt = formats.get(name)
    for x in matrices().values():
        _, decoded = encode(encoder, fmt, x)
        _, twice = encode(encoder, fmt, decoded)
        np.testing.assert_array_equal(twice, decoded)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SINGLE])
def test_what_was_decoded_encodes_nearly_without_loss(encoder: Encoder, name: str) -> None:
    fmt = formats.get(name)
    _, decoded = encode(encoder, fmt, matrices()["bell"])
    _, error = encoder.encode(fmt, decoded.view(np.uint8), "F32")
    _, first = encoder.encode(fmt, matrices()["bell"].view(np.uint8), "F32")
    assert error.relative <= 0.1 * first.relative


@pytest.mark.parametrize("name", NAMES)
def test_odd_values(encoder: Encoder, name: str) -> None:
    fmt = formats.get(name)
    x = np.zeros((9, 512), np.float32)
    x[1, 7], x[2, 300] = 1e9, -1e30
    x[3] = np.linspace(-1e-7, 1e-7, 512)
    x[4] = np.linspace(-1e-40, 1e-40, 512)
    x[5], x[6, ::2] = 0.25, -0.5
    x[7], x[8] = np.linspace(1, 2, 512), np.linspace(-1, 1, 512)
    x[8, 0] = 1000
    _, decoded = encode(encoder, fmt, x)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    held = np.clip(x, -1e15, 1e15).astype(np.float64)
    error, power = np.square(decoded - held).sum(axis=1), np.square(held).sum(axis=1)
    assert np.all(error <= power)
    assert abs(decoded[5] - 0.25).max() < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_importance_may_be_zero(encoder: Encoder, name: str) -> None:
    """Columns without importance are the others' to choose; a group of them is quantized as if it were plain."""
    fmt = formats.get(name)
    x = matrices()["bell"]
    w = np.ones(x.shape[1], np.float32)
    w[256:768], w[::3] = 0, 0
    _, decoded = encode(encoder, fmt, x, w)
    assert np.isfinite(decoded).all()
    _, plain = encode(encoder, fmt, x)
    part = slice(256, 768)
    assert np.square(decoded - x)[:, part].sum() <= 1.05 * np.square(plain - x)[:, part].sum()
    # Nothing is important: as if nothing had been said. The unit of importance means nothing.
    np.testing.assert_array_equal(encode(encoder, fmt, x, np.zeros_like(w))[1], plain)
    np.testing.assert_array_equal(encode(encoder, fmt, x, w * np.float32(2**-90))[1], decoded)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(encoder: Encoder, bad: float) -> None:
    x = np.zeros((4, 256), np.float32)
    x[2, 255] = bad
    for name in ("Q4_K", "Q8_0", "F16"):
        with pytest.raises(FormatError, match="row 2"):
            encode(encoder, formats.get(name), x)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_0"])
def test_sources_agree(encoder: Encoder, name: str) -> None:
    fmt = formats.get(name)
    x = (matrices()["bell"].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    x = x.astype(np.float16).astype(np.float32)  # bfloat16 holds these, as does float16
    wanted, _ = encode(encoder, fmt, x)
    halves, _ = encoder.encode(fmt, x.astype(np.float16).view(np.uint8), "F16")
    brains, _ = encoder.encode(fmt, (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), "BF16")
    np.testing.assert_array_equal(halves, wanted)
    np.testing.assert_array_equal(brains, wanted)


def test_threads_agree(encoder: Encoder) -> None:
    fmt = formats.get("Q4_K")
    x = np.concatenate(list(matrices().values()))
    with Encoder(3) as three:
        data, error = three.encode(fmt, x.view(np.uint8), "F32")
    alone, same = encoder.encode(fmt, x.view(np.uint8), "F32")
    np.testing.assert_array_equal(data, alone)
    assert error == same


def test_floats(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 37)) * 10.0 ** rng.integers(-9, 9, (3, 37))).astype(np.float32)
    x[0, :4] = 1e38, -3.4e38, 1e-40, 0
    _, same = encode(encoder, formats.get("F32"), x)
    np.testing.assert_array_equal(same, x)
    _, halves = encode(encoder, formats.get("F16"), x)
    np.testing.assert_array_equal(halves, np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32))
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    _, brains = encode(encoder, formats.get("BF16"), x)
    np.testing.assert_array_equal(brains, np.where(np.isinf(rounded), np.sign(x) * 3.3895314e38, rounded))


def test_refusals(encoder: Encoder) -> None:
    fmt = formats.get("Q4_K")
    with pytest.raises(FormatError, match="not whole blocks"):
        encode(encoder, fmt, np.zeros((1, 128), np.float32))
    for w in (np.full(256, -1, np.float32), np.full(256, np.nan, np.float32), np.ones(255, np.float32)):
        with pytest.raises(FormatError, match="importance"):
            encode(encoder, fmt, np.zeros((1, 256), np.float32), w)
    with pytest.raises(FormatError, match="cannot encode Q8_K"):
        encode(encoder, formats.get("Q8_K"), np.zeros((1, 256), np.float32))
    with pytest.raises(FormatError, match="Q9_9"):
        encoder.encode(fmt, np.zeros((1, 256), np.uint8), "Q9_9")
    with pytest.raises(FormatError, match="need uint8"):
        encoder.encode(fmt, np.zeros((1, 1024), np.uint8), "F32", out=np.zeros((2, 144), np.uint8))


def test_empty_and_any_shape() -> None:
    fmt = formats.get("Q8_0")
    assert fmt.encode(np.zeros((0, 64), np.float32)).shape == (0, 68)
    assert fmt.encode(np.zeros((2, 3, 64), np.float32), n_threads=2).shape == (2, 3, 68)
