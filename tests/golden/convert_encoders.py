"""Cases of make_convert.py: encoders, which give states in place of logits."""

from __future__ import annotations

from typing import Any

from convert_case import SMALL, Case

ENCODER = {
    key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "bos_token_id", "eos_token_id")
} | {"intermediate_size": 32, "max_position_embeddings": 48}
LABELS = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
MODERN = ENCODER | {"num_hidden_layers": 4, "local_attention": 8, "bos_token_id": 1, "eos_token_id": 2}
MODERN |= {"cls_token_id": 1, "sep_token_id": 2}
GEMMA = SMALL | {"num_hidden_layers": 3, "head_dim": 16, "intermediate_size": 32, "query_pre_attn_scalar": 16}


def nomic_names(_: dict[str, Any], config: dict[str, Any]) -> None:
    """Settings by the names that the published models' own code has."""
    for new, old in (
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("layer_norm_eps", "layer_norm_epsilon"),
    ):
        config[old] = config.pop(new)
    config["rotary_emb_base"] = config.pop("rope_parameters")["rope_theta"]
    config |= NOMIC | {"n_positions": 8192, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False}


def own_window(_: dict[str, Any], config: dict[str, Any]) -> None:
    """The window as published models state it, not half of it, which transformers saves."""
    config["sliding_window"] = 8


NOMIC = {
    "activation_function": "swiglu",
    "causal": False,
    "prenorm": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}


def embeddings(*names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of tables and the norm behind them."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (96, 32),
        "embeddings.token_type_embeddings.weight": (2, 32),
    }
    return shapes | {f"{name}.{part}": (32,) for name in names for part in ("weight", "bias")}


def linears(prefix: str, biases: bool, **shapes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of matrices of a layer, and of their biases. Two underscores stand for a point."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        stem = f"{prefix}.{name.replace('__', '.')}"
        found[f"{stem}.weight"] = shape
        if biases:
            found[f"{stem}.bias"] = shape[:1]
    return found


def norms(prefix: str, *names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of norms of a layer."""
    return {f"{prefix}.{name}.{part}": (32,) for name in names for part in ("weight", "bias")}


def jina(more: tuple[str, ...], up: str, down: str, last: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer of Jina BERT 2, in its versions."""
    blk, square = "encoder.layer.0", (32, 32)
    return (
        embeddings("embeddings.LayerNorm")
        | linears(f"{blk}.attention", True, self__query=square, self__key=square, self__value=square)
        | linears(f"{blk}.attention", True, output__dense=square)
        | norms(blk, "attention.output.LayerNorm", *more, last)
        | {f"{blk}.mlp.{up}.weight": (96, 32), f"{blk}.mlp.{down}.weight": (32, 48), f"{blk}.mlp.{down}.bias": (32,)}
        | {"pooler.dense.weight": square, "pooler.dense.bias": (32,)}
    )


def nomic_experts() -> dict[str, tuple[int, ...]]:
    """Shapes of two layers of Nomic BERT 2, the second with experts."""
    shapes = embeddings("emb_ln")
    for il in range(2):
        blk = f"encoder.layers.{il}"
        shapes |= linears(blk, True, attn__Wqkv=(96, 32), attn__out_proj=(32, 32)) | norms(blk, "norm1", "norm2")
    return (
        shapes
        | linears("encoder.layers.0", True, mlp__fc1=(64, 32), mlp__fc2=(32, 64))
        | linears("encoder.layers.1", False, mlp__router__layer=(4, 32))
        | {f"encoder.layers.1.mlp.experts.mlp.{name}": (256, 32) for name in ("w1", "w2")}
        | {"encoder.layers.1.mlp.experts.bias": (32,)}
    )


JINA = {
    "architectures": ["JinaBertForMaskedLM"],
    "model_type": "bert",
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
}

ENCODERS: dict[str, Case] = {
    "bert": Case("Bert", ENCODER, "float32", head="Model"),
    "bert-masked": Case("Bert", ENCODER | {"hidden_act": "gelu_new"}, "float16", head="ForMaskedLM"),
    "bert-classifier": Case("Bert", ENCODER | LABELS, "float16", head="ForSequenceClassification"),
    "roberta": Case("Roberta", ENCODER | {"pad_token_id": 3}, "float16", head="Model"),
    "xlm-roberta-classifier": Case(
        "XLMRoberta",
        ENCODER | {"pad_token_id": 3, "type_vocab_size": 1, "num_labels": 1},
        "float16",
        head="ForSequenceClassification",
    ),
    "nomic-bert": Case("NomicBert", ENCODER, head="Model"),
    "nomic-bert-names": Case("NomicBert", ENCODER, "float16", head="Model", after=nomic_names, foreign=True),
    "modern-bert": Case("ModernBert", MODERN, head="Model"),
    "modern-bert-classifier": Case(
        "ModernBert",
        MODERN | LABELS | {"classifier_pooling": "mean", "hidden_activation": "silu"},
        head="ForSequenceClassification",
    ),
    "modern-bert-pattern": Case(
        "ModernBert",
        MODERN | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        head="ForMaskedLM",
    ),
    "eurobert": Case(
        "EuroBert",
        ENCODER | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3},
        head="Model",
    ),
    "gemma-embedding": Case(
        "Gemma3Text",
        GEMMA | {"use_bidirectional_attention": True, "sliding_window": 8},
        head="Model",
        after=own_window,
    ),
    "jina-bert-v2": Case("", ENCODER | JINA, "float16", shapes=jina((), "gated_layers", "wo", "mlp.layernorm")),
    "jina-bert-v2-norms": Case(
        "",
        ENCODER | JINA,
        "float16",
        shapes=jina(
            ("layer_norm_1", "attention.self.layer_norm_q", "attention.self.layer_norm_k"),
            "up_gated_layer",
            "down_layer",
            "layer_norm_2",
        ),
    ),
    "nomic-bert-moe": Case(
        "",
        NOMIC
        | {"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": 96, "type_vocab_size": 2}
        | {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048, "layer_norm_epsilon": 1e-5}
        | {"activation_function": "gelu", "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True}
        | {"num_experts": 4, "moe_every_n_layers": 2, "moe_top_k": 2, "moe_normalize_expert_weights": False}
        | {"rotary_emb_base": 10000.0, "max_trained_positions": 2048},
        "float16",
        shapes=nomic_experts(),
    ),
}
