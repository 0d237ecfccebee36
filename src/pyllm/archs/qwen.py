"""Qwen 2, 2.5 and 3, dense and mixtures of experts."""

from __future__ import annotations

from pyllm.archs.blocks import Transformer


class Qwen2(Transformer):
    """Biases on queries, keys and values."""


class Qwen3(Transformer):
    """Norms of each head's queries and keys."""

    qk_norm = "head"
    ffn_scaled = True


class Qwen3MoE(Qwen3):
    """Every block's feed-forward is a mixture of experts."""

    needs_experts = True


ARCHITECTURES = {"qwen2": Qwen2, "qwen3": Qwen3, "qwen3moe": Qwen3MoE}
