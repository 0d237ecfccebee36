"""T5's encoder: buckets of distances, where biases come from, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arch_models import ArchModel
from pyllm import archs
from pyllm.archs.mixers.relative import FAR, buckets
from pyllm.errors import ModelError
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.store import StoreKV


def test_buckets_are_the_papers() -> None:
    """32 buckets, of which 16 are for each direction, as T5's code has them: 8 of a single distance, then as many for
    each factor of the fourth root of 2 in two."""
    got = buckets(32, True)
    borders = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    for way, first in ((-1, 0), (1, 16)):
        for distance in range(1, FAR + 1):
            wanted = first + max(b for b, border in enumerate(borders) if border <= distance)
            assert got[FAR + way * distance] == wanted
    assert got[FAR] == 0


def test_buckets_of_one_direction() -> None:
    """A decoder's 32: 16 of a single distance, then as many up to 128."""
    got, borders = buckets(32, False), [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    for distance in range(FAR + 1):
        assert got[FAR - distance] == max(b for b, border in enumerate(borders) if border <= distance)
    assert set(got[FAR:]) == {0}


def test_encoder_and_decoder_have_the_same_states() -> None:
    """Caches of the source come first; equal states make equal pages."""
    model = ArchModel.load("t5.ungated")
    program = archs.load(model.all_metadata, model.tensors, 64).program
    assert program.encoder is not None
    assert program.encoder.states == program.states
    assert len(program.kv) == 4
    stored = [op.cache for op in program.encoder.ops if isinstance(op, StoreKV)]
    read = [op.cache for op in program.ops if isinstance(op, Attention) and op.reach == "source"]
    own = [op.cache for op in program.ops if isinstance(op, Attention) and op.reach == "causal"]
    assert (stored, read, own) == ([0, 1], [0, 1], [2, 3])


def test_biases_are_of_the_layer_or_of_the_first() -> None:
    for name, own in (("t5encoder", False), ("t5encoder.ungated", True)):
        model = ArchModel.load(name)
        arch = archs.load(model.all_metadata, model.tensors, 64)
        weights = [op.biases for op in arch.program.ops if isinstance(op, Attention)]
        assert weights == [f"enc.blk.{il if own else 0}.attn_rel_b.weight by distance" for il in range(2)]
        table = model.weights["enc.blk.0.attn_rel_b.weight"]
        made = arch.tensors[str(weights[0])]
        values = made.data.view(np.float32).reshape(made.shape)
        np.testing.assert_array_equal(values[:, FAR + 3], table[len(table) // 2 + 3])
        np.testing.assert_array_equal(values[:, FAR - 2], table[2])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("attention.relative_buckets_count", 31, "31 buckets of distances"),
        ("attention.relative_buckets_count", 512, "512 buckets of distances"),
        ("attention.relative_buckets_count", 30, "the model needs \\[30, 4\\]"),
        ("attention.relative_buckets_count", None, "relative_buckets_count"),
        ("attention.head_count_kv", 2, "4 heads, but 2 for keys and values"),
        ("attention.key_length", 16, "attn_q.weight"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(key: str, value: Any, words: str) -> None:
    model = ArchModel.load("t5encoder")
    metadata = model.all_metadata | {f"t5encoder.{key}": value}
    if value is None:
        del metadata[f"t5encoder.{key}"]
    with pytest.raises(ModelError, match=words):
        archs.load(metadata, model.tensors, 64)


def test_a_decoder_of_more_layers_is_refused() -> None:
    model = ArchModel.load("t5")
    with pytest.raises(ModelError, match="1 layers in its encoder and 3 in its decoder"):
        archs.load(model.all_metadata | {"t5.decoder_block_count": 3}, model.tensors, 64)


def test_a_file_without_biases_is_refused() -> None:
    model = ArchModel.load("t5encoder")
    tensors = {name: t for name, t in model.tensors.items() if "rel_b" not in name}
    with pytest.raises(ModelError, match=r"enc\.blk\.0\.attn_rel_b\.weight is missing"):
        archs.load(model.all_metadata, tensors, 64)
