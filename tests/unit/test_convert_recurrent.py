"""Conversion of models with recurrent layers: adapters of matrices whose rows or columns move, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import GOLDEN, write_tensors
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.gguf import GGUFWriter, TensorSpec, open_gguf
from pyllm_convert import Conversion
from pyllm_convert.checkpoint import Checkpoint
from pyllm_convert.lora import convert_adapter

ALPHA, RANK = 6.0, 2
MODULES = {
    "qwen3_5": [f"layers.0.linear_attn.{m}" for m in ("in_proj_qkv", "in_proj_z", "in_proj_a", "out_proj")],
    "qwen3next": [f"layers.0.linear_attn.{m}" for m in ("in_proj_qkvz", "in_proj_ba", "out_proj")],
    "lfm2": ["layers.0.conv.in_proj", "layers.0.feed_forward.w2", "layers.1.self_attn.out_proj"],
}


def stored(case: str) -> dict[str, NDArray[np.float32]]:
    """A golden checkpoint's tensors."""
    checkpoint = Checkpoint(GOLDEN / case)
    try:
        return {name: t.floats(0, t.n_rows).reshape(t.shape) for name, t in checkpoint.tensors.items()}
    finally:
        checkpoint.close()


def write_folder(folder: Path, case: str, tensors: dict[str, NDArray[np.float32]], **changes: Any) -> Path:
    """A golden checkpoint with other tensors, in float32, and other settings."""
    folder.mkdir()
    config = json.loads((GOLDEN / case / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def converted(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Tensors as a file has them."""
    with Conversion(folder, tokenizer=False) as model:
        return {t.name: t.values.floats(0, t.values.n_rows).reshape(t.shape) for t in model.tensors.values()}


def write_model(folder: Path, target: Path) -> Path:
    """The folder as a GGUF file."""
    with Conversion(folder, tokenizer=False) as model:
        specs = [TensorSpec(t.name, t.shape, "F32") for t in model.tensors.values()]
        with GGUFWriter(target, model.metadata, specs) as writer:
            for t in model.tensors.values():
                writer.write(np.ascontiguousarray(t.values.floats(0, t.values.n_rows)).view(np.uint8).reshape(-1))
    return target


@pytest.mark.parametrize("case", MODULES)
def test_adapters_move_with_their_matrices(case: str, tmp_path: Path) -> None:
    """What an adapter adds to a file's matrices is what conversion makes of a checkpoint with it added."""
    random, tensors, halves = np.random.default_rng(3), stored(case), {}
    before = converted(write_folder(tmp_path / "before", case, tensors))
    for module in MODULES[case]:
        rows, columns = tensors[f"model.{module}.weight"].shape
        a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((RANK, columns), (rows, RANK)))
        halves |= {f"base_model.model.model.{module}.lora_{c}.weight": half for c, half in (("A", a), ("B", b))}
        tensors[f"model.{module}.weight"] += ALPHA / RANK * (b @ a)
    after = converted(write_folder(tmp_path / "after", case, tensors))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": ALPHA, "r": RANK}))
    write_tensors(adapter / "adapter_model.safetensors", halves)
    file = write_model(tmp_path / "before", tmp_path / "model.gguf")
    for base, target in ((tmp_path / "before", tmp_path / "a.gguf"), (file, tmp_path / "b.gguf")):
        convert_adapter(adapter, target, base)
        with open_gguf(target) as made:
            pairs = {name: t.data.view(np.float32).reshape(t.shape) for name, t in made.tensors.items()}
        changed = {name for name in after if not np.array_equal(before[name], after[name])}
        assert {name.rpartition(".")[0] for name in pairs} == changed
        for name in changed:
            added = ALPHA / RANK * (pairs[f"{name}.lora_b"] @ pairs[f"{name}.lora_a"])
            np.testing.assert_allclose(after[name] - before[name], added, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("qwen3_5", {"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types holds"),
        ("qwen3_5", {"linear_num_key_heads": 3}, "3 heads of keys among 4 of values"),
        ("qwen3_5", {"linear_value_head_dim": 16}, "no matrix of 96 x 4"),
        ("qwen3_5", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3_5", {"rope_parameters": {"mrope_section": ["x"]}}, "mrope_section"),
        ("qwen3_5moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3next", {"linear_key_head_dim": 16}, "no matrix of 96 x 4"),
        ("lfm2", {"layer_types": ["conv", "linear_attention"]}, "layer_types holds"),
        ("lfm2", {"conv_L_cache": 5}, "no matrix of 32 x 5"),
        ("lfm2moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
    ],
)
def test_settings_without_a_place(case: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said):
        converted(write_folder(tmp_path / "model", case, stored(case), **changes))


@pytest.mark.parametrize(("case", "name"), [("qwen3_5", "linear_attn.conv1d"), ("lfm2", "conv.conv")])
def test_convolutions_are_of_each_channel(case: str, name: str, tmp_path: Path) -> None:
    tensors = stored(case)
    weight = f"model.layers.0.{name}.weight"
    tensors[weight] = np.repeat(tensors[weight], 2, axis=1)
    with pytest.raises(ModelError, match="no matrix of"):
        converted(write_folder(tmp_path / "model", case, tensors))


def test_layers_that_predict_further_tokens_come_last(tmp_path: Path) -> None:
    with Conversion(GOLDEN / "qwen3_5", tokenizer=False) as model:
        assert model.metadata["qwen35.nextn_predict_layers"].value == 1
        assert model.metadata["qwen35.block_count"].value == 3
        assert "blk.2.nextn.eh_proj.weight" in model.tensors
    without = {name: t for name, t in stored("qwen3_5").items() if not name.startswith("mtp.")}
    with Conversion(write_folder(tmp_path / "model", "qwen3_5", without), tokenizer=False) as model:
        assert model.metadata["qwen35.block_count"].value == 2
