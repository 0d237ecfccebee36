"""Mamba 2, alone, and Falcon-H1, whose layers have it beside attention; what families with its mixer share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.config import as_number
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

KINDS = {"linear_attention": "mamba", "full_attention": "attention"}
"""Kinds of layers as transformers 5 writes them, by their older words."""
_NO_LIMIT = (float("inf"), {"__float__": "Infinity"})
"""How config.json writes that."""


class HasMamba2(Family):
    """A family with the mixer of Mamba 2: sizes, and tensors of the mixer."""

    mixer: ClassVar[str] = "mamba."
    """What the names of the mixer's tensors begin with, within a layer."""
    sizes: ClassVar[Mapping[str, str]] = {
        "ssm.conv_kernel": "mamba_d_conv",
        "ssm.state_size": "mamba_d_state",
        "ssm.time_step_rank": "mamba_n_heads",
        "ssm.group_count": "mamba_n_groups",
    }
    """GGUF's keys, by those of config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.n_groups = self.config.integer(self.sizes["ssm.group_count"])
        self._refuse_limits()

    @property
    def width(self) -> int:
        """Columns of all heads."""
        return self.config.integer("mamba_expand") * self.n_embd

    def states(self) -> dict[str, Any]:
        """Keys of the mixer's sizes."""
        return {key: self.config.integer(own) for key, own in self.sizes.items()} | {"ssm.inner_size": self.width}

    def mixer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        """What a tensor of the mixer becomes; `name` without the mixer's prefix."""
        n, groups = t.shape[0] if t.shape else 0, self.n_groups
        match name:
            case "in_proj.weight" | "out_proj.weight":
                yield f"ssm_{name.partition('_')[0]}.weight", lazy.require(t, 2)
            case "conv1d.weight":
                yield "ssm_conv1d.weight", lazy.reshaped(lazy.require(t, 3), (n, t.shape[-1]))
            case "conv1d.bias":
                yield "ssm_conv1d.bias", lazy.require(t, 1)
            case "dt_bias":
                yield "ssm_dt.bias", lazy.require(t, 1)
            case "A_log":
                yield "ssm_a", lazy.reshaped(lazy.mapped(lazy.require(t, 1), _minus_exp), (n, 1))
            case "D":
                yield "ssm_d", lazy.reshaped(lazy.require(t, 1), (n, 1))
            case "norm.weight":
                yield "ssm_norm.weight", lazy.reshaped(lazy.require(t, 1), (groups, n // groups))
            case _:
                raise self._unknown(t)

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name.startswith(self.mixer):
            yield from self.mixer_tensor(name.removeprefix(self.mixer), t)
        else:
            yield from super().layer_tensor(name, t)

    def _refuse_limits(self) -> None:
        """Steps that are held between numbers have no place in GGUF."""
        limits = self.config.get("time_step_limit")
        if limits is not None and limits not in [[0.0, high] for high in _NO_LIMIT]:
            raise ModelError(f"config.json's time_step_limit is {limits!r}, for which {self.arch} files have no place")


class Mamba2(HasMamba2):
    """Nothing but Mamba 2."""

    arch = "mamba2"
    mixer = "mixer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 4096,
        "num_hidden_layers": 64,
        "vocab_size": 32768,
        "num_heads": 128,
        "state_size": 128,
        "expand": 2,
        "conv_kernel": 4,
        "n_groups": 8,
        "layer_norm_epsilon": 1e-5,
        "num_attention_heads": 1,
    }
    sizes: ClassVar[Mapping[str, str]] = {
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "state_size",
        "ssm.time_step_rank": "num_heads",
        "ssm.group_count": "n_groups",
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embeddings": "token_embd",
        "model.norm_f": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {"norm": "attn_norm"}

    @property
    def width(self) -> int:
        return self.config.integer("expand") * self.n_embd

    def own_name(self, name: str) -> str | None:
        return super().own_name(name.removeprefix("model.").removeprefix("backbone."))

    def metadata(self) -> dict[str, Any]:
        c = self.config
        return {
            "block_count": self.n_layers,
            "context_length": 1 << 20,  # there is no limit
            "embedding_length": self.n_embd,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": c.number("layer_norm_epsilon"),
            "vocab_size": c.integer("vocab_size"),
        } | self.states()


class FalconH1(HasMamba2):
    """Attention and Mamba 2 side by side; multipliers go into the weights."""

    arch = "falcon-h1"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "mamba_expand": 2,
        "mamba_n_heads": 128,
        "mamba_d_state": 256,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embed_tokens": "token_embd",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "feed_forward.gate_proj": "ffn_gate",
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": "ffn_down",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        for key in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"):
            self.refuse(key, False)
        if self.config.flag("mamba_rms_norm"):
            self.refuse("mamba_norm_before_gate", False)
        self.refuse("tie_word_embeddings", False)
        attention = self._factor("attention_in_multiplier")
        gate, down = self._factors("mlp_multipliers", 2)
        self._of_parts = self._factors("ssm_multipliers", 5)
        self._of_weights = {
            "self_attn.q_proj.": [attention],
            "self_attn.k_proj.": [self._factor("key_multiplier"), attention],
            "self_attn.v_proj.": [attention],
            "self_attn.o_proj.": [self._factor("attention_out_multiplier")],
            "feed_forward.gate_proj.": [gate],
            "feed_forward.down_proj.": [down],
            "model.embed_tokens.": [self._factor("embedding_multiplier")],
            "lm_head.": [self._factor("lm_head_multiplier")],
        }

    @property
    def width(self) -> int:
        return self.config.integer("mamba_d_ssm", default=super().width)

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | self.states()

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "pre_ff_layernorm.weight":
            yield "ffn_norm", lazy.require(t, 1)
            return
        yield from super().layer_tensor(name, t)

    def transform(self, name: str, t: Lazy) -> Lazy:
        t = super().transform(name, t)
        for factor in next((factors for part, factors in self._of_weights.items() if name.startswith(part)), ()):
            t = _times(t, factor)
        return t

    def mixer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        for new, value in super().mixer_tensor(name, t):
            if name == "in_proj.weight":
                yield new, lazy.rows_times(_times(value, self._factor("ssm_in_multiplier")), self._of_rows())
            elif name == "out_proj.weight":
                yield new, _times(value, self._factor("ssm_out_multiplier"))
            else:
                yield new, value

    def _of_rows(self) -> Any:
        """Factors of the rows of ssm_in: z, x, inputs, outputs, steps."""
        states = self.states()
        inner = self.n_groups * states["ssm.state_size"]
        rows = [self.width, self.width, inner, inner, states["ssm.time_step_rank"]]
        return np.repeat(np.array(self._of_parts, np.float32), rows)

    def _factor(self, key: str) -> float:
        return self.config.number(key, default=1.0)

    def _factors(self, key: str, n: int) -> list[float]:
        values = self.config.get(key) or [1.0] * n
        if not isinstance(values, list) or len(values) != n:
            raise ModelError(f"config.json's {key} is {values!r}, no list of {n} numbers")
        return [as_number(value, key) for value in values]


def _minus_exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """-e^x, rounded once, so that all machines give the same."""
    return -np.exp(values.astype(np.float64)).astype(np.float32)


def _times(t: Lazy, factor: float) -> Lazy:
    return t if factor == 1 else lazy.rows_times(t, np.full(t.n_rows, factor, np.float32))


FAMILIES = {"Mamba2ForCausalLM": Mamba2, "FalconH1ForCausalLM": FalconH1}
