"""Encoders, and what sentence-transformers puts around a model: metadata, tensors, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import GOLDEN, copy_with, write_tensors

import pyllm
from pyllm.errors import ModelError
from pyllm_convert import Conversion, convert

POOLING = "1_Pooling"
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}


def with_modules(
    folder: Path, case: str, pooling: dict[str, Any], dense: list[dict[str, Any]] | None = None, changes: Any = None
) -> Path:
    """A golden folder as sentence-transformers saves it."""
    copy_with(case, folder, changes or {})
    kinds = ["Transformer", "Pooling", *["Dense" for _ in dense or []], "Normalize"]
    modules = [{"idx": i, "path": f"{i}_{k}" if i else "", "type": f"st.models.{k}"} for i, k in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / POOLING).mkdir()
    (folder / POOLING / "config.json").write_text(json.dumps(pooling))
    n = 32
    for i, settings in enumerate(dense or [], 2):
        (folder / f"{i}_Dense").mkdir()
        (folder / f"{i}_Dense" / "config.json").write_text(json.dumps(settings))
        shape = (settings["out_features"], settings["in_features"])
        weights = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape) / n
        write_tensors(folder / f"{i}_Dense" / "model.safetensors", {"linear.weight": weights})
    return folder


def keys_of(folder: Path) -> dict[str, Any]:
    with Conversion(folder, tokenizer=False) as model:
        return {key: value.value for key, value in model.metadata.items()}


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        (MEAN, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, 3),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode": "mean"}, 1),
    ],
)
@pytest.mark.parametrize("case", ["bert", "qwen3"])
def test_pooling(tmp_path: Path, case: str, pooling: dict[str, Any], number: int) -> None:
    assert keys_of(with_modules(tmp_path / "m", case, pooling))[f"{case}.pooling_type"] == number


@pytest.mark.parametrize(
    "pooling",
    [
        {},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["mean", "cls"]},
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="1_Pooling pools by"):
        keys_of(with_modules(tmp_path / "m", "bert", pooling))


def test_dense_layers(tmp_path: Path) -> None:
    """They come behind the pooling, in the order of modules.json."""
    dense = [{"in_features": 32, "out_features": 64, "bias": False}, {"in_features": 64, "out_features": 32}]
    folder = with_modules(tmp_path / "m", "gemma-embedding", MEAN, dense)
    keys = keys_of(folder)
    assert [keys[f"gemma-embedding.dense_{i}_feat_{way}"] for i in (2, 3) for way in ("in", "out")] == [32, 64, 64, 32]
    convert(folder, tmp_path / "with.gguf", tokenizer=False)
    convert(GOLDEN / "gemma-embedding", tmp_path / "without.gguf", tokenizer=False)
    rows = []
    for name in ("with", "without"):
        with pyllm.load(tmp_path / f"{name}.gguf", backend="reference", kv_dtype="f32") as llm:
            rows.append(llm.embed([5, 6, 7], normalize=False))
    first, second = (np.arange(2048, dtype=np.float32).reshape(shape) / 32 for shape in ((64, 32), (32, 64)))
    np.testing.assert_allclose(rows[0], second @ (first @ rows[1]), rtol=0.02)


def test_dense_layers_with_an_activation_are_refused(tmp_path: Path) -> None:
    dense = [{"in_features": 32, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"}]
    with pytest.raises(ModelError, match=r"2_Dense has the activation .*Tanh"):
        keys_of(with_modules(tmp_path / "m", "bert", MEAN, dense))


@pytest.mark.parametrize("path", ["../other", "a/b", "", "..", "C:x", 5])
def test_folders_elsewhere_are_not_read(tmp_path: Path, path: Any) -> None:
    folder = with_modules(tmp_path / "m", "bert", MEAN)
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Pooling", "path": path}]))
    with pytest.raises(ModelError):
        keys_of(folder)


@pytest.mark.parametrize("modules", ["{}", "[5]", '[{"type": "st.models.CNN", "path": "1_CNN"}]', "nothing"])
def test_other_modules_are_refused(tmp_path: Path, modules: str) -> None:
    folder = with_modules(tmp_path / "m", "bert", MEAN)
    (folder / "modules.json").write_text(modules)
    with pytest.raises(ModelError, match=r"modules\.json"):
        keys_of(folder)


def test_prompts(tmp_path: Path) -> None:
    folder = with_modules(tmp_path / "m", "bert", MEAN)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": "query"}))
    keys = keys_of(folder)
    assert keys["sentence_transformers.prompt.query"] == "find: "
    assert keys["sentence_transformers.prompt.document"] == ""
    assert keys["sentence_transformers.default_prompt_name"] == "query"
    for wrong in ({"prompts": ["a"]}, {"prompts": {"a": 5}}, {"prompts": {}, "default_prompt_name": "query"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=r"config_sentence_transformers\.json"):
            keys_of(folder)


def test_labels_and_pooling_of_classifiers() -> None:
    keys = keys_of(GOLDEN / "bert-classifier")
    assert keys["bert.classifier.output_labels"] == ["bad", "fair", "good"]
    assert keys["bert.pooling_type"] == 4
    assert keys_of(GOLDEN / "modern-bert-classifier")["modern-bert.classifier.pooling_type"] == 1


def test_rerankers_of_qwen3(tmp_path: Path) -> None:
    """The rows of "yes" and "no" become the classifier, the prompt a chat template."""
    folder = copy_with("qwen3", tmp_path / "Qwen3-Reranker-tiny", {})
    tokens = [f"t{i}" for i in range(94)] + ["no", "yes"]
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}
    pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": pre}))
    with Conversion(folder) as found:
        keys = {key: value.value for key, value in found.metadata.items()}
        table, rows = (found.tensors[f"{name}.weight"] for name in ("token_embd", "cls.output"))
        assert np.array_equal(rows.read(0, 2), table.read(0, 96)[[95, 94]])
        assert "output.weight" not in found.tensors
    assert (keys["qwen3.pooling_type"], keys["qwen3.classifier.output_labels"]) == (4, ["yes", "no"])
    assert "{query}" in keys["tokenizer.chat_template.rerank"]
    with pytest.raises(ModelError, match='"yes" and "no"'):
        keys_of(folder)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"is_decoder": True}),
        ("roberta", {"lora_adaptations": ["retrieval"]}),
        ("nomic-bert-names", {"prenorm": True}),
        ("nomic-bert-moe", {"activation_function": "swiglu"}),
        ("jina-bert-v2", {"feed_forward_type": "original"}),
        ("modern-bert", {"mlp_bias": True}),
        ("eurobert", {"attention_bias": True}),
    ],
)
def test_settings_without_a_place_are_refused(tmp_path: Path, case: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="no place"):
        keys_of(copy_with(case, tmp_path / "m", changes))
