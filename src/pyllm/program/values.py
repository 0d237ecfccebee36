"""What ops are made of: values that they compute, names of weights that they read, states that they keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """A float32 matrix [tokens, width] that an op computes."""

    id: int
    width: int


class Weight(str):
    """Name of a tensor that an op reads, as in the GGUF file. Fields of this type are an op's weights."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StateSpec:
    """Shape of what an op keeps of a sequence from step to step; one class for each kind of state."""


@dataclass(frozen=True, slots=True)
class KVSpec(StateSpec):
    """Shape of one layer's KV cache. `window` 0: all positions are seen."""

    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0
