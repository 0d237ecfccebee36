"""InternLM 2: Llama under other names, with queries, keys and values in one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy


class InternLM2(Family):
    """Rotated pairs are neighbours. Rows of the matrix are grouped by key-value head: its queries, its key, its value
    (modeling_internlm2.py of the published checkpoints)."""

    arch = "internlm2"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}
    top_names: ClassVar[Mapping[str, str]] = {
        "model.tok_embeddings": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "attention_norm": "attn_norm",
        "attention.wo": "attn_output",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
    }

    def own_name(self, name: str) -> str | None:
        return super().own_name(f"lm_head.{name[7:]}" if name.startswith("output.") else name)

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        stem, _, ending = name.rpartition(".")
        if stem != "attention.wqkv" or ending not in ("weight", "bias"):
            yield from super().layer_tensor(name, t)
            return
        lazy.require(t, 1 if ending == "bias" else 2)
        n_queries, rest = divmod(self.n_heads, self.n_kv_heads)
        shape = (self.n_kv_heads, n_queries + 2, self.head_dim)
        rows = np.arange(np.prod(shape), dtype=np.int64)
        if rest or t.shape[0] != len(rows):
            raise ModelError(
                f"tensor {t.name} has {t.shape[0]} rows; {self.n_heads} heads with {self.n_kv_heads} for keys and "
                f"values, of {self.head_dim} columns each, do not make them"
            )
        heads = rows.reshape(shape)
        q, k, v = (lazy.reordered(t, part.reshape(-1)) for part in (heads[:, :-2], heads[:, -2], heads[:, -1]))
        yield f"attn_q.{ending}", lazy.permuted_heads(q, self.n_heads)
        yield f"attn_k.{ending}", lazy.permuted_heads(k, self.n_kv_heads)
        yield f"attn_v.{ending}", v


FAMILIES = {"InternLM2ForCausalLM": InternLM2}
