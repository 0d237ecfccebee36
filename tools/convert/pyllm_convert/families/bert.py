"""Encoders: BERT, RoBERTa, Nomic BERT (with experts too), Jina BERT 2, ModernBERT, EuroBERT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy
from pyllm_convert.sentence_transformers import CLS, MEAN, RANK

_CLASS = re.compile(r"(?:bert|roberta|nomic_bert|model)\.")
"""What classes with a head put before the names of the encoder's tensors."""
_LAYER = re.compile(r"(?:encoder\.)?layers?\.(?=\d)")
_HEADS = re.compile(r"(?:pooler|classifier|cls|lm_head|decoder|head)\.")
"""Parts behind the encoder: only a classifier's have a place."""
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


class Encoder(Family):
    """Tokens see later ones. There are no logits; classes for sequence classification have a classifier."""

    layer_norm = True
    has_head = False
    rotates: ClassVar[bool] = True
    """Positions are rotations."""
    type_vocab_size: ClassVar[int] = 2
    """Types of tokens, where config.json does not say."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.n_labels = 0

    @property
    def is_classifier(self) -> bool:
        """The class has a classifier of texts."""
        named = self.config.get("architectures")
        return isinstance(named, list) and bool(named) and str(named[0]).endswith("ForSequenceClassification")

    def look(self, stored: Mapping[str, Lazy]) -> None:
        for name, t in stored.items():
            own = self.own_name(name)
            if own is not None and self.top_names.get(own.removesuffix(".weight")) == "cls.output":
                self.n_labels = lazy.require(t, 2).shape[0]
        if self.is_classifier and not self.n_labels:
            raise ModelError("the checkpoint has no classifier, and config.json says that it needs one")

    def metadata(self) -> dict[str, Any]:
        self.refuse("is_decoder", False)
        keys = super().metadata() | {"attention.causal": False}
        if not self.rotates:
            keys = {key: value for key, value in keys.items() if not key.startswith("rope.")}
        if self.is_classifier:
            names = self.config.table("id2label")
            labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(self.n_labels)]
            keys |= {"pooling_type": RANK, "classifier.output_labels": labels}
        return keys

    def other_metadata(self) -> dict[str, Any]:
        return {"tokenizer.ggml.token_type_count": self.config.integer("type_vocab_size", default=self.type_vocab_size)}

    def own_name(self, name: str) -> str | None:
        name = _CLASS.sub("", name, count=1) if _CLASS.match(name) else name
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        if name.endswith(".position_ids"):
            return None
        if _HEADS.match(name) and not (self.is_classifier and name.rpartition(".")[0] in self.top_names):
            return None
        return _LAYER.sub("model.layers.", name, count=1) if _LAYER.match(name) else name


class Bert(Encoder):
    """Learned positions; norms behind attention and feed-forward."""

    arch = "bert"
    act = "gelu"
    other_acts = _TANH_GELU
    rotates = False
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 512, "layer_norm_eps": 1e-12}
    top_names: ClassVar[Mapping[str, str]] = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        "pooler.dense": "cls",
        "classifier": "cls.output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("position_embedding_type", "absolute")
        return super().metadata()


class Roberta(Bert):
    """The first positions are those of padding, and left out."""

    type_vocab_size = 1
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 512, "layer_norm_eps": 1e-12, "pad_token_id": 1}
    top_names: ClassVar[Mapping[str, str]] = {
        **{name: new for name, new in Bert.top_names.items() if name.startswith("embeddings.")},
        "classifier.dense": "cls",
        "classifier.out_proj": "cls.output",
    }

    @property
    def n_skipped(self) -> int:
        """Positions before the first token's."""
        return self.config.integer("pad_token_id", least=0) + 1

    def metadata(self) -> dict[str, Any]:
        self.refuse("lora_adaptations")
        n = self.config.integer("max_position_embeddings", least=self.n_skipped + 1, most=1 << 31)
        return super().metadata() | {"context_length": n - self.n_skipped}

    def transform(self, name: str, t: Lazy) -> Lazy:
        t = super().transform(name, t)
        return lazy.slice_rows(t, self.n_skipped, t.shape[0]) if name.startswith("embeddings.position_") else t


_NOMIC_NAMES = {  # of settings, before transformers had the class
    "n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_positions": "max_position_embeddings", "moe_top_k": "num_experts_per_tok",
    "layer_norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rope_theta",
}  # fmt: skip


class NomicBert(Encoder):
    """Rotated positions, gated feed-forward without biases."""

    arch = "nomic-bert"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "layer_norm_eps": 1e-12}
    activation: ClassVar[str] = "swiglu"
    biases: ClassVar[bool] = False
    top_names: ClassVar[Mapping[str, str]] = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "norm1": "attn_output_norm",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc2": "ffn_down",
        "norm2": "layer_output_norm",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        named = {new: config[old] for old, new in _NOMIC_NAMES.items() if config.get(old) is not None}
        super().__init__({**config, **named})

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        return NomicBertMoE if config.get("moe_every_n_layers") else cls

    def metadata(self) -> dict[str, Any]:
        for key, allowed in {
            "activation_function": (self.activation,),
            "causal": (False,),
            "prenorm": (False,),
            "rotary_emb_fraction": (1.0,),
            "rotary_emb_interleaved": (False,),
            "rotary_emb_scale_base": (),
            "rotary_scaling_factor": (),
            "qkv_proj_bias": (self.biases,),
            "mlp_fc1_bias": (self.biases,),
            "mlp_fc2_bias": (self.biases,),
        }.items():
            self.refuse(key, *allowed)
        return super().metadata() | {"context_length": self.n_positions}

    @property
    def n_positions(self) -> int:
        """Positions that the model was trained for: fewer than older settings say it can take."""
        n = self.config.integer("max_position_embeddings", most=1 << 31)
        return min(n, self.config.integer("max_trained_positions", default=2048, most=1 << 31))

    def own_name(self, name: str) -> str | None:
        return super().own_name(re.sub(r"(^|\.)emb_ln\.", r"\1embeddings.LayerNorm.", name))


class NomicBertMoE(NomicBert):
    """Experts on the second of every so many layers; feed-forward of others is not gated. All have biases."""

    arch = "nomic-bert-moe"
    act = "gelu"
    activation = "gelu"
    biases = True
    layer_names: ClassVar[dict[str, str]] = {
        **{name: new for name, new in NomicBert.layer_names.items() if not name.startswith("mlp.")},
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
        "mlp.router.layer": "ffn_gate_inp",
    }

    @property
    def n_positions(self) -> int:
        n = self.config.integer("max_position_embeddings", most=1 << 31)
        return 512 if n == 2048 else super().n_positions  # the published model's, which was trained for fewer

    def metadata(self) -> dict[str, Any]:
        self.refuse("moe_normalize_expert_weights", False)
        return super().metadata() | {"moe_every_n_layers": self.config.integer("moe_every_n_layers")}

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "mlp.experts.bias":
            if lazy.require(t, 1).floats(0, 1).any():
                self.notes.append(f"{t.name} is left out, as in llama.cpp's files, which have no place for it")
        elif name in ("mlp.experts.mlp.w1", "mlp.experts.mlp.w2"):
            shape = (self.n_experts, self.n_ff, self.n_embd)
            if lazy.require(t, 2).shape != (self.n_experts * self.n_ff, self.n_embd):
                raise ModelError(f"tensor {t.name} has the shape {t.shape}; {shape[0]} experts need {shape[1:]} each")
            experts = replace(t, shape=shape)
            up = name.endswith("w1")
            yield f"ffn_{'up' if up else 'down'}_exps.weight", experts if up else lazy.transposed(experts)
        else:
            yield from super().layer_tensor(name, t)


class JinaBert(Bert):
    """ALiBi instead of positions, gated feed-forward; norms of queries and keys in some models."""

    arch = "jina-bert-v2"
    top_names: ClassVar[Mapping[str, str]] = {
        name: new for name, new in NomicBert.top_names.items() if name.startswith("embeddings.")
    }
    layer_names: ClassVar[dict[str, str]] = Bert.layer_names | {
        "attention.self.layer_norm_q": "attn_q_norm",
        "attention.self.layer_norm_k": "attn_k_norm",
        "layer_norm_1": "attn_norm_2",
        "layer_norm_2": "layer_output_norm",
        "mlp.gated_layers": "ffn_up",
        "mlp.up_gated_layer": "ffn_up",
        "mlp.wo": "ffn_down",
        "mlp.down_layer": "ffn_down",
        "mlp.layernorm": "layer_output_norm",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("feed_forward_type", "geglu")
        if self.config.text("position_embedding_type", default="alibi") != "alibi":
            self.refuse("position_embedding_type", "alibi")
        return Encoder.metadata(self)


class ModernBert(Encoder):
    """Norms before attention and feed-forward; windows on most layers, which rotate with a base of their own."""

    arch = "modern-bert"
    act = "gelu"
    other_acts = ("silu",)
    window_period = 3
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "rope_theta": 160000.0,
        "rope_local_base_freq": 10000.0,
        "local_attention": 128,
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "final_norm": "output_norm",
        "head.dense": "cls",
        "head.norm": "cls.norm",
        "classifier": "cls.output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "attn_norm": "attn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.Wo": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn_up",
        "mlp.Wo": "ffn_down",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        named = {"rope_theta": config.get("global_rope_theta"), "rope_local_base_freq": config.get("local_rope_theta")}
        super().__init__({**config, **{key: value for key, value in named.items() if value is not None}})

    def metadata(self) -> dict[str, Any]:
        for key in ("attention_bias", "mlp_bias", "norm_bias"):
            self.refuse(key, False)
        keys = super().metadata() | {"hidden_activation": self.config.text("hidden_activation", default=self.act)}
        keys["rope.scaling.type"] = "none"
        self.refuse("classifier_activation", "gelu")
        self.refuse("classifier_pooling", "cls", "mean")
        pooling = self.config.text("classifier_pooling", default="cls")
        return keys | {"classifier.pooling_type": MEAN if pooling == "mean" else CLS}

    def windows(self) -> dict[str, Any]:
        """Half of a window reaches to each side. The first layer of a period has none."""
        period = self.config.integer("global_attn_every_n_layers", default=self.window_period)
        regular = [il % period > 0 for il in range(self.n_layers)]
        stated = self.window_pattern() if self.config.get("layer_types") is not None else regular
        return {
            "attention.sliding_window": self.config.integer("local_attention", most=1 << 31),
            "attention.sliding_window_pattern": period if stated == regular else stated,
        }


class EuroBert(Encoder):
    """Llama's layers."""

    arch = "eurobert"
    layer_norm = False
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    type_vocab_size = 1
    top_names: ClassVar[Mapping[str, str]] = {"embed_tokens": "token_embd", "norm": "output_norm"}

    def metadata(self) -> dict[str, Any]:
        self.refuse("attention_bias", False)
        self.refuse("mlp_bias", False)
        return super().metadata() | {"rope.scaling.type": "none"}


FAMILIES = {
    "BertModel": Bert,
    "BertForMaskedLM": Bert,
    "BertForSequenceClassification": Bert,
    "RobertaModel": Roberta,
    "RobertaForMaskedLM": Roberta,
    "RobertaForSequenceClassification": Roberta,
    "XLMRobertaModel": Roberta,
    "XLMRobertaForMaskedLM": Roberta,
    "XLMRobertaForSequenceClassification": Roberta,
    "NomicBertModel": NomicBert,
    "NomicBertForMaskedLM": NomicBert,
    "JinaBertModel": JinaBert,
    "JinaBertForMaskedLM": JinaBert,
    "ModernBertModel": ModernBert,
    "ModernBertForMaskedLM": ModernBert,
    "ModernBertForSequenceClassification": ModernBert,
    "EuroBertModel": EuroBert,
    "EuroBertForMaskedLM": EuroBert,
}
