"""Every format's decoders against the gguf package's, bit for bit; else against golden blocks of ggml."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.errors import FormatError
from pyllm.gguf import open_gguf
from pyllm.gguf.types import by_name
from pyllm.quant import formats
from pyllm.quant.formats import QuantFormat

NAMES = [
    "F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K",
    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "IQ1_M", "BF16", "TQ1_0", "TQ2_0",
    "MXFP4", "NVFP4", "Q1_0", "Q2_0",
]  # fmt: skip
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "blocks.json").read_text())
IN_GGUF = [name for name in NAMES if name not in GOLDEN]
SPECIAL_HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:gguf")


def expected(fmt: QuantFormat, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return gguf.dequantize(data, gguf.GGMLQuantizationType[fmt.name])


def assert_same(fmt: QuantFormat, data: NDArray[np.uint8]) -> None:
    """Equal bits, any NaN equal to any other; otherwise shows the block that differs in most weights."""
    got, want = fmt.decode(data), expected(fmt, data)
    assert (got.dtype, got.shape) == (np.float32, want.shape)
    differs = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    if differs.any():
        by_block = differs.reshape(-1, fmt.block_size)
        worst = int(by_block.sum(axis=1).argmax())
        i = int(by_block[worst].argmax())
        raw = data.reshape(-1, fmt.block_bytes)[worst].tobytes().hex(" ")
        a, b = (float(x.reshape(-1, fmt.block_size)[worst, i]) for x in (got, want))
        pytest.fail(
            f"{fmt.name}: {by_block.any(axis=1).sum()} of {len(by_block)} blocks differ; worst is block {worst}, "
            f"{by_block[worst].sum()} of {fmt.block_size} weights, first weight {i}: {a!r} for {b!r}; bytes {raw}"
        )


def test_names() -> None:
    assert formats.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    fmt = formats.get(name)
    assert (fmt.name, fmt.ggml_type) == (name, by_name(name).id)
    if name in IN_GGUF:
        kind = gguf.GGMLQuantizationType[name]
        assert fmt.ggml_type == kind
        assert (fmt.block_size, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert (fmt.block_size, fmt.block_bytes) == (by_name(name).block_size, by_name(name).block_bytes)
    assert fmt.bits_per_weight == 8 * fmt.block_bytes / fmt.block_size
    offsets = sorted((offset, part.itemsize) for part, offset, *_ in fmt.layout.fields.values())
    assert sum(size for _, size in offsets) == fmt.block_bytes, "no padding between the fields"


@pytest.mark.parametrize("name", IN_GGUF)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    """Random blocks, some of their float fields replaced by zeros, subnormals, infinities and NaNs."""
    fmt = formats.get(name)
    rows, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    blocks = np.frombuffer(data.draw(st.binary(min_size=(size := rows * n * fmt.block_bytes), max_size=size)), np.uint8)
    blocks = blocks.copy()
    halves = [field for field, (kind, *_) in fmt.layout.fields.items() if kind == np.dtype("<f2")]
    if halves:
        view = blocks.view(fmt.layout)
        for field in halves:
            for i in range(len(view)):
                if data.draw(st.booleans()):
                    view[field][i] = np.array(data.draw(st.sampled_from(SPECIAL_HALVES)), "<u2").view("<f2")
    assert_same(fmt, blocks.reshape(rows, n * fmt.block_bytes))


@pytest.mark.parametrize("name", IN_GGUF)
def test_many_blocks(name: str) -> None:
    """More than are decoded at once, with ordinary scales."""
    fmt = formats.get(name)
    n_blocks = (1 << 19) // fmt.block_size + 3
    rng = np.random.default_rng(fmt.ggml_type)
    data = rng.integers(0, 256, n_blocks * fmt.block_bytes, dtype=np.uint8)
    view = data.view(fmt.layout)
    for field, (kind, *_) in fmt.layout.fields.items():
        if kind == np.dtype("<f2"):
            view[field] = rng.standard_normal(n_blocks) * 0.01
    assert_same(fmt, data.reshape(1, -1))


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "Q8_K"])
def test_golden_blocks(name: str) -> None:
    """Blocks that ggml decoded, some with scales that are infinite, subnormal or zero."""
    blocks = np.frombuffer(bytes.fromhex(GOLDEN[name]["blocks"]), np.uint8)
    want = np.frombuffer(bytes.fromhex(GOLDEN[name]["values"]), np.float32)
    got = formats.get(name).decode(blocks)
    np.testing.assert_array_equal(got, want)
    assert np.array_equal(np.signbit(got), np.signbit(want))


def test_q8_1_decodes_what_ggml_encoded() -> None:
    blocks = np.frombuffer(bytes.fromhex(GOLDEN["Q8_1"]["blocks"]), np.uint8).reshape(-1, 36)
    source = np.frombuffer(bytes.fromhex(GOLDEN["Q8_1"]["source"]), np.float32).reshape(-1, 32)
    step = np.abs(source).max(axis=1, keepdims=True) / 127
    fmt = formats.get("Q8_1")
    assert np.all(np.abs(fmt.decode(blocks) - source) <= 0.57 * step), "half a step, and d rounded to a half"
    sums = blocks.view(fmt.layout)["s"].astype(np.float32)
    np.testing.assert_allclose(fmt.decode(blocks).sum(axis=1, keepdims=True), sums, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K", "IQ2_XXS"])
def test_shapes(name: str) -> None:
    fmt = formats.get(name)
    data = np.random.default_rng(2).integers(0, 120, (2, 3, 4 * fmt.block_bytes), dtype=np.uint8)
    whole = fmt.decode(data)
    assert whole.shape == (2, 3, 4 * fmt.block_size)
    assert np.array_equal(fmt.decode(data[:, 1]), whole[:, 1], equal_nan=True), "rows need not be adjacent"
    assert np.array_equal(fmt.decode(data[1, 2]), whole[1, 2], equal_nan=True)
    assert fmt.decode(data[:0]).shape == (0, 3, 4 * fmt.block_size)
    assert fmt.decode(data[..., :0]).shape == (2, 3, 0)


def test_result_is_a_new_array() -> None:
    data = np.zeros(16, np.uint8)
    data.flags.writeable = False
    out = formats.get("F32").decode(data)
    out[0] = 1.0
    assert not data.any()


@pytest.mark.parametrize(
    "data", [np.zeros(17, np.uint8), np.zeros(18, np.int8), np.zeros((), np.uint8)], ids=["size", "type", "rank"]
)
def test_wrong_data(data: NDArray[np.uint8]) -> None:
    with pytest.raises(FormatError, match="Q4_0 data must be uint8 in rows of whole blocks of 18 bytes"):
        formats.get("Q4_0").decode(data)


def test_unknown_format() -> None:
    with pytest.raises(FormatError, match="cannot decode the format 'IQ5_XS'; it can decode F32, F16"):
        formats.get("IQ5_XS")


def test_a_name_is_taken_once() -> None:
    original = formats.get("Q4_0")
    with pytest.raises(TypeError, match="Q4_0 is defined in"):
        type("Q4_0", (QuantFormat,), {"name": "Q4_0", "layout": original.layout, "__module__": __name__})
    assert formats.get("Q4_0") is original


@pytest.mark.parametrize("model", ["smollm2", "qwen-coder"])
def test_real_tensors(model_path: Callable[[str], Path], model: str) -> None:
    """Four rows of the first tensor of each format in a real file."""
    seen: set[str] = set()
    with open_gguf(model_path(model)) as f:
        for t in f.tensors.values():
            if t.format not in seen:
                seen.add(t.format)
                rows = t.data.reshape(t.shape[0] if len(t.shape) > 1 else 1, -1)
                assert_same(formats.get(t.format), rows[:4])
                assert np.isfinite(formats.get(t.format).decode(rows[:4])).all()
    assert len(seen) > 1
