"""Latent attention: what a token keeps, YaRN's factors, matrices of one head, contexts that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from arch_models import ArchModel
from pyllm import archs
from pyllm.archs.mixers.latent import LatentAttention
from pyllm.errors import ModelError
from pyllm.program import KVSpec, Program
from pyllm.program.ops.linear import HeadLinear


def program_of(model: ArchModel, n_ctx: int = 64) -> Program:
    return archs.load(model.all_metadata, model.tensors, n_ctx).program


def changed(model: ArchModel, **keys: object) -> ArchModel:
    """The model with other metadata."""
    arch = model.metadata["general.architecture"]
    return replace(model, metadata=model.metadata | {f"{arch}.{k.replace('__', '.')}": v for k, v in keys.items()})


def test_a_token_keeps_one_row_for_all_heads() -> None:
    """With matrices by head: 64 columns and 16 that are rotated. Else 4 heads of 48 and 32."""
    assert program_of(ArchModel.load("deepseek2-moe")).kv == (KVSpec(1, 80, 64),) * 2
    assert program_of(ArchModel.load("deepseek2-moe.unsplit")).kv == (KVSpec(4, 48, 32),) * 2


def test_layers_with_a_window_have_sizes_of_their_own() -> None:
    assert program_of(ArchModel.load("dots3note")).kv == (KVSpec(1, 80, 64), KVSpec(1, 64, 48, window=20))


def test_files_leave_out_the_axis_of_one_head() -> None:
    model = changed(ArchModel.load("deepseek2-moe"), attention__head_count=1)
    shapes = dict(model.shapes)
    for il in range(2):
        shapes |= {f"blk.{il}.attn_k_b.weight": (64, 32), f"blk.{il}.attn_v_b.weight": (32, 64)}
        shapes |= {f"blk.{il}.attn_q_b.weight": (48, 96), f"blk.{il}.attn_output.weight": (128, 32)}
    ops = [op for op in program_of(replace(model, shapes=shapes)).ops if isinstance(op, HeadLinear)]
    assert [op.n_heads for op in ops] == [1] * 4
    shapes["blk.1.attn_k_b.weight"] = (32, 64)
    with pytest.raises(ModelError, match=r"blk.1.attn_k_b.weight has shape \[32, 64\]"):
        program_of(replace(model, shapes=shapes))


@pytest.mark.parametrize(
    ("name", "multiplier", "scores", "rotation"),
    [
        ("deepseek2-moe.yarn", 0.1, 1 + 0.1 * math.log(8), 1.0),
        ("deepseek2-moe.yarn", 0.0, 1 + 0.1 * math.log(8), 1 + 0.1 * math.log(8)),
        ("mistral4-moe", 0.05, 1 + 0.1 * math.log(8), (1 + 0.1 * math.log(8)) / (1 + 0.05 * math.log(8))),
    ],
)
def test_factors_of_yarn(name: str, multiplier: float, scores: float, rotation: float) -> None:
    """DeepSeek 2 rotates without a factor where files have a multiplier; a factor of rotation is one of scores too."""
    model = changed(ArchModel.load(name), rope__scaling__yarn_log_multiplier=multiplier)
    mixer = archs.load(model.all_metadata, model.tensors, 64).decoder.layers[0].parts[0].mix
    assert isinstance(mixer, LatentAttention)
    assert mixer.rope is not None
    assert mixer.rope.mscale == pytest.approx(rotation)
    assert mixer.scale * math.sqrt(48) == pytest.approx(scores**2)


@pytest.mark.parametrize("name", ["deepseek32", "glm-dsa", "dots3note", "minimax-m3-moe"])
def test_contexts_of_which_a_model_chooses_parts_are_refused(name: str) -> None:
    model = changed(ArchModel.load(name), attention__indexer__top_k=40, attention__indexer__block_size=1)
    program_of(model, 40)
    with pytest.raises(ModelError, match=r"chooses among .* beyond 40 positions.*at most 40"):
        program_of(model, 41)


def test_some_columns_of_a_head_must_be_its_own() -> None:
    with pytest.raises(ModelError, match="share 48 columns of 48"):
        program_of(changed(ArchModel.load("deepseek2-moe"), rope__dimension_count=48))


@pytest.mark.parametrize("least", [0.5, 0.0])
def test_decays_need_a_least_one(least: float) -> None:
    with pytest.raises(ModelError, match=r"kda\.gate_lower_bound is"):
        program_of(changed(ArchModel.load("bailingmoe3"), kda__gate_lower_bound=least))
