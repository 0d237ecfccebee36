"""Description of a model for people: its layers, equal ones together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from pyllm.archs.decoder import Decoder, Part


def describe(decoder: Decoder) -> list[str]:
    """Lines of text: the embedding, then each group of layers with a line for each part, then norm and head."""
    groups: dict[tuple[Part, ...], list[int]] = {}
    for layer in decoder.layers:
        groups.setdefault(layer.parts, []).append(layer.index)
    lines = [f"token_embd{_factor(decoder.embed_scale)}"]
    for parts, indices in groups.items():
        lines.append(f"layer{'s' * (len(indices) > 1)} {_ranges(indices)}")
        lines += [f"  {_part(part)}" for part in parts]
    lines += [f"output_norm: {_text(decoder.norm)}", _text(decoder.head)]
    return lines


def _part(part: Part) -> str:
    """The part as a formula: x + scale * post(mix(norm(x)))."""
    read = "x" if part.norm is None else f"{part.norm}(x)"
    mixed = f"{_text(part.mix)} of {read}"
    added = mixed if part.post is None else f"{part.post}({mixed})"
    scaled = added if part.scale == 1 else f"{_text(part.scale)} * {added}"
    return f"x + {scaled}" if part.residual else f"x = {scaled}"


def _text(value: Any) -> str:
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        said = ", ".join(f"{f.name} {_text(v)}" for f, v in _said(value))
        return f"{type(value).__name__}({said})" if said else type(value).__name__
    if isinstance(value, tuple):
        return " + ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _said(value: Any) -> Iterator[tuple[Field[Any], Any]]:
    """Fields worth showing: public ones that differ from their defaults."""
    for f in fields(value):
        given = getattr(value, f.name)
        if f.repr and (f.default is MISSING or given != f.default):
            yield f, given


def _factor(scale: float) -> str:
    return "" if scale == 1 else f" * {_text(scale)}"


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as ranges: 0-3, 5, 7-9."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
