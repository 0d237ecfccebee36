"""The role of a tensor, by its name, and whether it is quantized at all."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Role(Enum):
    """Kinds of tensors that recipes tell apart."""

    OUTPUT = "output"
    EMBEDDING = "embedding"
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    """Value projections, alone or fused with queries and keys (attn_qkv) or expanded from a latent (attn_kv_b)."""
    ATTN_OUTPUT = "attn_output"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    """Feed-forward matrices, those of experts and shared experts too."""
    OTHER = "other"


EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

_PARTS: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_q.weight", Role.ATTN_Q),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)
"""Parts of names, and the role of a tensor whose name holds one; the first that fits."""

_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # the router
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(
        f"time_mix_{part}.weight"
        for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
    ),
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
"""Names, and parts of names, of matrices that are never quantized: small and critical ones."""


def role_of(name: str) -> Role:
    """The role of the tensor of this name."""
    if name == OUTPUT:
        return Role.OUTPUT
    if name in EMBEDDINGS:
        return Role.EMBEDDING
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def is_quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether recipes quantize a tensor: matrices, except those that are always kept.

    `shape` is outermost first. One row counts as a vector, as in llama.cpp.
    """
    if all(d == 1 for d in shape[:-1]) or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT_PARTS)


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to: 7 of "blk.7.attn_v.weight"; None where it belongs to none."""
    parts = name.split(".", 2)
    return int(parts[1]) if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal() else None
