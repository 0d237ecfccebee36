"""A model whose matrices can all take formats with blocks of 256: rows are filled up with zeros, the function stays.

    python benchmarks/pad.py IN.gguf OUT-f16.gguf [--dither]

SmolLM2's rows have 576 weights, Qwen2.5-0.5B's 896, Gemma-3-270m's 640; quantizers give them other formats than the
recipe's. Here hidden states get zeros at their end, and each group of query heads so many heads of zeros that rows of
the output projection are whole blocks. A norm divides by the root of a mean over more values, so its weights and its
epsilon are scaled. `--dither` adds noise to the weights of a model that was quantized before (uniform, 0.15 standard
deviations of its matrix), which blurs the levels that they were rounded to: a quantizer that finds old levels again
loses next to nothing, which says little of it. The result is another, worse model, good to be compared with itself.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pyllm
from pyllm.gguf import GGUFWriter, TensorSpec, copy_metadata
from pyllm.gguf.writer import Value
from pyllm.quant import formats

F32 = NDArray[np.float32]


class Padding:
    """Sizes before and after: hidden states, query heads of a KV head."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.arch = metadata["general.architecture"]
        if self.arch not in ("llama", "qwen2", "gemma3"):
            raise SystemExit(f"models of {self.arch} have other tensors than those that this script can pad")

        def get(key: str) -> Any:
            return metadata[f"{self.arch}.{key}"]

        self.n_embd, n_heads = get("embedding_length"), get("attention.head_count")
        self.n_kv = metadata.get(f"{self.arch}.attention.head_count_kv", n_heads)
        self.head = metadata.get(f"{self.arch}.attention.key_length", self.n_embd // n_heads)
        self.wide = -(-self.n_embd // 256) * 256
        self.group = n_heads // self.n_kv
        self.groups = next(g for g in range(self.group, self.group + 256) if self.n_kv * g * self.head % 256 == 0)
        self.eps = get("attention.layer_norm_rms_epsilon") * self.n_embd / self.wide
        self.scales_embedding = self.arch.startswith("gemma")

    def metadata(self, old: dict[str, Value]) -> dict[str, Value]:
        new = {
            "embedding_length": self.wide,
            "attention.head_count": self.n_kv * self.groups,
            "attention.layer_norm_rms_epsilon": self.eps,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
        }
        out = dict(old)
        for key, value in new.items():
            name = f"{self.arch}.{key}"
            out[name] = Value(old[name].type, value) if name in old else Value.of(value)
        return out

    def tensor(self, name: str, x: F32) -> F32:
        """A tensor, outermost axis first, as it is in the padded model."""
        more, heads = self.wide - self.n_embd, self.groups - self.group
        shrink = math.sqrt(self.n_embd / self.wide)
        if name.endswith("norm.weight"):
            if len(x) != self.n_embd:
                return x
            if name == "output_norm.weight" and self.scales_embedding:
                shrink = 1.0  # the table, which makes the logits too, is scaled instead
            return np.pad(x * np.float32(shrink), (0, more))
        if "attn_q." in name:
            x = x.reshape(self.n_kv, self.group, self.head, -1)
            x = np.pad(x, ((0, 0), (0, heads), (0, 0), (0, 0))).reshape(self.n_kv * self.groups * self.head, -1)
            return np.pad(x, ((0, 0), (0, more))) if x.shape[1] == self.n_embd else x.reshape(-1)
        if "attn_output.w" in name:
            x = x.reshape(self.n_embd, self.n_kv, self.group, self.head)
            return np.pad(x, ((0, more), (0, 0), (0, heads), (0, 0))).reshape(self.wide, -1)
        if "ffn_down.w" in name:
            return np.pad(x, ((0, more), (0, 0)))
        if x.ndim < 2:
            return x
        if name == "token_embd.weight" and self.scales_embedding:
            x = x * np.float32(shrink)  # such models multiply embeddings by the root of their width
        return np.pad(x, ((0, 0), (0, more)))


def noisy(x: F32, random: np.random.Generator) -> F32:
    step = 0.15 * float(x.std())
    return x + random.uniform(-step, step, x.shape).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dither", action="store_true", help="blur the levels that weights were rounded to")
    a = parser.parse_args()
    random = np.random.default_rng(0)
    with pyllm.open_gguf(a.source) as file:
        padding = Padding(file.metadata)

        def padded(t: Any) -> NDArray[Any]:
            x = formats.get(t.format).decode(t.data).reshape(t.shape)
            if a.dither and x.ndim > 1:
                x = noisy(x, random)
            x = padding.tensor(t.name, x)
            return x.astype(np.float16 if x.ndim > 1 else np.float32)

        tensors = list(file.tensors.values())
        empty = {t.name: padding.tensor(t.name, np.zeros(t.shape, np.float32)).shape for t in tensors}
        specs = [TensorSpec(n, shape, "F16" if len(shape) > 1 else "F32") for n, shape in empty.items()]
        metadata = padding.metadata(copy_metadata(file.metadata))
        metadata["general.file_type"] = Value.of(1)
        with GGUFWriter(a.target, metadata, specs, overwrite=True, sources=[a.source]) as writer:
            for t in tensors:
                writer.write(padded(t).reshape(-1).view(np.uint8))


if __name__ == "__main__":
    main()
