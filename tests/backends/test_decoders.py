"""Compiled block decoders against the formats' own, bit for bit, through the kernel that reads token tables."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_tools import Memory, call, padded, step_block

from pyllm.backends.cpu.arguments.embed import Embed
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.ops.embed import EMBED_FORMATS
from pyllm.jit.compiler import LIBRARY
from pyllm.quant import formats
from pyllm.quant.kernels.decoders import BLOCKS

SPECIAL_HALVES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00], np.uint16)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """All at once, on all processors."""
    LIBRARY.load([kernel("embed", "embed", format=name) for name in formats.names()])


def test_every_format_has_one() -> None:
    assert {name: BLOCKS[name][1:] for name in BLOCKS} == {
        name: (formats.get(name).block_size, formats.get(name).block_bytes) for name in formats.names()
    }
    assert frozenset(BLOCKS) == EMBED_FORMATS


@pytest.mark.parametrize("name", formats.names())
def test_as_numpy_decodes(name: str) -> None:
    fmt = formats.get(name)
    rng = np.random.default_rng(fmt.ggml_type)
    data = rng.integers(0, 256, (9, 512 // fmt.block_size * fmt.block_bytes), dtype=np.uint8)
    view = data.view(fmt.layout)
    for field, (kind, *_) in fmt.layout.fields.items():
        if kind == np.dtype("<f2"):
            view[field][:3] = (rng.standard_normal(view[:3].shape) * 0.01).astype(np.float16)
            view[field][6:] = rng.choice(SPECIAL_HALVES, view[6:].shape).view(np.float16)
    tokens = np.arange(9, dtype=np.int32)
    y = padded(np.zeros((9, 512), np.float32))
    args = Embed(table=Memory(data), y=Memory(y), columns=512, scale=1.0)
    call("embed", "embed", {"format": name}, step_block(9, tokens=tokens), args)
    want = fmt.decode(data)
    differs = (y.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(y) & np.isnan(want))
    assert not differs.any()
