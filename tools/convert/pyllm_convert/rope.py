"""RoPE settings of config.json → metadata keys, and the tensors that some scalings need.

transformers ≤ 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`, which may hold one table for
each kind of layer ("full_attention", "sliding_attention").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm_convert.config import Config

_KINDS = ("full_attention", "sliding_attention")


@dataclass
class Rope:
    """What a model's positions become in a file."""

    keys: dict[str, Any] = field(default_factory=dict)
    """Metadata without the architecture's prefix; floats, integers, strings."""
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the file cannot say, in words."""


def rope_of(config: Config, n_rot: int, own_tensors: bool) -> Rope:
    """Positions as `config` has them. `own_tensors`: the architecture reads factors of frequencies from tensors.

    Raises ModelError for scalings that are not known, or that the architecture has no place for.
    """
    both = config.table("rope_parameters", "rope_scaling")
    full, local = (_table(both, kind) for kind in _KINDS)
    rope = Rope()
    rope.keys["rope.freq_base"] = _number(full, "rope_theta", config.number("rope_theta", default=10000.0))
    base_local = config.optional("rope_local_base_freq")
    if "sliding_attention" in both:
        base_local = _optional(local, "rope_theta") or base_local
    if base_local is not None:
        rope.keys["rope.freq_base_swa"] = base_local
    if "sliding_attention" in both and _kind(local) != "default":
        raise ModelError(f"RoPE scaling {_kind(local)!r} of windowed layers cannot be converted")
    _scale(rope, full, config, n_rot, own_tensors)
    return rope


def _scale(rope: Rope, table: dict[str, Any], config: Config, n_rot: int, own_tensors: bool) -> None:
    kind = _kind(table)
    if kind in ("default", "none"):
        return
    if kind == "dynamic":
        rope.notes.append("dynamic RoPE scaling, which only matters beyond the trained context, is left out")
    elif kind == "linear":
        rope.keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": _factor(table, config)}
    elif kind == "yarn":
        _yarn(rope, table, config)
    elif kind == "llama3" and own_tensors:
        rope.tensors["rope_freqs.weight"] = _llama3(table, rope.keys["rope.freq_base"], n_rot)
    elif kind == "proportional" and own_tensors:
        rope.tensors["rope_freqs.weight"] = _proportional(table, n_rot)
    elif kind in ("longrope", "su") and own_tensors:
        _longrope(rope, table, config, n_rot)
    else:
        raise ModelError(f"RoPE scaling {kind!r} cannot be converted for this architecture")


def _yarn(rope: Rope, table: dict[str, Any], config: Config) -> None:
    factor = _factor(table, config)
    grown = 0.1 * math.log(factor) if factor > 1 else 0.0
    attention = _optional(table, "attention_factor")
    mscale, mscale_all = (Config(table).number(key, default=0.0) for key in ("mscale", "mscale_all_dim"))
    if attention is None and mscale and mscale_all:
        attention = (1 + mscale * grown) / (1 + mscale_all * grown)
    keys = rope.keys
    keys["rope.scaling.type"] = "yarn"
    keys["rope.scaling.factor"] = factor
    keys["rope.scaling.original_context_length"] = _original(table, config)
    if attention is not None and not math.isclose(attention, 1 + grown, rel_tol=1e-6):
        # Engines multiply this by YaRN's own 1 + 0.1 ln(factor).
        keys["rope.scaling.attn_factor"] = attention / (1 + grown)
    for key in ("beta_fast", "beta_slow"):
        value = _optional(table, key)
        if value is not None:
            keys[f"rope.scaling.yarn_{key}"] = value
    if table.get("truncate") is False:
        keys["rope.scaling.yarn_truncate"] = False
        rope.notes.append("YaRN's range of frequencies is not rounded to whole columns; llama.cpp would round it")


def _llama3(table: dict[str, Any], base: float, n_rot: int) -> NDArray[np.float32]:
    """What divides each frequency, [n_rot / 2]: 1 for short waves, the factor for long ones, a ramp in between."""
    factor, low, high, n_ctx = (
        _number(table, key, default)
        for key, default in (
            ("factor", 8.0),
            ("low_freq_factor", 1.0),
            ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 8192.0),
        )
    )
    if not (low < high and factor >= 1):
        raise ModelError(f"RoPE scaling llama3 with {table} makes no sense")
    waves = 2 * math.pi * base ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    kept = np.clip((n_ctx / waves - low) / (high - low), 0.0, 1.0)
    return (1 / (kept + (1 - kept) / factor)).astype(np.float32)


def _proportional(table: dict[str, Any], n_rot: int) -> NDArray[np.float32]:
    """What divides each frequency, [n_rot / 2]: the factor for the first share of pairs; the others do not turn, for
    which files have 1e30."""
    share = _number(table, "partial_rotary_factor", 1.0)
    if share > 1:
        raise ModelError(f"config.json's partial_rotary_factor is {share!r}; it is a share of one at most")
    factors = np.full(n_rot // 2, 1e30, np.float32)
    factors[: int(share * n_rot // 2)] = _number(table, "factor", 1.0)
    return factors


def _longrope(rope: Rope, table: dict[str, Any], config: Config, n_rot: int) -> None:
    n_ctx, original = config.integer("max_position_embeddings", most=1 << 31), _original(table, config)
    factor = _number(table, "factor", n_ctx / original)
    attention = _optional(table, "attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    rope.keys |= {
        "rope.scaling.type": "longrope",
        "rope.scaling.attn_factor": attention,
        "rope.scaling.original_context_length": original,
    }
    for length in ("long", "short"):
        values = table.get(f"{length}_factor")
        if not isinstance(values, list) or len(values) != n_rot // 2:
            raise ModelError(f"config.json's {length}_factor is no list of {n_rot // 2} numbers")
        factors = [_number({f"{length}_factor": v}, f"{length}_factor", 0.0) for v in values]
        rope.tensors[f"rope_factors_{length}.weight"] = np.array(factors, np.float32)


def _table(both: dict[str, Any], kind: str) -> dict[str, Any]:
    if not any(isinstance(both.get(k), dict) for k in _KINDS):
        return both
    inner = both.get(kind)
    return inner if isinstance(inner, dict) else {}


def _kind(table: dict[str, Any]) -> str:
    kind = table.get("rope_type") or table.get("type") or "default"
    if not isinstance(kind, str):
        raise ModelError(f"config.json's rope_type is {kind!r}, not a text")
    return kind.lower()


def _factor(table: dict[str, Any], config: Config) -> float:
    value = _optional(table, "factor")
    if value is None:
        value = config.integer("max_position_embeddings", most=1 << 31) / _original(table, config)
    return value


def _original(table: dict[str, Any], config: Config) -> int:
    """Positions of the first training."""
    inner = Config(table)
    if inner.get("original_max_position_embeddings") is not None:
        return inner.integer("original_max_position_embeddings", most=1 << 31)
    return config.integer("original_max_position_embeddings", "max_position_embeddings", most=1 << 31)


def _optional(table: dict[str, Any], key: str) -> float | None:
    """A positive number, or None where the table has none."""
    value = Config(table).optional(key)
    if value is not None and value <= 0:
        raise ModelError(f"config.json's {key} is {value!r}; it must be positive")
    return value


def _number(table: dict[str, Any], key: str, default: float) -> float:
    value = _optional(table, key)
    return default if value is None else value
