"""Kinds of arguments: sizes in bytes, formats for tensors."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


class SizeType(click.ParamType):
    """Bytes: 2G, 900M, 1.5GB (powers of 1000), 700MiB (of 1024)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", str(value).strip().upper())
        if match is None or match[2] not in _UNITS or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size such as 2G, 900M or 700MiB", param, ctx)
        return max(1, int(float(match[1]) * _UNITS[match[2]]))


class FormatType(click.ParamType):
    """A tensor format, in any case."""

    name = "FORMAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import difflib

        from pyllm.gguf.types import BY_NAME

        name = str(value).upper()
        if name not in BY_NAME:
            close = difflib.get_close_matches(name, BY_NAME, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(BY_NAME)}"
            self.fail(f"{value!r} is no tensor format; {hint}", param, ctx)
        return name


class OverrideType(click.ParamType):
    """PATTERN=FORMAT: tensors in whose name a regular expression is found, and their format."""

    name = "PATTERN=FORMAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        pattern, equals, format = str(value).rpartition("=")
        if not equals or not pattern:
            self.fail(f"{value!r} is not of the form 'ffn_down=Q6_K'", param, ctx)
        try:
            re.compile(pattern)
        except re.error as error:
            self.fail(f"{pattern!r} is no regular expression: {error}", param, ctx)
        return pattern, FormatType().convert(format, param, ctx)
