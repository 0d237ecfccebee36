"""config.json and tensors of a folder: what becomes of them, and what is refused, in one clear error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import GOLDEN, LLAMA, copy_with, file_bytes, keys_of, llama_tensors, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.errors import ModelError, PyllmError
from pyllm_convert import Conversion, families


def convert(
    folder: Path, changes: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Any]:
    return keys_of(write_folder(folder, {**LLAMA, **changes}, tensors))


def test_keys(tmp_path: Path) -> None:
    keys = keys_of(write_folder(tmp_path / "Tiny-Llama"))
    assert keys == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Tiny-Llama",
        "general.size_label": "10K",
        "general.quantization_version": 2,
        "general.file_type": 0,
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 16,
        "tokenizer.ggml.model": "none",
    }


def test_names_and_order(tmp_path: Path) -> None:
    with Conversion(write_folder(tmp_path), tokenizer=False) as model:
        assert list(model.tensors) == [
            "token_embd.weight",
            "blk.0.attn_k.weight",
            "blk.0.attn_norm.weight",
            "blk.0.attn_output.weight",
            "blk.0.attn_q.weight",
            "blk.0.attn_v.weight",
            "blk.0.ffn_down.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_norm.weight",
            "blk.0.ffn_up.weight",
            "output.weight",
            "output_norm.weight",
        ]


def test_matrices_keep_their_precision_vectors_become_float32() -> None:
    with Conversion(GOLDEN / "mixtral", tokenizer=False) as model:
        kept = {n: t.keep for n, t in model.tensors.items()}
        assert model.metadata["general.file_type"].value == 32
    assert {kept[f"blk.0.{n}.weight"] for n in ("attn_norm", "ffn_norm", "ffn_gate_inp")} == {"F32"}
    assert {kept[f"blk.0.{n}.weight"] for n in ("attn_q", "ffn_down_exps")} == {"BF16"}
    with Conversion(GOLDEN / "llama-fp8-blocks", tokenizer=False) as model:
        assert (model.tensors["blk.0.attn_q.weight"].keep, model.metadata["general.file_type"].value) == ("BF16", 32)
        assert model.tensors["blk.0.attn_q.weight"].format == "F32"
    with Conversion(GOLDEN / "gpt-oss-mxfp4", tokenizer=False) as model:
        assert (model.tensors["blk.1.ffn_up_exps.weight"].keep, model.metadata["general.file_type"].value) == (
            "MXFP4",
            38,
        )


def test_readme_and_generation_config(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Small-1B" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    write_folder(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": NaN, "min_p": "x"}')
    keys = keys_of(folder)
    assert keys["general.name"] == "Small-1B"
    assert keys["general.license"] == "apache-2.0"
    assert {k: v for k, v in keys.items() if "sampling" in k} == {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
    }
    assert keys_of(folder, name="Other")["general.name"] == "Other"


def test_unknown_architecture_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'FalconForCausalLM'.*GptOssForCausalLM.*SmolLM3ForCausalLM"):
        convert(tmp_path, {"architectures": ["FalconForCausalLM"]})
    for names in (None, [], "LlamaForCausalLM", [3]):
        with pytest.raises(ModelError, match="names no architecture"):
            convert(tmp_path, {"architectures": names})


def test_every_family_has_a_golden_folder() -> None:
    """Of encoders, whose heads are left out, any class will do."""
    configs = [json.loads(p.read_text()) for p in GOLDEN.glob("*/config.json")]
    seen = {config["architectures"][0] for config in configs}
    kinds = {families.family_of(config) for config in configs}
    for name in families.names():
        kind = families.family_of({"architectures": [name]})
        assert name in seen or "Conditional" in name or (not kind.has_head and kind in kinds), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"hidden_size": 1 << 40}, "not a count"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers is '1'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rms_norm_eps": 2}, "epsilon"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": -5.0}, "rotary"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"type": "yarn", "factor": float("inf")}}, "factor is inf"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}, "llama3"),
        ({"rope_scaling": {"rope_type": "magic"}}, "'magic' cannot be converted"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": "yarn"}, "not a table"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "4 numbers"),
        ({"hidden_act": "relu"}, "'relu' cannot be converted"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_key_value_heads": 3}, "k_proj"),
        ({"intermediate_size": 96}, "ffn_"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": 3}, "quantization_config is no table"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        convert(tmp_path, changes)


def replaced(name: str, value: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    """The tensors with another in this place, or without."""
    tensors: dict[str, Any] = llama_tensors() | {name: value}
    return {n: t for n, t in tensors.items() if t is not None}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lm_head.weight", None, "no lm_head.weight"),
        ("model.norm.weight", None, "output_norm"),
        ("model.layers.0.mlp.up_proj.weight", None, "ffn_up"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros((64, 31), np.float32), "ffn_up"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros(64, np.float32), "up_proj.weight has the shape"),
        ("model.layers.0.self_attn.q_proj.weight", np.zeros((36, 32), np.float32), "q_proj.weight has 36 rows"),
        ("model.layers.0.mlp.up_proj.weight", np.zeros((64, 32), np.uint8), "holds U8"),
        ("model.layers.1.mlp.up_proj.weight", np.zeros((64, 32), np.float32), "counts 1 layers"),
        ("model.layers.0.mlp.side_proj.weight", np.zeros((64, 32), np.float32), "side_proj.weight is no part of llama"),
        ("score.weight", np.zeros((2, 32), np.float32), "score.weight is no part"),
        ("language_model.model.norm.weight", np.ones(32, np.float32), "both become output_norm"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, value: NDArray[Any] | None, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        convert(tmp_path, {}, replaced(name, value))


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3moe", {"norm_topk_prob": None}, "norm_topk_prob is False"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3moe", {"num_local_experts": 5}, "experts of 4|matrices of 4 experts"),
        ("qwen3moe", {"num_experts_per_tok": 9}, "experts"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "every fourth layer"),
        ("gemma2", {"attn_logit_softcapping": None}, "always have a cap"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"layer_types": ["sliding_attention"]}, "layer_types"),
        ("gemma3", {"layer_types": ["sliding_attention", "chunked", "x"]}, "layer_types"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "rotary"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit"),
        ("olmo2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("qwen2moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("internlm2", {"num_attention_heads": 8}, "wqkv.weight has 64 rows; 8 heads with 2"),
        ("internlm2-bias", {"num_key_value_heads": 3}, "4 heads with 3"),
        ("hunyuan-dense", {"num_experts": 4}, "num_experts is 4, but the architecture is a dense one"),
        ("hunyuan-dense", {"use_cla": True}, "use_cla is True"),
        ("hunyuan-dense", {"attention_head_dim": 8}, "attention_head_dim is 8"),
        ("hunyuan-dense-alpha", {"rope_parameters": {"type": "dynamic", "alpha": -2}}, "alpha -2"),
        ("hunyuan-dense-alpha", {"rope_parameters": {"type": "dynamic", "alpha": 1e29}}, "alpha is"),
        ("hunyuan-moe", {"moe_topk": [1, 2]}, r"moe_topk is \[1, 2\]; layers must have the same"),
        ("hunyuan-moe", {"moe_intermediate_size": 16}, "moe_intermediate_size is 16; hunyuan-moe files mean 8"),
        ("hunyuan-moe", {"num_shared_expert": [2, 2]}, "num_shared_expert is 2"),
        ("hunyuan-moe", {"use_cla": True}, "use_cla is True"),
        ("hunyuan-moe", {"moe_layer_num_skipped": 1}, "moe_layer_num_skipped"),
        ("minimax-m2", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("minimax-m2", {"attn_type_list": [0, 1]}, "attn_type_list"),
        ("minimax-m2", {"layernorm_mlp_beta": 0.5}, "layernorm_mlp_beta is 0.5"),
        ("minimax-m2", {"rotary_dim": 32}, "partial_rotary_factor is 2.0"),
        ("gptneox", {"hidden_size": 64}, "query_key_value.*4 heads need 192"),
        ("gptneox", {"hidden_act": "relu"}, "'relu' cannot be converted"),
        ("phi2", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("stablelm", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "no even number of columns"),
        ("stablelm-parallel", {"use_parallel_residual": False}, "layer 0 has no post_attention_layernorm"),
        ("stablelm-parallel", {"num_key_value_heads": 4}, "norms of 2 heads; config.json counts 4"),
        ("starcoder2", {"sliding_window": -1}, "sliding_window is -1"),
        ("granite", {"attention_multiplier": 0}, "attention_multiplier is 0"),
        ("granitemoe", {"num_local_experts": 0}, "num_local_experts is 0"),
        ("seed-oss", {"mlp_bias": True}, "mlp_bias is True"),
        ("seed-oss", {"attention_out_bias": True}, "attention_out_bias is True"),
        ("command-r", {"attention_bias": True}, "attention_bias is True"),
        ("command-r", {"logit_scale": 0}, "logit_scale is 0"),
        ("command-r", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ("cohere2", {"layer_types": ["chunked"] * 4}, "layer_types"),
        ("ernie4_5", {"use_bias": True}, "use_bias is True"),
        ("ernie4_5-moe", {"moe_layer_end_index": 2}, "moe_layer_end_index is 2"),
        ("ernie4_5-moe", {"moe_num_experts": 5}, "experts"),
        ("exaone4-windows", {"layer_types": ["full_attention"] * 4}, "window for no layer"),
        ("exaone4-windows", {"layer_types": None, "sliding_window_pattern": "LLX"}, "'LLX'"),
        ("glm4", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "partial_rotary_factor"),
        ("glm4moe", {"n_group": 2}, "n_group is 2"),
        ("glm4moe-next", {"num_nextn_predict_layers": 0}, "counts 2 layers"),
    ],
)
def test_settings_without_a_place(tmp_path: Path, case: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        keys_of(copy_with(case, tmp_path, changes))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([0, 1, 2, -1, 7, 10**18, 0.5, -0.0, 1e300, float("nan"), float("inf")])
    | st.sampled_from(["", "yarn", "llama3", "longrope", "linear", "sliding_attention", "float-quantized"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "quant_method"]), inner
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_are_an_error_or_a_model(tmp_path: Path, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(sorted(p.parent.name for p in GOLDEN.glob("*/model.safetensors"))))
    config = json.loads((GOLDEN / case / "config.json").read_text())
    extra = ["rope_scaling", "rope_theta", "text_config", "quantization_config", "partial_rotary_factor"]
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(config) + extra), JSON, min_size=1, max_size=3))
    with contextlib.suppress(PyllmError):
        keys_of(copy_with(case, tmp_path / case, changes))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("gemma4-e", "Gemma4ForConditionalGeneration"),
        ("gemma4", "Gemma4UnifiedForConditionalGeneration"),
    ],
)
def test_language_model_within_another(case: str, name: str, tmp_path: Path) -> None:
    """With eyes and ears: settings under text_config, tensors under a prefix, the others left out."""
    inner = json.loads((GOLDEN / case / "config.json").read_text())
    wanted = keys_of(GOLDEN / case)
    with Conversion(GOLDEN / case, tokenizer=False) as model:
        plain = {t.values.name: t.read(0, t.values.n_rows) for t in model.tensors.values()}
        names = {t.values.name: t.name for t in model.tensors.values()}
        raw = {n: t.rows(0, t.n_rows).reshape(t.shape) for n, t in model.checkpoint.tensors.items()}
    for prefix in ("language_model.model.", "model.language_model."):
        tensors = {prefix + n.removeprefix("model."): t for n, t in raw.items()}
        tensors["vision_tower.vision_model.embeddings.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.multi_modal_projector.mm.weight"] = np.zeros((2, 2), np.float32)
        for part in ("embed_vision", "embed_audio", "vision_embedder", "audio_tower"):
            tensors[f"model.{part}.embedding_projection.weight"] = np.zeros((2, 2), np.float32)
        config = {"architectures": [name], "text_config": inner | {"architectures": None}}
        write_folder(tmp_path / case, config, tensors)
        assert keys_of(tmp_path / case) == wanted
        with Conversion(tmp_path / case, tokenizer=False) as model:
            got = {t.name: t.read(0, t.values.n_rows) for t in model.tensors.values()}
        assert all(np.array_equal(got[names[n]], values) for n, values in plain.items())


@pytest.mark.parametrize("style", ["old", "new"])
def test_rope_settings_of_both_styles(tmp_path: Path, style: str) -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5}
    if style == "old":
        changes: dict[str, Any] = {"rope_theta": 5e5, "rope_scaling": scaling | {"type": "yarn"}}
    else:
        changes = {"rope_parameters": scaling | {"rope_type": "yarn", "rope_theta": 5e5}}
    keys = convert(tmp_path, changes)
    assert keys["llama.rope.freq_base"] == 5e5
    assert keys["llama.rope.scaling.type"] == "yarn"
    assert keys["llama.rope.scaling.factor"] == 4.0
    assert keys["llama.rope.scaling.original_context_length"] == 32
    assert keys["llama.rope.scaling.attn_factor"] == pytest.approx(1.5 / (1 + 0.1 * np.log(4)))


def _is_older(config: Path) -> bool:
    """Is the family older than transformers 5, and are its settings as that writes them?"""
    return '"rope_parameters"' in config.read_text() and not config.parent.name.startswith("gemma4")


@pytest.mark.parametrize("case", sorted(p.parent.name for p in GOLDEN.glob("*/config.json") if _is_older(p)))
def test_settings_as_transformers_4_wrote_them(case: str, tmp_path: Path) -> None:
    """rope_theta and rope_scaling in place of rope_parameters, torch_dtype in place of dtype; defaults left out."""
    config = json.loads((GOLDEN / case / "config.json").read_text())
    rope = config["rope_parameters"]
    full = dict(rope.get("full_attention", rope))
    old: dict[str, Any] = {"rope_parameters": None, "rope_theta": full.pop("rope_theta")}
    if case == "gemma3":
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in full:
        old["partial_rotary_factor"] = full.pop("partial_rotary_factor")
    kind = full.pop("rope_type")
    if kind != "default":
        old["rope_scaling"] = full | {"type": kind}
    if kind == "longrope":
        old["original_max_position_embeddings"] = old["rope_scaling"].pop("original_max_position_embeddings")
    keys, wanted = keys_of(copy_with(case, tmp_path / case, old)), keys_of(GOLDEN / case)
    if case.startswith("olmo3"):
        assert "olmo2.rope.freq_base_swa" not in wanted
    assert keys == wanted


@pytest.mark.parametrize(("pattern", "wanted"), [("LLLG", [True, True, True, False]), ("LG", [True, False] * 2)])
def test_windows_as_a_word(pattern: str, wanted: list[bool], tmp_path: Path) -> None:
    changes = {"layer_types": None, "sliding_window_pattern": pattern}
    keys = keys_of(copy_with("exaone4-windows", tmp_path, changes))
    assert keys["exaone4.attention.sliding_window_pattern"] == wanted


def test_what_a_file_cannot_say_is_noted(tmp_path: Path) -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16}
    with Conversion(write_folder(tmp_path, {**LLAMA, **mistral}), tokenizer=False) as model:
        assert model.notes == ["windows of 16 positions are left out: beyond that, attention sees more than trained"]


@pytest.mark.parametrize(
    "name", ["mtp_block.0.mlp.up_proj", "mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0"]
)
def test_parts_that_predict_further_tokens_are_left_out(name: str) -> None:
    config = json.loads((GOLDEN / "ernie4_5-moe" / "config.json").read_text())
    assert families.family_of(config)(config).own_name(f"model.{name}.weight") is None


def test_token_tables_have_as_many_rows_as_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllm.gguf.values import Value
    from pyllm_convert import conversion

    def words(n: int) -> dict[str, Value]:
        return {"tokenizer.ggml.tokens": Value.of([str(i) for i in range(n)])}

    folder = write_folder(tmp_path)
    monkeypatch.setattr(conversion, "_vocabulary", lambda folder, config: words(13))
    with Conversion(folder) as model:
        shapes = {t.name: t.shape for t in model.tensors.values()}
        assert shapes["token_embd.weight"] == shapes["output.weight"] == (13, 32)
        assert model.metadata["llama.vocab_size"].value == 13
        assert "3 rows of lm_head.weight, for which there are no tokens, are left out" in model.notes
    monkeypatch.setattr(conversion, "_vocabulary", lambda folder, config: words(17))
    with pytest.raises(ModelError, match=r"17 tokens, but model.embed_tokens.weight only 16 rows"):
        Conversion(folder)


CLASSES = {  # transformers' classes without an output head, by golden folder
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "mixtral": "MixtralModel",
    "smollm3": "SmolLM3Model",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "qwen3moe": "Qwen3MoeModel",
    "gemma2": "Gemma2Model",
    "gemma3": "Gemma3TextModel",
    "phi3": "Phi3Model",
    "gpt-oss": "GptOssModel",
    "olmo2": "Olmo2Model",
    "olmo3-yarn": "Olmo3Model",
    "qwen2moe": "Qwen2MoeModel",
    "internlm2": "InternLM2Model",
    "hunyuan-dense": "HunYuanDenseV1Model",
    "hunyuan-moe": "HunYuanMoEV1Model",
    "minimax-m2": "MiniMaxM2Model",
    "phi2": "PhiModel",
    "stablelm": "StableLmModel",
    "starcoder2": "Starcoder2Model",
    "granite": "GraniteModel",
    "granitemoe": "GraniteMoeModel",
    "granitemoe-shared": "GraniteMoeSharedModel",
    "seed-oss": "SeedOssModel",
    "command-r": "CohereModel",
    "cohere2": "Cohere2Model",
    "ernie4_5": "Ernie4_5Model",
    "ernie4_5-moe": "Ernie4_5_MoeModel",
    "exaone4": "Exaone4Model",
    "glm4": "Glm4Model",
    "glm4moe": "Glm4MoeModel",
    "gemma4": "Gemma4TextModel",
    "gemma4-e": "Gemma4TextModel",
    "gemma4-moe": "Gemma4TextModel",
}
NO_HEAD = (
    "the checkpoint has no output head (lm_head): the file's logits come from the embedding table, so it is good for "
    "embeddings, not for text"
)


def without_head(case: str, folder: Path, kind: str, prefix: str) -> Path:
    """A golden folder as save_pretrained of a class without head writes it: other names, no lm_head."""
    copy_with(case, folder, {"architectures": [kind]})
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    left_out = ("lm_head.weight", "output.weight", "__metadata__")
    named = {n.replace("model.", prefix, 1): e for n, e in header.items() if n not in left_out}
    parts, at = [], 0
    for entry in named.values():
        begin, end = entry["data_offsets"]
        parts.append(raw[start + begin : start + end])
        entry["data_offsets"] = [at, at + end - begin]
        at += end - begin
    path.write_bytes(file_bytes(named, b"".join(parts)))
    return folder


def values_of(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Every tensor's bytes, and the notes."""
    with Conversion(folder, tokenizer=False) as model:
        return {n: t.read(0, t.values.n_rows).tobytes() for n, t in model.tensors.items()}, model.notes


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_classes_without_an_output_head_are_their_families(tmp_path: Path, case: str, prefix: str) -> None:
    wanted, notes = values_of(GOLDEN / case)
    got, more = values_of(without_head(case, tmp_path / case, CLASSES[case], prefix))
    head = wanted.pop("output.weight", None)
    assert got == wanted
    assert more == (notes if head is None else [*notes, NO_HEAD])


@pytest.mark.parametrize("prefix", ["language_model.", "text_model.", "model.language_model.", "language_model.model."])
def test_language_models_within_others_by_every_prefix(tmp_path: Path, prefix: str) -> None:
    wanted, notes = values_of(GOLDEN / "gemma3")
    assert values_of(without_head("gemma3", tmp_path / "g", "Gemma3Model", prefix)) == (wanted, notes)


def test_names_without_model_go_with_a_class_with_a_head(tmp_path: Path) -> None:
    """As embedding models are published: a class with a head in config.json, no prefix and no lm_head in the file."""
    wanted, notes = values_of(GOLDEN / "qwen3moe")
    assert wanted.pop("output.weight", None) is not None
    assert values_of(without_head("qwen3moe", tmp_path / "q", "Qwen3MoeForCausalLM", "")) == (wanted, [*notes, NO_HEAD])


def test_a_head_that_should_be_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no lm_head"):
        values_of(without_head("qwen3moe", tmp_path / "q", "Qwen3MoeForCausalLM", "model."))


def test_unknown_classes_without_head_are_named_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'FalconModel' cannot be converted"):
        convert(tmp_path, {"architectures": ["FalconModel"]})
