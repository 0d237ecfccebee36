"""A file of Gemma 4 E4B's shape with random weights, cut to some layers, to compare speeds without a download.

    python benchmarks/gemma4_shape.py OUT.gguf [--layers 8] [--recipe Q4_K_M]
    python benchmarks/versus_llamacpp.py --model OUT.gguf --only-speed

Sizes are the published configuration's: windows of 512 on five of six layers, heads of 256 columns there and 512 on the
others, embeddings of 256 columns for each layer; of 42 layers the last 18 read earlier keys and values, here the last
three of seven. The file has no vocabulary but its size.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.bench.random_weights import RandomWeights
from pyllm.gguf import GGUFWriter, TensorSpec
from pyllm.gguf.tensor import TensorInfo
from pyllm.gguf.types import by_name
from pyllm.gguf.writer import Value
from pyllm.quant.recipes import choose, recipe_named

N_EMBD, N_FF, N_VOCAB, N_HEADS, N_KV, N_ROW = 2560, 10240, 262144, 8, 2, 256
HEAD, HEAD_WINDOWED = 512, 256


def metadata(windowed: list[bool], n_shared: int) -> dict[str, Any]:
    values = {
        "block_count": len(windowed),
        "context_length": 131072,
        "embedding_length": N_EMBD,
        "embedding_length_per_layer_input": N_ROW,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": N_KV,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.key_length_swa": HEAD_WINDOWED,
        "attention.value_length_swa": HEAD_WINDOWED,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 512,
        "attention.sliding_window_pattern": windowed,
        "attention.shared_kv_layers": n_shared,
        "rope.dimension_count": HEAD,
        "rope.dimension_count_swa": HEAD_WINDOWED,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "final_logit_softcapping": 30.0,
        "vocab_size": N_VOCAB,
    }
    return {
        "general.architecture": "gemma4",
        "tokenizer.ggml.model": "no_vocab",
        **{f"gemma4.{key}": value for key, value in values.items()},
    }


def shapes(windowed: list[bool], n_shared: int) -> dict[str, tuple[int, ...]]:
    n_layers = len(windowed)
    out: dict[str, tuple[int, ...]] = {
        "token_embd": (N_VOCAB, N_EMBD),
        "per_layer_token_embd": (N_VOCAB, N_ROW * n_layers),
        "per_layer_model_proj": (N_ROW * n_layers, N_EMBD),
        "per_layer_proj_norm": (N_ROW,),
        "output_norm": (N_EMBD,),
        "rope_freqs": (HEAD // 2,),
    }
    for il, local in enumerate(windowed):
        head = HEAD_WINDOWED if local else HEAD
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (N_EMBD,),
            "attn_q": (N_HEADS * head, N_EMBD),
            "attn_q_norm": (head,),
            "attn_output": (N_EMBD, N_HEADS * head),
            "post_attention_norm": (N_EMBD,),
            "ffn_norm": (N_EMBD,),
            "ffn_gate": (N_FF, N_EMBD),
            "ffn_up": (N_FF, N_EMBD),
            "ffn_down": (N_EMBD, N_FF),
            "post_ffw_norm": (N_EMBD,),
            "inp_gate": (N_ROW, N_EMBD),
            "proj": (N_EMBD, N_ROW),
            "post_norm": (N_EMBD,),
            "layer_output_scale": (1,),
        }
        if il < n_layers - n_shared:
            layer |= {"attn_k": (N_KV * head, N_EMBD), "attn_v": (N_KV * head, N_EMBD), "attn_k_norm": (head,)}
        out |= {f"blk.{il}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--recipe", default="Q4_K_M")
    a = parser.parse_args()
    windowed = [(il + 1) % 6 != 0 for il in range(a.layers)]
    if a.layers > 1:
        windowed[-1] = False
    n_shared = min(a.layers * 3 // 7, sum(1 for il in range(a.layers) if il > 5))
    values, wanted = metadata(windowed, n_shared), shapes(windowed, n_shared)
    recipe = recipe_named(a.recipe)
    plain = [TensorInfo(name, shape, "F32", np.zeros(0, np.uint8)) for name, shape in wanted.items()]
    formats = {choice.name: choice.format for choice in choose(recipe, values, plain)}
    most: dict[str, int] = {}
    for name, shape in wanted.items():
        if len(shape) > 1:
            most[formats[name]] = max(math.prod(shape), most.get(formats[name], 0))
    weights = RandomWeights(most)
    specs, data = [], []
    for name, shape in wanted.items():
        format = formats[name] if len(shape) > 1 else "F32"
        specs.append(TensorSpec(name, shape, format))
        whole = len(shape) > 1
        data.append(weights.view(format, math.prod(shape)) if whole else np.ones(shape, np.float32).view(np.uint8))
        assert data[-1].nbytes == by_name(format).n_bytes(math.prod(shape))
    with GGUFWriter(a.out, {key: Value.of(value) for key, value in values.items()}, specs) as writer:
        for array in data:
            writer.write(array)
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.0f} MB, {a.layers} layers, {n_shared} of them share keys and values")


if __name__ == "__main__":
    main()
