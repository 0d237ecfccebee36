"""Parts of ops: computed values, names of weights, shapes of states."""

from __future__ import annotations

from pyllm.records import dataclass


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
    """Shape of an op's state of a sequence; one class for each kind of state."""


@dataclass(frozen=True, slots=True)
class KVSpec(StateSpec):
    """Shape of one layer's KV cache. `window`: positions that a token sees; 0: all."""

    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0
