"""Encoders of the IQ1, IQ2 and IQ3 formats: errors against llama.cpp's, round trips, unusual values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.errors import FormatError
from pyllm.jit.compiler import LIBRARY
from pyllm.quant import formats
from pyllm.quant.encoder import Encoder, encoding_kernel

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "iq_errors.json").read_text())
NAMES = [name for name in GOLDEN if name != "made"]

LOSS = {"IQ1_S": 0.21, "IQ1_M": 0.18, "IQ2_XXS": 0.12, "IQ2_XS": 0.09, "IQ2_S": 0.065, "IQ3_XXS": 0.035, "IQ3_S": 0.02}
"""Share of the power that is lost of weights distributed normally, and little more."""


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """All at once, on all processors."""
    LIBRARY.load([encoding_kernel(formats.get(name), "F32") for name in NAMES])


AGAIN = {"IQ1_S": 1e-4}
"""What encoding decoded blocks again may lose, where it is more than rounding."""


def hashed(n: int, salt: int) -> NDArray[np.float64]:
    """n numbers of 0 .. 1 that look random, the same everywhere."""
    v = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt << 40)
    v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (v ^ (v >> np.uint64(31))).astype(np.float64) / 2.0**64


def matrix() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [16, 1024], nearly normal, of differing power by 64 columns; importance [1024]."""
    x = sum(hashed(16 * 1024, salt) for salt in range(1, 7)).reshape(16, 1024) - 3
    x *= 0.02 * (0.3 + hashed(16 * 16, 8).reshape(16, 16, 1) * np.ones((1, 1, 64))).reshape(16, 1024)
    return x.astype(np.float32), (0.01 + 4 * hashed(1024, 9) ** 3).astype(np.float32)


def loss(y: NDArray[np.float32], x: NDArray[np.float32], w: NDArray[np.float32] | float = 1.0) -> float:
    y, x = y.astype(np.float64), x.astype(np.float64)
    return float(np.sum(w * (y - x) ** 2) / np.sum(w * x**2))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", NAMES)
def test_error_is_not_above_llama_cpp(name: str, weighted: bool) -> None:
    x, w = matrix()
    fmt, importance = formats.get(name), w if weighted else None
    with Encoder(2) as encoder:
        data, error = encoder.encode(fmt, x.view(np.uint8), "F32", importance)
    got = loss(fmt.decode(data), x, w if weighted else 1.0)
    assert got <= 1.00 * GOLDEN[name]["importance" if weighted else "plain"]
    assert error.relative**2 == pytest.approx(got, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), exponent=st.integers(-4, 4), rows=st.integers(1, 3), blocks=st.integers(1, 2))
def test_normal_weights_of_any_scale(name: str, seed: int, exponent: int, rows: int, blocks: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, 256 * blocks)).astype(np.float32) * np.float32(
        10.0**exponent
    )
    assert loss(formats.get(name).decode(formats.get(name).encode(x)), x) <= 1.15 * LOSS[name]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_finite_weights(name: str, data: st.DataObject) -> None:
    """Some of any size in a row of others: decoded, it is finite, and zeros would not be nearer."""
    fmt = formats.get(name)
    x = np.random.default_rng(data.draw(st.integers(0, 1000))).standard_normal((1, 512)).astype(np.float32)
    x *= np.float32(data.draw(st.sampled_from([0.0, 1e-40, 1e-9, 1e-3, 1.0, 1e5])))
    some = st.floats(-(2.0**50), 2.0**50, width=32)
    for i, v in data.draw(st.dictionaries(st.integers(0, 511), some, max_size=8)).items():
        x[0, i] = v
    w = np.random.default_rng(1).choice(np.array([0, 1e-20, 1e-3, 1, 1e6], np.float32), 512)
    weighted = data.draw(st.booleans())
    y = fmt.decode(fmt.encode(x, w if weighted else None))
    assert np.isfinite(y).all()
    if np.any(x):
        # What has no importance gets a hundred thousandth of its block's mean; large weights count more.
        least = 1e-5 * w.reshape(2, 256).mean(axis=1).repeat(256)
        squares = x[0].astype(np.float64) ** 2
        mean = squares.reshape(2, 256).mean(axis=1).repeat(256)
        relative = np.divide(squares, mean, out=np.zeros(512), where=mean > 1e-30)
        assert loss(y, x, np.maximum(w, least) * np.sqrt(1 + relative) if weighted else 1.0) <= 1 + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_denormals_are_zeros(name: str) -> None:
    x = np.zeros((2, 256), np.float32)
    x[1] = 1e-41
    assert not formats.get(name).decode(formats.get(name).encode(x)).any()


@pytest.mark.parametrize("name", NAMES)
def test_one_huge_outlier(name: str) -> None:
    """It is kept as far as its group (others cannot be zero) and the codebook allow; other blocks do not suffer."""
    x = np.random.default_rng(3).standard_normal((1, 512)).astype(np.float32)
    fmt = formats.get(name)
    alone = fmt.decode(fmt.encode(x))
    x[0, 77] = -30000
    y = fmt.decode(fmt.encode(x))
    # The largest magnitude m beside n others of the least, l: m² / (m² + n l²) of the power can be kept at best.
    kept = {
        "IQ1_S": 0.71,
        "IQ1_M": 0.83,
        "IQ2_XXS": 0.48,
        "IQ2_XS": 0.65,
        "IQ2_S": 0.65,
        "IQ3_XXS": 0.86,
        "IQ3_S": 0.85,
    }
    assert 1 - loss(y[:, :256], x[:, :256]) >= kept[name] - 0.01
    np.testing.assert_array_equal(y[0, 256:], alone[0, 256:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_numbers_are_refused(name: str, value: float) -> None:
    x = np.ones((3, 256), np.float32)
    x[1, 17] = value
    with pytest.raises(FormatError, match="1 rows hold values that are infinite or no numbers, row 1 first"):
        formats.get(name).encode(x)


@pytest.mark.parametrize("name", NAMES)
def test_decoded_blocks_encode_again(name: str) -> None:
    fmt = formats.get(name)
    x, _ = matrix()
    once = fmt.decode(fmt.encode(x))
    assert loss(fmt.decode(fmt.encode(once)), once) <= AGAIN.get(name, 1e-6)


def test_half_precision_rows() -> None:
    rows = matrix()[0].astype(np.float16)
    with Encoder(1) as encoder:
        data, _ = encoder.encode(formats.get("IQ2_XXS"), rows.view(np.uint8), "F16")
    np.testing.assert_array_equal(data, formats.get("IQ2_XXS").encode(rows.astype(np.float32)))
