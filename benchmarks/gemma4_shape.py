"""A file of Gemma 4's shape with random weights, cut to some layers, to compare speeds without a download.

    python benchmarks/gemma4_shape.py OUT.gguf [--size e4b] [--layers 8] [--recipe Q4_K_M]
    python benchmarks/versus_llamacpp.py --model OUT.gguf --only-speed
    python benchmarks/gemma4_shape.py OUT.json --size e4b --layers 4 --vocabulary 4096

Sizes are the published configurations': E2B and E4B have embeddings for each layer and layers that read earlier keys
and values, 26B-A4B has experts beside a plain feed-forward and no matrix of values on layers without a window. The
file has no vocabulary but its size. A .json file describes the model for tests/golden/make_archs.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from random_file import write

HEAD, HEAD_WINDOWED = 512, 256


@dataclass(frozen=True)
class Size:
    """A published configuration; `shared` of `n_layers` layers read the keys and values of earlier ones."""

    n_layers: int
    shared: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv: int
    n_kv_global: int
    period: int
    """Every so many layers, one has no window."""
    window: int
    n_row: int = 0
    """Columns of a layer's own embeddings."""
    shared_ff: int = 1
    """Layers that share keys and values have feed-forwards so many times as wide."""
    keys_as_values: bool = False
    """On layers without a window."""
    n_experts: int = 0
    n_used: int = 0
    n_ff_expert: int = 0
    n_vocab: int = 262144

    def windowed(self) -> list[bool]:
        """By layer; the last one has no window, however the model is cut."""
        pattern = [(il + 1) % self.period != 0 for il in range(self.n_layers)]
        return [*pattern[:-1], False] if self.n_layers > 1 else pattern

    def cut(self, n_layers: int) -> Size:
        """The same with fewer layers; in proportion they share, those of whose kind an earlier one does not."""
        full = [(il + 1) % self.period == 0 for il in range(n_layers)]
        own = full.index(True) + 1 if True in full else n_layers
        return replace(self, n_layers=n_layers, shared=min(n_layers * self.shared // self.n_layers, n_layers - own))


SIZES = {
    "e2b": Size(35, 20, 1536, 6144, 8, 1, 1, 5, 512, n_row=256, shared_ff=2),
    "e4b": Size(42, 18, 2560, 10240, 8, 2, 2, 6, 512, n_row=256),
    "26b-a4b": Size(
        30, 0, 2816, 2112, 16, 8, 2, 6, 1024, keys_as_values=True, n_experts=128, n_used=8, n_ff_expert=704
    ),
}


def metadata(s: Size) -> dict[str, Any]:
    windowed, n_own = s.windowed(), s.n_layers - s.shared
    values: dict[str, Any] = {
        "block_count": s.n_layers,
        "context_length": 131072,
        "embedding_length": s.n_embd,
        "embedding_length_per_layer_input": s.n_row,
        "feed_forward_length": [s.n_ff * (s.shared_ff if il >= n_own else 1) for il in range(s.n_layers)],
        "attention.head_count": s.n_heads,
        "attention.head_count_kv": [s.n_kv if local else s.n_kv_global for local in windowed],
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.key_length_swa": HEAD_WINDOWED,
        "attention.value_length_swa": HEAD_WINDOWED,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": s.window,
        "attention.sliding_window_pattern": windowed,
        "attention.shared_kv_layers": s.shared,
        "rope.dimension_count": HEAD,
        "rope.dimension_count_swa": HEAD_WINDOWED,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "final_logit_softcapping": 30.0,
        "vocab_size": s.n_vocab,
    }
    if s.n_experts:
        values |= {
            "expert_count": s.n_experts,
            "expert_used_count": s.n_used,
            "expert_feed_forward_length": s.n_ff_expert,
        }
    return {"general.architecture": "gemma4", **{f"gemma4.{key}": value for key, value in values.items()}}


def shapes(s: Size) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (s.n_vocab, s.n_embd),
        "output_norm.weight": (s.n_embd,),
        "rope_freqs.weight": (HEAD // 2,),
    }
    if s.n_row:
        out |= {
            "per_layer_token_embd.weight": (s.n_vocab, s.n_row * s.n_layers),
            "per_layer_model_proj.weight": (s.n_row * s.n_layers, s.n_embd),
            "per_layer_proj_norm.weight": (s.n_row,),
        }
    for il, local in enumerate(s.windowed()):
        out |= {f"blk.{il}.{name}": shape for name, shape in _layer(s, il, local).items()}
    return out


def _layer(s: Size, il: int, local: bool) -> dict[str, tuple[int, ...]]:
    own, head = il < s.n_layers - s.shared, HEAD_WINDOWED if local else HEAD
    n_ff, n_kv = s.n_ff * (1 if own else s.shared_ff), s.n_kv if local else s.n_kv_global
    vectors = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"]
    layer: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (s.n_heads * head, s.n_embd),
        "attn_q_norm.weight": (head,),
        "attn_output.weight": (s.n_embd, s.n_heads * head),
        "ffn_gate.weight": (n_ff, s.n_embd),
        "ffn_up.weight": (n_ff, s.n_embd),
        "ffn_down.weight": (s.n_embd, n_ff),
        "layer_output_scale.weight": (1,),
    }
    if own:
        layer |= {"attn_k.weight": (n_kv * head, s.n_embd), "attn_k_norm.weight": (head,)}
    if own and (local or not s.keys_as_values):
        layer["attn_v.weight"] = (n_kv * head, s.n_embd)
    if s.n_row:
        layer |= {"inp_gate.weight": (s.n_row, s.n_embd), "proj.weight": (s.n_embd, s.n_row)}
        vectors.append("post_norm")
    if s.n_experts:
        vectors += ["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"]
        layer |= {
            "ffn_gate_inp.weight": (s.n_experts, s.n_embd),
            "ffn_gate_inp.scale": (s.n_embd,),
            "ffn_gate_up_exps.weight": (s.n_experts, 2 * s.n_ff_expert, s.n_embd),
            "ffn_down_exps.weight": (s.n_experts, s.n_embd, s.n_ff_expert),
            "ffn_down_exps.scale": (s.n_experts,),
        }
    return layer | {f"{name}.weight": (s.n_embd,) for name in vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="e4b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, help="so many tokens instead of the published 262144")
    parser.add_argument("--window", type=int, help="instead of the published one")
    parser.add_argument("--recipe", default="Q4_K_M")
    a = parser.parse_args()
    size = SIZES[a.size].cut(a.layers)
    size = replace(size, n_vocab=a.vocabulary or size.n_vocab, window=a.window or size.window)
    write(a.out, metadata(size), shapes(size), a.recipe)
    print(f"{size.n_layers} layers, {size.shared} share keys and values")


if __name__ == "__main__":
    main()
