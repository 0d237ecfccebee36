"""A model's hyper-parameters, read from GGUF metadata and validated; hostile or contradictory values raise ModelError.

Keys are given without the architecture's prefix: `hp.integer("block_count")` reads `llama.block_count`. A value of zero
(false, an empty array or string) means "not used", as if the key were missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats

_MOST = 1 << 24
"""Largest count of a model (columns, positions, experts); keeps products far from overflow."""
_MOST_LAYERS = 4096
_MOST_HEAD_DIM = 1 << 16
_MOST_EXPERTS = 1 << 16
_MOST_POSITIONS = 1 << 31
_GATINGS = ("", "softmax", "sigmoid", "softmax_chosen")
"""Routing functions, by the number in files; 0 is none."""


class HParams:
    """Typed access to one architecture's metadata, and to the file's tensors.

    `n_ctx` is the context that the model is loaded for (None: the trained length). `with_heads`: layers include those
    of heads that guess further tokens, which follow the trunk's.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        arch: str,
        tensors: Mapping[str, TensorInfo] | None = None,
        n_ctx: int | None = None,
        *,
        with_heads: bool = False,
    ) -> None:
        self.metadata = metadata
        self.arch = arch
        self.tensors: Mapping[str, TensorInfo] = {} if tensors is None else tensors
        self._n_ctx = n_ctx
        self._with_heads = with_heads

    # --- sizes that all families have

    @property
    def n_layers(self) -> int:
        """Layers of the trunk, or with those of heads."""
        return self.integer("block_count", most=_MOST_LAYERS) if self._with_heads else self.n_trunk

    @cached_property
    def n_trunk(self) -> int:
        """Layers of the trunk."""
        n = self.integer("block_count", most=_MOST_LAYERS)
        n_next = self.integer("nextn_predict_layers", 0, most=_MOST_LAYERS)
        if n_next >= n:
            raise ModelError(f"{self.arch}.nextn_predict_layers is {n_next}, but block_count is {n}")
        return n - n_next

    @cached_property
    def n_ctx_train(self) -> int:
        return self.integer("context_length", most=_MOST_POSITIONS)

    @cached_property
    def n_ctx(self) -> int:
        n_ctx = self.n_ctx_train if self._n_ctx is None else self._n_ctx
        if n_ctx < 1:
            raise ModelError(f"a context of {n_ctx} positions holds nothing")
        return n_ctx

    @cached_property
    def n_embd(self) -> int:
        return self.integer("embedding_length")

    @cached_property
    def n_heads(self) -> list[int]:
        """Heads of each layer; 0: no attention."""
        return self.per_layer("attention.head_count")

    @cached_property
    def n_kv_heads(self) -> list[int]:
        return self.per_layer("attention.head_count_kv", self.n_heads)

    def head_dims(self, windowed: bool = False) -> tuple[int, int]:
        """Columns of a head's queries and keys, and of its values; windowed layers may differ."""
        default = self.n_embd // next((n for n in self.n_heads if n), 1) or None
        dims = []
        for key in ("attention.key_length", "attention.value_length"):
            dim = self.integer(key, default, most=_MOST_HEAD_DIM)
            dims.append(self.integer(f"{key}_swa", dim, most=_MOST_HEAD_DIM) if windowed else dim)
        return dims[0], dims[1]

    def windows(self, period: int, default: int = 0, *, dense_first: bool = False) -> list[int]:
        """Window of each layer in positions, 0: unlimited. The file's window (`default` if it has none) applies to the
        layers of its pattern; without one, to all but every `period`-th, the last or first of a period (0: none)."""
        window = self.integer("attention.sliding_window", default, most=_MOST_POSITIONS)
        flags = self.pattern("attention.sliding_window_pattern", self.n_layers, period, dense_first=dense_first)
        return [window if flag else 0 for flag in flags]

    @cached_property
    def n_experts(self) -> int:
        return self.integer("expert_count", 0, most=_MOST_EXPERTS)

    def n_experts_used(self, il: int) -> int:
        """Experts of layer `il` that a token uses."""
        n = self.per_layer("expert_used_count", 0)[il]
        if not 0 < n <= self.n_experts:
            raise ModelError(f"{self.arch} uses {n} of {self.n_experts} experts")
        return n

    def n_ff_expert(self, il: int) -> int:
        """Columns inside an expert of layer `il`."""
        return self.per_layer("expert_feed_forward_length", 0)[il] or self.per_layer("feed_forward_length")[il]

    @property
    def rope_base(self) -> float:
        return self.number("rope.freq_base", 10000.0)

    @property
    def window_rope_base(self) -> float:
        """Rotary base of windowed layers, if different."""
        return self.number("rope.freq_base_swa", self.rope_base)

    @property
    def has_sections(self) -> bool:
        """Whether positions have several components (images, video); for text they are equal."""
        sections = self._get("rope.dimension_sections")
        return isinstance(sections, np.ndarray | list) and bool(np.any(sections[:2]))

    def gating(self, default: str) -> str:
        """Routing function, by the file or by default."""
        n = self.integer("expert_gating_func", 0)
        if n >= len(_GATINGS):
            raise ModelError(f"{self.arch}.expert_gating_func is {n}, which is unknown")
        return _GATINGS[n] or default

    def attend_to_all(self, n: int, what: str) -> None:
        """Raise ModelError for a context of which the model would choose parts: of more than `n` positions; `what` it
        chooses."""
        if self.n_ctx > n:
            raise ModelError(
                f"this model chooses among {what} beyond {n} positions, which pyllm does not do; load it with a "
                f"context of at most {n}"
            )

    # --- tensors

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self.tensors

    def read(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A small tensor's values, decoded. Raises ModelError for another shape."""
        tensor = self.tensors[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"tensor {name} has shape {list(tensor.shape)}, but the model needs {list(shape)}")
        return formats.get(tensor.format).decode(tensor.data)

    # --- values by key

    def integer(self, key: str, default: int | None = None, *, most: int = _MOST) -> int:
        """A count from 1 to `most`. Raises ModelError where it is missing without a default."""
        value = self._get(key)
        if value is None:
            return self._default(key, default)
        return self._as_count(key, value, most)

    def token(self, key: str, n_vocab: int) -> int:
        """A token's id; 0 where it is missing, or -1, as llama.cpp writes none."""
        value = self._get(key)
        is_none = isinstance(value, int | np.integer) and value == -1
        return 0 if is_none else self.integer(key, 0, most=n_vocab - 1)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises ModelError where it is missing without a default."""
        value = self._get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a finite number")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """A text."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a text")
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        """True or false; here false differs from a missing key."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if value is None:
            return default
        return self._as_flag(key, value)

    def per_layer(self, key: str, default: int | list[int] | None = None) -> list[int]:
        """A count for each layer; the file holds one for all, or an array, in which 0 means none."""
        value = self._get(key)
        if value is None and isinstance(default, list):
            return default
        if isinstance(value, np.ndarray | list):
            return [self._as_count(key, v, _MOST, least=0) for v in self._of_layers(key, value, self.n_layers)]
        return [self.integer(key, default if isinstance(default, int) else None)] * self.n_layers

    def numbers(self, key: str) -> list[float]:
        """A finite number for each layer: one for all, or an array, perhaps under the key without a prefix."""
        full = f"{self.arch}.{key}"
        value = self.metadata.get(full, self.metadata.get(key))
        if value is None:
            raise ModelError(f"metadata key {key} is missing")
        found = list(self._of_layers(key, value, self.n_layers)) if isinstance(value, np.ndarray | list) else [value]
        if not all(isinstance(v, int | float | np.number) and math.isfinite(v) for v in found):
            raise ModelError(f"{key} holds {value!r}, not finite numbers")
        return [float(v) for v in found] * (self.n_layers if len(found) == 1 else 1)

    def flags(self, key: str, default: bool) -> list[bool]:
        """A flag for each layer, one for all or an array; here false differs from a missing key."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if not isinstance(value, np.ndarray | list):
            return [self.flag(key, default)] * self.n_layers
        return [self._as_flag(key, v) for v in self._of_layers(key, value, self.n_layers)]

    def pattern(self, key: str, n_layers: int, period: int, *, dense_first: bool = False) -> list[bool]:
        """A flag for each layer. The file holds an array of flags, or a period n: every n-th layer is not flagged, the
        last of each n or the first. `period`: the default (0: no layer is flagged)."""
        value = self._get(key)
        if isinstance(value, np.ndarray | list):
            return [self._as_flag(key, v) for v in self._of_layers(key, value, n_layers)]
        period = period if value is None else self._as_count(key, value, _MOST)
        dense = 0 if dense_first else period - 1
        return [period > 0 and il % period != dense for il in range(n_layers)]

    def _get(self, key: str) -> Any:
        """The value; None where it is missing or "not used"."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, np.ndarray):
            return value if value.any() else None
        return value or None

    def _of_layers(self, key: str, value: Any, n_layers: int) -> Any:
        if len(value) < n_layers:
            raise ModelError(f"{self.arch}.{key} has {len(value)} values for {n_layers} layers")
        return value[:n_layers]

    def _default(self, key: str, default: Any) -> Any:
        if default is None:
            raise ModelError(f"metadata key {self.arch}.{key} is missing or zero")
        return default

    def _as_count(self, key: str, value: Any, most: int, least: int = 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a count from {least} to {most}")
        return int(value)

    def _as_flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool | int | np.bool_ | np.integer):
            raise ModelError(f"{self.arch}.{key} holds {value!r}, not a flag")
        return bool(value)
