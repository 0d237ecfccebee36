"""The table of tensor types against the gguf package's."""

from __future__ import annotations

import gguf
import pytest

from pyllm.errors import FormatError
from pyllm.gguf.types import BY_ID, REMOVED, TYPES, ValueType, by_name


@pytest.mark.parametrize("kind", gguf.GGMLQuantizationType, ids=lambda k: k.name)
def test_tensor_types(kind: gguf.GGMLQuantizationType) -> None:
    mine = BY_ID[kind]
    size, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind == gguf.GGMLQuantizationType.Q8_1:
        n_bytes = 36  # ggml made the two floats of its block halves
    assert (mine.name, mine.block_size, mine.block_bytes) == (kind.name, size, n_bytes)
    assert by_name(kind.name) is mine
    assert mine.n_bytes(6 * mine.block_size) == 6 * mine.block_bytes


def test_table_is_consistent() -> None:
    assert len({t.id for t in TYPES}) == len({t.name for t in TYPES}) == len(TYPES)
    assert not REMOVED.keys() & BY_ID.keys()


def test_value_types() -> None:
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


def test_unknown_name() -> None:
    with pytest.raises(FormatError, match="'Q9_K' is not a tensor format; known are F32"):
        by_name("Q9_K")
