"""Files of models with recurrent layers, in real shapes with random weights, to compare speeds without a download.

    python benchmarks/recurrent_shapes.py OUT.gguf --shape qwen35-0.8b [--layers 24] [--recipe Q4_K_M]
    python benchmarks/versus_llamacpp.py --model OUT.gguf --only-speed
    python benchmarks/recurrent_shapes.py OUT.json --shape lfm2-1.2b --layers 4 --vocabulary 4096

Shapes: Qwen3.5-0.8B, Qwen3.5-35B-A3B cut to 4 layers (--layers 40 for all), LFM2-350M and 1.2B, Granite-4.0-H-Tiny cut
to 6 layers (of 40). Layers keep the order of kinds that the whole model has. The file has no vocabulary but its size.
A .json file describes the model for tests/golden/make_archs.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from random_file import write

Shape = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Qwen35:
    """Gated DeltaNet, and attention on every fourth layer; dense where there are no experts."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv: int
    key_heads: int
    value_heads: int
    tied: bool
    n_ff: int = 0
    n_experts: int = 0
    n_used: int = 0
    n_ff_expert: int = 0
    n_vocab: int = 248320

    head = 256
    state = 128
    """Columns of a head of Gated DeltaNet."""
    kernel = 4

    def metadata(self) -> dict[str, Any]:
        arch = "qwen35moe" if self.n_experts else "qwen35"
        values: dict[str, Any] = {
            "block_count": self.n_layers,
            "context_length": 262144,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "full_attention_interval": 4,
            "rope.dimension_count": self.head // 4,
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.freq_base": 1e7,
            "ssm.conv_kernel": self.kernel,
            "ssm.state_size": self.state,
            "ssm.group_count": self.key_heads,
            "ssm.time_step_rank": self.value_heads,
            "ssm.inner_size": self.value_heads * self.state,
            "vocab_size": self.n_vocab,
        }
        if self.n_experts:
            values |= {
                "expert_count": self.n_experts,
                "expert_used_count": self.n_used,
                "expert_feed_forward_length": self.n_ff_expert,
                "expert_shared_feed_forward_length": self.n_ff_expert,
            }
        return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in values.items() if value}}

    def layer(self, il: int) -> Shape:
        n = self.n_embd
        out: Shape = {"attn_norm.weight": (n,), "post_attention_norm.weight": (n,)}
        out |= self._attention() if (il + 1) % 4 == 0 else self._delta()
        if not self.n_experts:
            return out | gated(n, self.n_ff)
        return (
            out
            | experts(n, self.n_experts, self.n_ff_expert)
            | gated(n, self.n_ff_expert, "_shexp")
            | {"ffn_gate_inp_shexp.weight": (n,)}
        )

    def _attention(self) -> Shape:
        n, head = self.n_embd, self.head
        return {
            "attn_q.weight": (2 * self.n_heads * head, n),
            "attn_k.weight": (self.n_kv * head, n),
            "attn_v.weight": (self.n_kv * head, n),
            "attn_output.weight": (n, self.n_heads * head),
            "attn_q_norm.weight": (head,),
            "attn_k_norm.weight": (head,),
        }

    def _delta(self) -> Shape:
        n, keys, values = self.n_embd, self.key_heads * self.state, self.value_heads * self.state
        return {
            "attn_qkv.weight": (2 * keys + values, n),
            "attn_gate.weight": (values, n),
            "ssm_conv1d.weight": (2 * keys + values, self.kernel),
            "ssm_dt.bias": (self.value_heads,),
            "ssm_a": (self.value_heads,),
            "ssm_beta.weight": (self.value_heads, n),
            "ssm_alpha.weight": (self.value_heads, n),
            "ssm_norm.weight": (self.state,),
            "ssm_out.weight": (n, values),
        }


@dataclass(frozen=True)
class LFM2:
    """Short convolutions, and attention on the layers `attention`."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv: int
    attention: tuple[int, ...] = (2, 5, 8, 10, 12, 14)
    n_vocab: int = 65536
    tied: bool = True

    head = 64
    kernel = 3

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "block_count": self.n_layers,
            "context_length": 128000,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": [self.n_kv if il in self.attention else 0 for il in range(self.n_layers)],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 1e6,
            "shortconv.l_cache": self.kernel,
            "vocab_size": self.n_vocab,
        }
        return {"general.architecture": "lfm2", **{f"lfm2.{key}": value for key, value in values.items()}}

    def layer(self, il: int) -> Shape:
        n, head = self.n_embd, self.head
        out: Shape = {"attn_norm.weight": (n,), "ffn_norm.weight": (n,), **gated(n, self.n_ff)}
        if il not in self.attention:
            return out | {
                "shortconv.conv.weight": (n, self.kernel),
                "shortconv.in_proj.weight": (3 * n, n),
                "shortconv.out_proj.weight": (n, n),
            }
        return out | {
            "attn_q.weight": (self.n_heads * head, n),
            "attn_k.weight": (self.n_kv * head, n),
            "attn_v.weight": (self.n_kv * head, n),
            "attn_output.weight": (n, self.n_heads * head),
            "attn_q_norm.weight": (head,),
            "attn_k_norm.weight": (head,),
        }


@dataclass(frozen=True)
class Granite4:
    """Mamba 2, and attention without positions on every tenth layer from the sixth on; experts beside a shared one."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv: int
    mamba_heads: int
    n_experts: int
    n_used: int
    n_ff_expert: int
    n_ff_shared: int
    n_vocab: int = 100352
    tied: bool = True

    head = 128
    mamba_head = 64
    state = 128
    groups = 1
    kernel = 4

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "block_count": self.n_layers,
            "context_length": 131072,
            "embedding_length": self.n_embd,
            "feed_forward_length": self.n_ff_expert,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": [self.n_kv if il % 10 == 5 else 0 for il in range(self.n_layers)],
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.scale": 1 / self.head,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            "rope.dimension_count": self.head,
            "rope.freq_base": 1e4,
            "rope.scaling.finetuned": False,
            "expert_count": self.n_experts,
            "expert_used_count": self.n_used,
            "expert_shared_feed_forward_length": self.n_ff_shared,
            "ssm.conv_kernel": self.kernel,
            "ssm.state_size": self.state,
            "ssm.group_count": self.groups,
            "ssm.time_step_rank": self.mamba_heads,
            "ssm.inner_size": self.mamba_heads * self.mamba_head,
            "vocab_size": self.n_vocab,
        }
        return {"general.architecture": "granitehybrid", **{f"granitehybrid.{k}": v for k, v in values.items()}}

    def layer(self, il: int) -> Shape:
        n, n_ff = self.n_embd, self.n_ff_expert
        out: Shape = {"attn_norm.weight": (n,), "ffn_norm.weight": (n,)}
        out |= self._attention() if il % 10 == 5 else self._mamba()
        return out | experts(n, self.n_experts, n_ff) | gated(n, self.n_ff_shared, "_shexp")

    def _attention(self) -> Shape:
        n, head = self.n_embd, self.head
        return {
            "attn_q.weight": (self.n_heads * head, n),
            "attn_k.weight": (self.n_kv * head, n),
            "attn_v.weight": (self.n_kv * head, n),
            "attn_output.weight": (n, self.n_heads * head),
        }

    def _mamba(self) -> Shape:
        n, heads, inner = self.n_embd, self.mamba_heads, self.mamba_heads * self.mamba_head
        convolved = inner + 2 * self.groups * self.state
        return {
            "ssm_in.weight": (inner + convolved + heads, n),
            "ssm_conv1d.weight": (convolved, self.kernel),
            "ssm_conv1d.bias": (convolved,),
            "ssm_dt.bias": (heads,),
            "ssm_a": (heads, 1),
            "ssm_d": (heads, 1),
            "ssm_norm.weight": (self.groups, inner // self.groups),
            "ssm_out.weight": (n, inner),
        }


SHAPES: dict[str, Qwen35 | LFM2 | Granite4] = {
    "qwen35-0.8b": Qwen35(24, 1024, 8, 2, 16, 16, tied=True, n_ff=3584),
    "qwen35moe-cut": Qwen35(4, 2048, 16, 2, 16, 32, tied=False, n_experts=256, n_used=8, n_ff_expert=512),
    "lfm2-350m": LFM2(16, 1024, 4608, 16, 8),
    "lfm2-1.2b": LFM2(16, 2048, 8192, 32, 8),
    "granite-4-tiny-cut": Granite4(6, 1536, 12, 4, 48, 64, 6, 512, 1024),
}


def gated(n: int, n_ff: int, kind: str = "") -> Shape:
    """A gated feed-forward network."""
    return {
        f"ffn_gate{kind}.weight": (n_ff, n),
        f"ffn_up{kind}.weight": (n_ff, n),
        f"ffn_down{kind}.weight": (n, n_ff),
    }


def experts(n: int, n_experts: int, n_ff: int) -> Shape:
    """A mixture of experts."""
    return {
        "ffn_gate_inp.weight": (n_experts, n),
        "ffn_gate_exps.weight": (n_experts, n_ff, n),
        "ffn_up_exps.weight": (n_experts, n_ff, n),
        "ffn_down_exps.weight": (n_experts, n, n_ff),
    }


def tensors(model: Qwen35 | LFM2 | Granite4) -> Shape:
    """Every tensor of the file."""
    final_norm = "token_embd_norm.weight" if isinstance(model, LFM2) else "output_norm.weight"
    out: Shape = {"token_embd.weight": (model.n_vocab, model.n_embd), final_norm: (model.n_embd,)}
    if not model.tied:
        out["output.weight"] = (model.n_vocab, model.n_embd)
    for il in range(model.n_layers):
        out |= {f"blk.{il}.{name}": shape for name, shape in model.layer(il).items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen35-0.8b")
    parser.add_argument("--layers", type=int, help="so many instead of the shape's")
    parser.add_argument("--vocabulary", type=int, help="so many tokens instead of the published number")
    parser.add_argument("--recipe", default="Q4_K_M")
    a = parser.parse_args()
    model = SHAPES[a.shape]
    model = replace(model, n_layers=a.layers or model.n_layers, n_vocab=a.vocabulary or model.n_vocab)
    write(a.out, model.metadata(), tensors(model), a.recipe)


if __name__ == "__main__":
    main()
