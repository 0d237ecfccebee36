"""Settings out of config.json, each checked for its type and range: what makes no sense is a ModelError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.errors import ModelError

_MOST = 1 << 24
_LARGEST = 1e30  # fits in float32; no setting comes near


class Config:
    """Typed access to a model's settings; `defaults` are those of its family in transformers.

    A value of null counts as not there.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.defaults = defaults or {}

    def get(self, *keys: str) -> Any:
        """The value of the first of these keys that is there, else the default of one, else None."""
        for table in (self.values, self.defaults):
            for key in keys:
                if table.get(key) is not None:
                    return table[key]
        return None

    def integer(self, *keys: str, default: int | None = None, least: int = 1, most: int = _MOST) -> int:
        """A count from `least` to `most`."""
        value = self.get(*keys)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json lacks {keys[0]}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ModelError(f"config.json's {keys[0]} is {value!r}, not a count from {least} to {most}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(*keys)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json lacks {keys[0]}")
        return as_number(value, keys[0])

    def optional(self, *keys: str) -> float | None:
        """A finite number, or None."""
        value = self.get(*keys)
        return None if value is None else as_number(value, keys[0])

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(*keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json's {keys[0]} is {value!r}, not true or false")
        return value

    def text(self, *keys: str, default: str = "") -> str:
        """A word."""
        value = self.get(*keys)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ModelError(f"config.json's {keys[0]} is {value!r}, not a text")
        return value

    def table(self, *keys: str) -> dict[str, Any]:
        """A table, empty where there is none."""
        value = self.get(*keys)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ModelError(f"config.json's {keys[0]} is {value!r}, not a table")
        return value

    def items(self, key: str, n: int) -> list[Any] | None:
        """A list of `n` values or more, cut to `n`; None where there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < n:
            raise ModelError(f"config.json's {key} is no list of {n} values, one for each layer")
        return value[:n]


def as_number(value: Any, key: str) -> float:
    """A finite number. Raises ModelError, naming the key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ModelError(f"config.json's {key} is {value!r}, not a finite number")
    return float(value)
