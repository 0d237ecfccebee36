"""`str.format` for templates: jinja2's sandboxed formatter, with bounded results."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jinja2.sandbox import SandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from pyllm.chat.budget import current, text, weigh

_DIGITS = re.compile(r"\d+")


def formatted(environment: SandboxedEnvironment, owner: str, method: str) -> Callable[..., str]:
    """The method `format` or `format_map` of a text."""

    def call(*args: Any, **kwargs: Any) -> str:
        if method == "format_map":
            (kwargs,), args = args, ()
        formatter: SandboxedFormatter
        if isinstance(owner, Markup):
            formatter = _EscapeFormatter(environment, escape=owner.escape)
        else:
            formatter = _Formatter(environment)
        return type(owner)(formatter.vformat(owner, args, kwargs))

    return call


class _Bounded(SandboxedFormatter):
    """A formatter that counts widths and the text so far."""

    _n = 0

    def format_field(self, value: Any, format_spec: str) -> Any:
        current().step()
        text(sum(int(digits[:12]) for digits in _DIGITS.findall(format_spec)) + weigh(value))
        made = super().format_field(value, format_spec)
        self._n += len(made)
        text(self._n)
        return made

    def convert_field(self, value: Any, conversion: Any) -> Any:
        weigh(value)
        return super().convert_field(value, conversion)


class _Formatter(_Bounded):
    pass


class _EscapeFormatter(_Bounded, SandboxedEscapeFormatter):
    pass
