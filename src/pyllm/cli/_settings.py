"""Flags made from settings: of loading, placement, generation, sampling and serving.

A flag's value has the setting's name among a command's options, and is None, or an empty tuple, where it is not given:
defaults are those of the settings classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, get_args

import click

from pyllm.cli._types import (
    AliasType,
    BiasType,
    CountType,
    DeviceRuleType,
    GPULayersType,
    NamesType,
    SecondsType,
    SharesType,
    SizeType,
    TextType,
)
from pyllm.config import GenerateSettings, KVDtype, LoadSettings, PlacementOptions
from pyllm.config.serving import ServeOptions
from pyllm.config.setting import Setting, settings_of
from pyllm.sampling.general import all_settings

F = TypeVar("F", bound=Callable[..., Any])

OF_PLACEMENT = {s.name: s for s in settings_of(PlacementOptions)}
OF_LOADING = {s.name: s for s in settings_of(LoadSettings)}
OF_GENERATION = {s.name: s for s in settings_of(GenerateSettings)}
OF_SERVING = {s.name: s for s in settings_of(ServeOptions)}

_TYPES: dict[str, tuple[click.ParamType, str | None]] = {
    "int": (click.INT, "N"),
    "float": (click.FLOAT, "N"),
    "str": (TextType(), "TEXT"),
    "KVDtype": (click.Choice(get_args(KVDtype)), None),
    "GPULayers": (GPULayersType(), "N|auto|all"),
    "tuple[float, ...]": (SharesType(), None),
    "Sequence[str] | None": (TextType(), "NAME;NAME"),
    "Seconds": (SecondsType(), None),
    "Size": (SizeType(), None),
    "FilePath": (TextType(), "FILE"),
}
"""Types of the command line, and what help calls a value, by annotation."""
_REPEATED: dict[str, tuple[click.ParamType, str | None]] = {
    "Sequence[int]": (click.INT, "ID"),
    "Sequence[str]": (TextType(), "TEXT"),
    "tuple[str, ...]": (TextType(), "TEXT"),
    "tuple[tuple[str, str], ...]": (DeviceRuleType(), None),
    "Mapping[int, float]": (BiasType(), None),
    "Aliases": (AliasType(), None),
}
"""The same, of flags that may be repeated."""


def flags(settings: Iterable[Setting]) -> Callable[[F], F]:
    """Decorator: the flags of these settings, where they have some."""

    def with_flags(function: F) -> F:
        for setting in reversed([s for s in settings if s.flags != ()]):
            function = flag(setting)(function)
        return function

    return with_flags


def flag(setting: Setting, **more: Any) -> Callable[[F], F]:
    """Decorator: the flag of a setting. `more`: what differs from what the setting says."""
    setting = replace(setting, **more)
    names = setting.flags or (flag_of(setting.name),)
    text = re.sub("`(\\w+)`", lambda found: flag_of(found[1]), setting.help or setting.doc)
    if setting.type == "bool":
        return click.option(*names, setting.name, is_flag=True, callback=_switch(not setting.default), help=text)
    kind = setting.type if setting.type in _TYPES else setting.type.removesuffix(" | None")
    multiple = kind in _REPEATED
    as_type, metavar = (_REPEATED if multiple else _TYPES)[kind]
    if setting.commas:
        as_type = NamesType()
    elif kind == "int" and setting.low > -math.inf:
        as_type = CountType(int(setting.low if setting.minus_one == -1 else min(setting.low, -1)))
    if multiple and "repeated" not in text:
        text = f"{text.removesuffix('.')}; may be repeated."
    if isinstance(setting.default, str | int | float) and "[default" not in text:
        text = f"{text}  [default: {setting.default}]"
    return click.option(
        *names,
        setting.name,
        type=as_type,
        metavar=setting.metavar or metavar,
        multiple=multiple,
        callback=_joined if setting.commas or isinstance(as_type, DeviceRuleType) else None,
        help=text,
    )


def flag_of(name: str) -> str:
    """The long flag of a setting."""
    settings = (*all_settings(), *OF_LOADING.values(), *OF_GENERATION.values(), *OF_SERVING.values())
    names = next((s.flags for s in settings if s.name == name), None)
    return max(names, key=len) if names else "--" + name.replace("_", "-")


def taken(options: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """Remove the values of these settings from a command's `options`; returns those that were given."""
    found = {s.name: options.pop(s.name) for s in settings if s.name in options}
    return {name: value for name, value in found.items() if value is not None and value != ()}


def _switch(given: bool) -> Callable[[click.Context, click.Parameter, Any], bool | None]:
    return lambda _context, _param, value: given if value else None


def _joined(_context: click.Context, _param: click.Parameter, values: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
    return tuple(value for several in values for value in several)
