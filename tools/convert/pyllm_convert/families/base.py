"""What families share: the settings that all have, the names of their tensors, and how experts come together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.gguf.values import Value
from pyllm_convert import lazy
from pyllm_convert.config import Config
from pyllm_convert.lazy import Lazy
from pyllm_convert.rope import Rope, rope_of

_LAYER = re.compile(r"model\.layers\.(\d{1,5})\.(.+)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d{1,5})\.(\w+)\.weight")
_EXPERT_PARTS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_LAYER_NORM_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|\.(attention|attn)\.(masked_)?bias$")
"""Tensors that old checkpoints hold though they follow from the settings."""
_OTHER_PARTS = re.compile(
    r"(^|\.)(vision_(tower|model|embedder)|visual|multi_modal_projector|audio_tower|embed_(vision|audio))\."
)
_PREFIX = re.compile(r"(?:(?:model|language_model|text_model|gpt_neox)\.)*")
"""What may stand before a tensor's own name: classes with an output head save "model.layers.0.…", those without
"layers.0.…", models of text within another "language_model.layers.0.…" or both together."""
_WITHIN_MODEL = re.compile(r"(?:.+\.)?(?:model|gpt_neox)\.")
"""Tensors of a class that has an output head beside its `model`."""
_MOST_LAYERS = 4096


class Family:
    """One architecture of GGUF: `arch`, the metadata for a config.json, and its tensors by GGUF's names.

    Methods raise ModelError for settings that the architecture has no place for.
    """

    arch: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that transformers assumes where config.json has none."""
    act: ClassVar[str] = "silu"
    other_acts: ClassVar[tuple[str, ...]] = ()
    """Further names of activations that the architecture computes."""
    rope_tensors: ClassVar[bool] = False
    """The architecture reads factors of rotary frequencies from tensors."""
    rotates_neighbours: ClassVar[bool] = False
    """Rotated pairs are neighbours in GGUF: rows of queries and keys are reordered."""
    rotates_in_part: ClassVar[bool] = False
    """Only the first columns of a head are rotated, as many as `partial_rotary_factor` says."""
    norm_offset: ClassVar[float] = 0.0
    """Added to norms: these families multiply by 1 + weight."""
    layer_norm: ClassVar[bool] = False
    """Norms subtract the mean."""
    window_period: ClassVar[int] = 0
    """All layers but every n-th have a window, if the file has no pattern (0: none has)."""
    has_head: ClassVar[bool] = True
    """The architecture gives logits."""
    tied: ClassVar[bool] = False
    """Output matrix is the embedding table, where config.json does not say."""
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate": "ffn_gate_inp",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    """Parts of a layer, without `.weight` and `.bias`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = c = Config(config, self.defaults)
        self.notes: list[str] = []
        """What the file cannot say, in words."""
        self.n_next = 0
        """Layers after the others, which predict further tokens."""
        self.n_layers = c.integer("num_hidden_layers", most=_MOST_LAYERS)
        self.n_embd = c.integer("hidden_size")
        self.n_heads = c.integer("num_attention_heads")
        self.n_kv_heads = c.integer("num_key_value_heads", default=self.n_heads)
        self.head_dim = c.integer("head_dim", default=max(1, self.n_embd // self.n_heads))
        self.n_experts = c.integer(*_EXPERT_COUNTS, default=0, least=0)
        act = c.text("hidden_act", "hidden_activation", default=self.act)
        if act not in (self.act, *self.other_acts):
            raise ModelError(f"the activation {act!r} cannot be converted; {self.arch} files mean {self.act!r}")
        self.rope: Rope = rope_of(c, self.n_rot, self.rope_tensors)
        self.notes += self.rope.notes

    @property
    def n_rot(self) -> int:
        """Columns of a head that are rotated."""
        if not self.rotates_in_part:
            return self.head_dim
        both = self.config.table("rope_parameters", "rope_scaling")
        share = both.get("partial_rotary_factor", self.config.number("partial_rotary_factor", default=1.0))
        n = int(self.head_dim * share) if isinstance(share, int | float) and 0 < share <= 1 else 0
        if n < 2 or n % 2:
            raise ModelError(f"config.json's partial_rotary_factor is {share!r}; it gives no even number of columns")
        return n

    @property
    def n_ff(self) -> int:
        """Columns inside a plain feed-forward network."""
        return self.config.integer("intermediate_size")

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        """The class for this config.json, where settings, or other files of its folder, tell architectures of one
        name apart."""
        return cls

    def look(self, stored: Mapping[str, Lazy]) -> None:
        """What the checkpoint's tensors say of the settings, before anything is converted."""

    # --- metadata

    def metadata(self) -> dict[str, Any]:
        """Keys without the architecture's prefix; ints, floats, words, lists of bools."""
        c = self.config
        keys: dict[str, Any] = {
            "block_count": self.n_layers + self.n_next,
            "context_length": c.integer("max_position_embeddings", most=1 << 31),
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            **self.epsilon(),
            "rope.dimension_count": self.n_rot,
            "vocab_size": c.integer("vocab_size"),
        }
        if self.n_experts:
            keys["expert_count"] = self.n_experts
            keys["expert_used_count"] = c.integer("num_experts_per_tok", "moe_k", "top_k_experts")
        return keys | self.rope.keys | self.windows()

    def other_metadata(self) -> dict[str, Any]:
        """Keys that do not begin with the architecture's name, whole."""
        return {}

    def with_vocabulary(
        self, placed: dict[str, Lazy], words: dict[str, Value]
    ) -> tuple[dict[str, Lazy], dict[str, Value]]:
        """Tensors and vocabulary of the file (keys `tokenizer.*`), where one depends on the other."""
        return placed, words

    def epsilon(self) -> dict[str, Any]:
        """Key of what norms add to the mean square."""
        if self.layer_norm:
            return {"attention.layer_norm_epsilon": self.config.number(*_LAYER_NORM_EPSILONS, default=1e-5)}
        return {"attention.layer_norm_rms_epsilon": self.config.number("rms_norm_eps", default=1e-6)}

    def windows(self) -> dict[str, Any]:
        """Keys of sliding windows."""
        c = self.config
        if not self.window_period or c.get("sliding_window") is None:
            return {}
        keys: dict[str, Any] = {"attention.sliding_window": c.integer("sliding_window", most=1 << 31)}
        pattern = self.window_pattern()
        if pattern != [il % self.window_period < self.window_period - 1 for il in range(self.n_layers)]:
            keys["attention.sliding_window_pattern"] = pattern
        return keys

    def window_pattern(self) -> list[bool]:
        """Which layers have a window."""
        kinds = self.config.items("layer_types", self.n_layers)
        if kinds is not None:
            if any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
                raise ModelError(f"config.json's layer_types holds {kinds!r}; windows and full attention are known")
            return [kind == "sliding_attention" for kind in kinds]
        period = self.config.integer("sliding_window_pattern", "_sliding_window_pattern", default=self.window_period)
        return [il % period < period - 1 for il in range(self.n_layers)]

    def refuse(self, key: str, *allowed: Any) -> None:
        """Raises ModelError where a setting has a value for which the architecture has no place."""
        value = self.config.get(key)
        if value is not None and value not in allowed:
            raise ModelError(f"config.json's {key} is {value!r}, for which {self.arch} files have no place")

    # --- tensors

    def tensors(self, stored: Mapping[str, Lazy]) -> dict[str, Lazy]:
        """The checkpoint's tensors as the file has them, by name, in the order of the model."""
        placed: dict[str, Lazy] = {}
        experts: dict[tuple[int, str], dict[int, Lazy]] = {}
        for name, t in stored.items():
            own = self.own_name(name)
            if own is None:
                continue
            layer = _LAYER.fullmatch(own)
            expert = _EXPERT.fullmatch(layer[2]) if layer else None
            if layer and expert and expert[2] in _EXPERT_PARTS:
                experts.setdefault((int(layer[1]), _EXPERT_PARTS[expert[2]]), {})[int(expert[1])] = t
                continue
            for new, value in self._place(own, t, layer):
                if new in placed:
                    raise ModelError(f"tensors {placed[new].name} and {t.name} both become {new}")
                order = self.column_order(new)
                placed[new] = value if order is None else lazy.reordered_columns(value, order)
        for (il, part), parts in experts.items():
            placed[f"blk.{il}.ffn_{part}_exps.weight"] = self._stack(il, part, parts)
        if self.has_head and "output.weight" not in placed and not self.is_tied:
            self._without_head(stored)
        for name, values in self.rope.tensors.items():
            placed[name] = lazy.constant(name, values)
        return dict(sorted(placed.items(), key=lambda item: _place_in_model(item[0])))

    def place(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        """What a single tensor becomes, matrices of single experts apart; nothing where the file does not hold it."""
        own = self.own_name(name)
        if own is not None:
            yield from self._place(own, t, _LAYER.fullmatch(own))

    def own_name(self, name: str) -> str | None:
        """The tensor's name in a model of language alone; None: it is no part of that."""
        if _DERIVED.search(name) or _OTHER_PARTS.search(name):
            return None
        name = _PREFIX.sub("", name, count=1)
        if name == "lm_head.weight" and self.is_tied:
            return None
        return name if name.startswith("lm_head.") else f"model.{name}"

    def _without_head(self, stored: Mapping[str, Lazy]) -> None:
        """Note that there is no output matrix. Raises ModelError where the checkpoint should have one."""
        if not self.is_headless and any(_WITHIN_MODEL.match(name) for name in stored):
            raise ModelError("the checkpoint has no lm_head.weight, and config.json does not tie it to the embeddings")
        self.notes.append(
            "the checkpoint has no output head (lm_head): the file's logits come from the embedding table, so it is "
            "good for embeddings, not for text"
        )

    @property
    def is_headless(self) -> bool:
        """Saved from a class without an output head ("Qwen3Model"), as AutoModel does."""
        named = self.config.get("architectures")
        return isinstance(named, list) and bool(named) and str(named[0]).endswith("Model")

    @property
    def is_tied(self) -> bool:
        """The output matrix is the embedding table; a matrix of its own in the checkpoint counts for nothing."""
        return self.config.flag("tie_word_embeddings", default=self.tied)

    def _place(self, name: str, t: Lazy, layer: re.Match[str] | None) -> Iterator[tuple[str, Lazy]]:
        if layer is None:
            stem, _, ending = name.rpartition(".")
            if stem not in self.top_names or ending not in ("weight", "bias"):
                raise self._unknown(t)
            yield f"{self.top_names[stem]}.{ending}", self.transform(name, t)
            return
        il = int(layer[1])
        if il >= self.n_layers + self.n_next:
            raise ModelError(f"tensor {t.name} belongs to layer {il}; config.json counts {self.n_layers} layers")
        for new, value in self.layer_tensor(layer[2], t):
            yield f"blk.{il}.{new}", value

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        """What a tensor of a layer becomes: (name, tensor), without the layer's prefix."""
        if name == "mlp.experts.gate_up_proj":
            lazy.require(t, 3)
            half = t.shape[1] // 2
            yield "ffn_gate_exps.weight", lazy.slice_rows(t, 0, half)
            yield "ffn_up_exps.weight", lazy.slice_rows(t, half, 2 * half)
            return
        if name == "mlp.experts.down_proj":
            yield "ffn_down_exps.weight", lazy.require(t, 3)
            return
        stem, _, ending = name.rpartition(".")
        if stem not in self.layer_names or ending not in ("weight", "bias"):
            raise self._unknown(t)
        yield f"{self.layer_names[stem]}.{ending}", self.transform(name, t)

    def column_order(self, name: str) -> NDArray[np.int64] | None:
        """Columns of a matrix of the file, as they are numbered in the checkpoint; None: all where they are."""
        return None

    def transform(self, name: str, t: Lazy) -> Lazy:
        """The values of a tensor: norms with their offset, queries and keys in the file's order of rows."""
        lazy.require(t, 1 if name.endswith(".bias") or "norm" in name.lower() else 2)
        if self.norm_offset and "norm" in name:
            return lazy.plus(t, self.norm_offset)
        if self.rotates_neighbours and name.startswith(("self_attn.q_proj.", "self_attn.k_proj.")):
            return lazy.permuted_heads(t, self.n_heads if "q_proj" in name else self.n_kv_heads)
        return t

    def _stack(self, il: int, part: str, parts: Mapping[int, Lazy]) -> Lazy:
        missing = [e for e in range(self.n_experts) if e not in parts]
        if missing or len(parts) != self.n_experts:
            raise ModelError(
                f"layer {il} has the {part} matrices of {len(parts)} experts; config.json counts {self.n_experts}"
            )
        return lazy.stack([lazy.require(parts[e], 2) for e in range(self.n_experts)])

    def _unknown(self, t: Lazy) -> ModelError:
        return ModelError(f"tensor {t.name} is no part of {self.arch} models as pyllm knows them")


def _place_in_model(name: str) -> tuple[int, int, str]:
    """Embeddings, layers in order, output."""
    if name.startswith("blk."):
        return 1, int(name.split(".", 2)[1]), name
    return (2, 0, name) if name.startswith(("output", "cls.")) else (0, 0, name)
