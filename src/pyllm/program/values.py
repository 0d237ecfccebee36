"""Parts of ops: computed values, names of weights, shapes of states."""

from __future__ import annotations

import math

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
    """Shape of a KV cache, usually one layer's. `window`: most positions that a token sees; 0: all."""

    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0
    kept: bool = True
    """Whether later steps read it."""


@dataclass(frozen=True, slots=True)
class SlotSpec(StateSpec):
    """Shape of one op's recurrent state: float32 numbers that each token replaces, zeros before the first one.

    All recurrent states of a sequence together, after some token, are a *slot*.
    """

    shape: tuple[int, ...]
    """Outermost axis first."""

    @property
    def n_numbers(self) -> int:
        return math.prod(self.shape)
