"""A model's hyper-parameters, read from GGUF metadata and checked: what is hostile or contradicts is a ModelError.

Keys are given without the architecture's prefix: `hp.integer("block_count")` reads `llama.block_count`. A value of
zero (false, an empty array or string) means "not used", as if the key were not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyllm.errors import ModelError

_MOST = 1 << 24
"""No count of a model (columns, positions, experts) is larger; keeps products far from overflow."""


class HParams:
    """Typed access to the metadata of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self.metadata = metadata
        self.arch = arch

    def integer(self, key: str, default: int | None = None, *, most: int = _MOST) -> int:
        """A count from 1 to `most`; ModelError when it is neither there nor has a default."""
        value = self._get(key)
        if value is None:
            return self._default(key, default)
        return self._as_count(key, value, most)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; ModelError when it is neither there nor has a default."""
        value = self._get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a finite number")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """A word."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a text")
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        """True or false; here, false is not the same as "not there"."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if value is None:
            return default
        return self._as_flag(key, value)

    def per_layer(self, key: str, n_layers: int, default: int | list[int] | None = None) -> list[int]:
        """A count of each layer; the file holds one for all, or an array of them."""
        value = self._get(key)
        if value is None and isinstance(default, list):
            return default
        if isinstance(value, np.ndarray | list):
            return [self._as_count(key, v, _MOST) for v in self._of_layers(key, value, n_layers)]
        return [self.integer(key, default if isinstance(default, int) else None)] * n_layers

    def pattern(self, key: str, n_layers: int, period: int) -> list[bool]:
        """A flag of each layer. The file holds an array of flags, or a period n: every n-th layer is not flagged;
        `period` where it holds neither (0: no layer is flagged)."""
        value = self._get(key)
        if isinstance(value, np.ndarray | list):
            return [self._as_flag(key, v) for v in self._of_layers(key, value, n_layers)]
        period = period if value is None else self._as_count(key, value, _MOST)
        return [period > 0 and il % period < period - 1 for il in range(n_layers)]

    def _get(self, key: str) -> Any:
        """The value, None where there is none or it says "not used"."""
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

    def _as_count(self, key: str, value: Any, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
            raise ModelError(f"{self.arch}.{key} is {value!r}, not a count from 1 to {most}")
        return int(value)

    def _as_flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool | int | np.bool_ | np.integer):
            raise ModelError(f"{self.arch}.{key} holds {value!r}, not a flag")
        return bool(value)
