"""Kinds of arguments: numbers, texts, sizes in bytes, formats for tensors, devices, models, biases, JSON."""

from __future__ import annotations

import re
from typing import Any

import click

from pyllm.config import GPULayers

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def text_option(value: str) -> str:
    """An argument as text: bytes that are not UTF-8 become replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class LinesType(click.ParamType):
    """An environment variable holds several values, one per line."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.splitlines() if line]


class TextType(LinesType):
    """A text."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return text_option(str(value))


class CountType(click.ParamType):
    """A whole number, at least `least`."""

    name = "N"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self._least - 1
        if number < self._least:
            self.fail(f"{value!r} is not a whole number of {self._least} or more", param, ctx)
        return number


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


class SecondsType(click.ParamType):
    """Seconds: 90, 5m, 1h30m."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        from pyllm.units import seconds

        found = seconds(value)
        if found is None:
            self.fail(f"{value!r} is not a time such as 90, 5m or 1h30m", param, ctx)
        return found


class AliasType(LinesType):
    """NAME=MODEL."""

    name = "NAME=MODEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        alias, _, model = (part.strip() for part in str(value).partition("="))
        if not alias or not model:
            self.fail(f"{value!r} is not of the form NAME=MODEL", param, ctx)
        return alias, model


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
            self.fail(f"{value!r} is not a tensor format; {hint}", param, ctx)
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
            self.fail(f"{pattern!r} is not a regular expression: {error}", param, ctx)
        return pattern, FormatType().convert(format, param, ctx)


class BiasType(click.ParamType):
    """ID=BIAS, for one token; as in llama.cpp also ID+BIAS and ID-BIAS."""

    name = "ID=BIAS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"\s*(\d+)\s*(=|[+-](?![+-]))(.+)", str(value), re.ASCII)
        try:
            if match is not None:
                return int(match[1]), float(match[3]) * (-1 if match[2] == "-" else 1)
        except ValueError:
            match = None
        return self.fail(f"{value!r} is not of the form 15043=-1.5, 15043+1.5 or 15043-1.5", param, ctx)


class GPULayersType(click.ParamType):
    """A number of layers, auto or all."""

    name = "N|auto|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GPULayers:
        try:
            return gpu_layers(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def gpu_layers(word: str) -> GPULayers:
    """The value of -ngl; -1 is auto, as in llama.cpp. Raises ValueError."""
    word = word.strip().lower()
    if word in ("auto", "-1"):
        return "auto"
    if word == "all":
        return "all"
    if not word.isascii() or not word.isdigit():
        raise ValueError(f"{word!r} is not a number of layers; use 20, auto or all")
    return int(word)


class NamesType(LinesType):
    """Names with commas between them."""

    name = "NAME,NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
        if not all(names):
            self.fail("a name is empty; names are like cuda0,cuda1 or none", param, ctx)
        return names


class DeviceRuleType(LinesType):
    """(pattern, device) pairs of `ffn_.*_exps=cpu,output=cuda1`.

    A comma separates two pairs if both sides contain an equals sign, so patterns may contain commas.
    """

    name = "PATTERN=DEVICE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, str):
            return value
        pairs, rest = [], ""
        for part in value.split(","):
            pattern, equals, device = (rest + part).rpartition("=")
            if equals:
                pairs.append((pattern, device.strip()))
                rest = ""
            else:
                rest += part + ","
        if rest or not all(pattern and device for pattern, device in pairs):
            self.fail(f"{value!r} is not of the form PATTERN=DEVICE", param, ctx)
        return tuple(pairs)


class SharesType(click.ParamType):
    """Numbers of `3,1` or `3/1`."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(part) for part in re.split("[,/]", value)) if value else ()
        except ValueError:
            return self.fail(f"{value!r} is not a list of numbers such as 3,1", param, ctx)


class JSONObjectType(click.ParamType):
    """An object in JSON."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        import json

        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value!r} is not a JSON object such as '{{\"enable_thinking\": false}}'", param, ctx)
        return found


class ModelType(click.types.StringParamType):
    """A model: a file, a name of the catalog, or hf.co/user/repo[:quant]. Shells complete names and files."""

    name = "MODEL"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from pyllm.cli._naming import known_models

        names = [CompletionItem(name) for name in known_models() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]
