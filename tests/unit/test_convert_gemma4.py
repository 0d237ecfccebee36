"""Gemma 4: what differs by layer, in config.json and in tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from convert_folders import GOLDEN, copy_with, keys_of

from pyllm import archs
from pyllm.errors import ModelError, TokenizerError
from pyllm.gguf.tensor import TensorInfo
from pyllm.tokenizers.vocab import CONTROL, UNKNOWN, USER_DEFINED
from pyllm_convert import Conversion
from pyllm_convert.tokenizer import tokenizer_metadata


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ("gemma4", {"attention_bias": True}, "attention_bias is True"),
        ("gemma4", {"per_layer_config": {"0": {"head_dim": 4}}}, "layer 0, which has a window"),
        ("gemma4", {"per_layer_config": {"1": {"hidden_size": 4}}}, "a place for heads"),
        ("gemma4-e", {"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 8}}}, r"head_dim of \[8, 16\]"),
        ("gemma4-e", {"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4, not a count from 0 to 3"),
        ("gemma4-e", {"num_kv_shared_layers": 3}, "no layer to read keys from"),
        ("gemma4", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "proportional or not scaled"),
        ("gemma4", {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 2}}, "share of one"),
    ],
)
def test_settings_without_a_place(tmp_path: Path, case: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        keys_of(copy_with(case, tmp_path, changes))


@pytest.mark.parametrize("case", ["gemma4", "gemma4-e", "gemma4-moe"])
def test_heads_of_full_layers_as_published(case: str, tmp_path: Path) -> None:
    """Named in config.json itself, where transformers 5 writes them layer by layer; rope_parameters left out."""
    changes: dict[str, Any] = {"per_layer_config": None, "global_head_dim": 16}
    if case == "gemma4":
        changes |= {"num_global_key_value_heads": 1, "rope_parameters": None}
    assert keys_of(copy_with(case, tmp_path / case, changes)) == keys_of(GOLDEN / case)


def test_heads_of_full_layers_that_do_not_count(tmp_path: Path) -> None:
    """transformers heeds num_global_key_value_heads where keys are values as well."""
    changes = {"per_layer_config": None, "global_head_dim": 16, "num_global_key_value_heads": 2}
    keys = keys_of(copy_with("gemma4-e", tmp_path / "gemma4-e", changes))
    assert keys == keys_of(GOLDEN / "gemma4-e")


def test_a_table_by_layer_has_a_row_for_each_token(tmp_path: Path) -> None:
    folder = copy_with("gemma4-e", tmp_path, {})
    with Conversion(folder, tokenizer=False) as model:
        data = {name: t.read(0, t.values.n_rows).reshape(-1) for name, t in model.tensors.items()}
        infos = {name: TensorInfo(name, t.shape, t.format, data[name]) for name, t in model.tensors.items()}
        keys = {key: value.value for key, value in model.metadata.items()}
    name = "per_layer_token_embd.weight"
    infos[name] = replace(infos[name], shape=(95, 32))
    with pytest.raises(ModelError, match=f"{name} has shape .95, 32., but the model needs .96, 32."):
        archs.load(keys, infos, None)


def tokenizer_json(folder: Path, **changes: Any) -> Path:
    """A vocabulary in the form of Gemma's, for a model of the kind."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "<|channel>", "<channel|>"]
    texts = [*special, "▁", "a", "b", "ab", "▁ab"]
    model = {
        "type": "BPE",
        "vocab": {text: i for i, text in enumerate(texts)},
        "merges": [["a", "b"], ["▁", "ab"]],
        "unk_token": "<unk>",
        "byte_fallback": True,
    }
    tokenizer = {
        "model": model,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(special)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | changes))
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma4_text", "vocab_size": len(texts)}))
    return folder


def test_vocabulary(tmp_path: Path) -> None:
    """Kind, merges and visible tokens are those of llama.cpp's converter."""
    folder = tokenizer_json(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    keys = {key: value.value for key, value in tokenizer_metadata(folder, config).items()}
    assert keys["tokenizer.ggml.model"] == "gemma4"
    assert keys["tokenizer.ggml.merges"] == ["a b", "▁ ab"]
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"].tolist(), strict=True))
    assert {types[t] for t in ("<|channel>", "<channel|>")} == {USER_DEFINED}
    assert {types[t] for t in ("<bos>", "<turn|>")} == {CONTROL}
    assert types["<unk>"] == UNKNOWN


def test_spaces_before_a_text_are_refused(tmp_path: Path) -> None:
    folder = tokenizer_json(tmp_path, normalizer={"type": "Prepend", "prepend": "▁"})
    with pytest.raises(TokenizerError, match="space before a text"):
        tokenizer_metadata(folder, json.loads((folder / "config.json").read_text()))
