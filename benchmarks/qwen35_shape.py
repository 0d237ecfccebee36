"""A file of Qwen 3.5's shape with random weights, perhaps cut to some layers, to compare speeds without a download.

    python benchmarks/qwen35_shape.py OUT.gguf [--size 0.8b] [--layers 24] [--recipe Q4_K_M]
    python benchmarks/versus_llamacpp.py --model OUT.gguf --only-speed
    python benchmarks/profile_step.py -m OUT.gguf -n 512

Sizes are the published configurations': three of four layers are recurrent, the fourth has attention with a gate. The
file has no vocabulary but its size.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import random_file

STATE, KERNEL, HEAD, N_ROT = 128, 4, 256, 64
"""Columns of a recurrent head, rows that its convolution reads, columns of an attention head, those of them that are
rotated."""


@dataclass(frozen=True)
class Size:
    """A published configuration."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv: int
    n_key_heads: int
    n_value_heads: int
    """Of recurrent layers."""
    tied: bool = True
    n_vocab: int = 248320


SIZES = {
    "0.8b": Size(24, 1024, 3584, 8, 2, 16, 16),
    "4b": Size(32, 2560, 9216, 16, 4, 16, 32),
    "9b": Size(32, 4096, 12288, 16, 4, 16, 32, tied=False),
}


def metadata(s: Size) -> dict[str, Any]:
    values = {
        "block_count": s.n_layers,
        "context_length": 262144,
        "embedding_length": s.n_embd,
        "feed_forward_length": s.n_ff,
        "attention.head_count": s.n_heads,
        "attention.head_count_kv": s.n_kv,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "rope.dimension_count": N_ROT,
        "rope.dimension_sections": [11, 11, 10, 0],
        "ssm.conv_kernel": KERNEL,
        "ssm.state_size": STATE,
        "ssm.group_count": s.n_key_heads,
        "ssm.time_step_rank": s.n_value_heads,
        "ssm.inner_size": s.n_value_heads * STATE,
        "full_attention_interval": 4,
        "vocab_size": s.n_vocab,
    }
    return {"general.architecture": "qwen35", **{f"qwen35.{key}": value for key, value in values.items()}}


def shapes(s: Size) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.n_vocab, s.n_embd), "output_norm.weight": (s.n_embd,)}
    if not s.tied:
        out["output.weight"] = (s.n_vocab, s.n_embd)
    for il in range(s.n_layers):
        mixer = _attention(s) if il % 4 == 3 else _delta(s)
        layer = mixer | {
            "attn_norm.weight": (s.n_embd,),
            "post_attention_norm.weight": (s.n_embd,),
            "ffn_gate.weight": (s.n_ff, s.n_embd),
            "ffn_up.weight": (s.n_ff, s.n_embd),
            "ffn_down.weight": (s.n_embd, s.n_ff),
        }
        out |= {f"blk.{il}.{name}": shape for name, shape in layer.items()}
    return out


def _attention(s: Size) -> dict[str, tuple[int, ...]]:
    return {
        "attn_q.weight": (2 * s.n_heads * HEAD, s.n_embd),
        "attn_k.weight": (s.n_kv * HEAD, s.n_embd),
        "attn_v.weight": (s.n_kv * HEAD, s.n_embd),
        "attn_output.weight": (s.n_embd, s.n_heads * HEAD),
        "attn_q_norm.weight": (HEAD,),
        "attn_k_norm.weight": (HEAD,),
    }


def _delta(s: Size) -> dict[str, tuple[int, ...]]:
    inner = s.n_value_heads * STATE
    width = 2 * s.n_key_heads * STATE + inner
    return {
        "attn_qkv.weight": (width, s.n_embd),
        "attn_gate.weight": (inner, s.n_embd),
        "ssm_conv1d.weight": (width, KERNEL),
        "ssm_alpha.weight": (s.n_value_heads, s.n_embd),
        "ssm_beta.weight": (s.n_value_heads, s.n_embd),
        "ssm_dt.bias": (s.n_value_heads,),
        "ssm_a": (s.n_value_heads,),
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (s.n_embd, inner),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int, help="so many tokens instead of the published 248320")
    parser.add_argument("--recipe", default="Q4_K_M")
    a = parser.parse_args()
    size = SIZES[a.size]
    size = replace(size, n_layers=a.layers or size.n_layers, n_vocab=a.vocabulary or size.n_vocab)
    # Decays below 1: states keep their size.
    random_file.write(a.out, metadata(size), shapes(size), a.recipe, {"ssm_a": -0.1, "ssm_dt.bias": 0.0})
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.0f} MB, {size.n_layers} layers")


if __name__ == "__main__":
    main()
