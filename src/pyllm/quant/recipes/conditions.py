"""Conditions of recipes' rules: a tensor's place in its model, and the model's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyllm.records import dataclass

_EIGHT_TO_ONE = {"llama": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}
"""Layers of each architecture's model of 70 billion weights; most have eight query heads per value head."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts of a model that recipes depend on."""

    arch: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelShape:
        """The shape by a file's metadata; missing numbers are zero."""
        arch = str(metadata.get("general.architecture", ""))

        def count(key: str, default: int = 0) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            first = value[0] if isinstance(value, np.ndarray | list) and len(value) else value
            return int(first) if isinstance(first, int | np.integer) else default

        n_heads = count("attention.head_count")
        n_kv_heads = count("attention.head_count_kv", n_heads)
        return cls(arch, count("block_count"), n_heads, n_kv_heads, count("expert_count"))

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp counts it as a 70B model, by architecture and layers."""
        return _EIGHT_TO_ONE.get(self.arch) == self.n_layers and (
            self.arch != "llama" or self.n_heads != self.n_kv_heads
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place: it is number `index` of `count` of its kind in the model."""

    index: int
    count: int
    model: ModelShape
    has_imatrix: bool
    is_stacked: bool
    """Whether it is a stack of matrices, as experts' are."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A named test of a place; `&` and `~` make new ones."""

    text: str
    test: Callable[[Place], bool]

    def __call__(self, place: Place) -> bool:
        return self.test(place)

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"{self.text} and {other.text}", lambda p: self.test(p) and other.test(p))

    def __invert__(self) -> Condition:
        return Condition(f"not {self.text}", lambda p: not self.test(p))

    def __repr__(self) -> str:
        return self.text


def _more_bits(p: Place) -> bool:
    eighth = p.count // 8
    return p.index < eighth or p.index >= 7 * p.count // 8 or (p.index - eighth) % 3 == 2


always = Condition("always", lambda p: True)
first_two = Condition("first two", lambda p: p.index < 2)
first_four = Condition("first four", lambda p: p.index < 4)
first_16th = Condition("first sixteenth", lambda p: p.index < p.count // 16)
first_8th = Condition("first eighth", lambda p: p.index < p.count // 8)
middle = Condition("neither first nor last eighth", lambda p: p.count // 8 <= p.index < 7 * p.count // 8)
more_bits = Condition("first and last eighth and every third between", _more_bits)
imatrix = Condition("importance matrix", lambda p: p.has_imatrix)
four_heads_share = Condition("four or more heads share keys and values", lambda p: p.model.heads_per_kv >= 4)
some_experts = Condition("four or more experts", lambda p: p.model.n_experts >= 4)
eight_experts = Condition("eight experts", lambda p: p.model.n_experts == 8)
is_70b = Condition("70B model", lambda p: p.model.is_70b)
falcon = Condition("Falcon", lambda p: p.model.arch == "falcon")
stacked = Condition("stack of experts", lambda p: p.is_stacked)
