"""Architectures with recurrent layers beside attention: their states, and what is refused, with names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arch_models import ArchModel
from pyllm import archs
from pyllm.archs.decoder import RMS, Decoder, Layer, Part, write
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers import attention as mixers
from pyllm.archs.mixers.short_conv import GatedConvolution
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.linear import Linear
from pyllm.program.values import SlotSpec


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, shape, "F32", np.zeros(shape, np.float32).reshape(-1).view(np.uint8))


def test_states_are_those_of_recurrent_layers() -> None:
    model = ArchModel.load("qwen35-dense")
    program = archs.load(model.all_metadata, model.tensors, 64).program
    assert len(program.kv) == 2
    one_layer = [SlotSpec((3, 128)), SlotSpec((4, 16, 16))]
    assert list(program.slots) == one_layer * 2
    assert [op.tiled for op in program.ops if isinstance(op, DeltaRule)] == [True, True]


def test_a_matrix_of_queries_and_gates_is_divided_by_head() -> None:
    model = ArchModel.load("qwen35-dense")
    program = archs.load(model.all_metadata, model.tensors, 64).program
    weights = [op.weight for op in program.ops if isinstance(op, Linear) and "blk.1.attn_q." in op.weight]
    assert weights == ["blk.1.attn_q.weight[0:32/64]", "blk.1.attn_q.weight[32:64/64]"]


def test_a_layer_may_read_the_keys_of_another_beside_recurrent_ones() -> None:
    """Numbers of KV caches count no other states."""
    file = ArchModel.load("lfm2-dense")
    hp = HParams(file.all_metadata, "lfm2", file.tensors, 64)
    own = mixers.Attention.read(hp, 1)
    parts = GatedConvolution.read(hp), own, replace(own, kv_from=1)
    layers = tuple(Layer(il, (Part(mix, "attn_norm"),)) for il, mix in zip((0, 1, 3), parts, strict=True))
    program, _ = write(Decoder(layers=layers, norm=RMS(1e-5), final_norm="token_embd_norm"), hp)
    assert [op.cache for op in program.ops if isinstance(op, Attention)] == [0, 0]
    assert (len(program.kv), len(program.slots)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("qwen35-dense", {"qwen35.ssm.inner_size": 66}, "inner_size is 66, which 4 heads do not divide"),
        ("qwen35-dense", {"qwen35.ssm.group_count": 3}, "blk.0.attn_qkv.weight has shape"),
        ("qwen35-dense", {"qwen35.ssm.conv_kernel": 5}, "blk.0.ssm_conv1d.weight has shape"),
        ("qwen35-dense", {"qwen35.ssm.state_size": None}, "ssm.state_size is missing"),
        ("qwen35-dense", {"qwen35.full_attention_interval": 3}, "blk.1.attn_qkv.weight is missing"),
        ("qwen35-dense", {"qwen35.attention.key_length": 64}, "blk.1.attn_q.weight has shape"),
        ("qwen35moe-moe", {"qwen35moe.feed_forward_length": 0, "qwen35moe.expert_feed_forward_length": 0}, "missing"),
        ("lfm2-dense", {"lfm2.shortconv.l_cache": 4}, "blk.0.shortconv.conv.weight has shape"),
        ("lfm2-dense", {"lfm2.attention.causal": False}, "attention.causal is false"),
    ],
)
def test_settings_that_do_not_go_with_the_tensors(name: str, changes: dict[str, Any], said: str) -> None:
    model = ArchModel.load(name)
    metadata = {key: value for key, value in (model.all_metadata | changes).items() if value is not None}
    with pytest.raises(ModelError, match=said):
        archs.load(metadata, model.tensors, 64)


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("qwen35-dense", tensor("blk.1.attn_q.bias", 255), "blk.1.attn_q.bias has shape"),
        ("qwen35-dense", tensor("blk.0.ssm_a", 8), "blk.0.ssm_a has shape"),
        ("qwen35-dense", tensor("blk.0.ssm_norm.weight", 8), "blk.0.ssm_norm.weight has shape"),
        ("qwen3next-moe", tensor("blk.0.ssm_ba.weight", 6, 64), "blk.0.ssm_ba.weight has shape"),
        ("qwen3next-moe", tensor("blk.0.ssm_dt.bias", 8), "blk.0.ssm_dt.bias has shape"),
    ],
)
def test_tensors_that_do_not_fit(name: str, other: TensorInfo, said: str) -> None:
    model = ArchModel.load(name)
    with pytest.raises(ModelError, match=said):
        archs.load(model.all_metadata, model.tensors | {other.name: other}, 64)
