"""Functions for templates beside jinja2's own: the helpers of transformers and llama.cpp, and bounded replacements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import pass_environment
from jinja2.filters import make_attrgetter
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace

from pyllm.chat.budget import MAX_ENTRIES, Listed, current, depth, entries, listed, made, text, turns, weigh
from pyllm.errors import TemplateError


class TemplateNamespace(Namespace):
    """jinja2's namespace, without Python's special names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that "self" is a name like others
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class TemplateDict:
    """`dict` as a function, without the type's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"the chat template gives a namespace the name {name[:60]!r}; such names are Python's own")


_NO_CONTEXT: Any = None  # additions ask for none


def raise_exception(message: object = "") -> NoReturn:
    raise TemplateError(f"the chat template refuses these messages: {' '.join(str(message)[:10_000].split())}")


def strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise TemplateError("the chat template asks for a date of more than 1000 characters")
    return datetime.now().strftime(format)


def bounded_range(*args: int) -> range:
    found = range(*args)
    try:
        entries(len(found))
    except OverflowError:
        entries(MAX_ENTRIES + 1)
    return found


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it for templates: no HTML escapes, characters as they are."""
    weight = weigh(value, indent, separators)
    width = indent if isinstance(indent, int) else len(indent or "")
    levels = depth(value) if width > 0 else 0
    text(max(0, width) * levels * (weight // 16) + sum(map(len, separators or ())) * (weight // 16))
    return made(
        json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            default=_as_list,
        )
    )


def _as_list(value: Any) -> list[Any]:
    """JSON for values that templates may pass: the result of `map`, the keys of a dictionary."""
    if isinstance(value, Listed | type({}.keys()) | type({}.values()) | type({}.items()) | range):
        return listed(value)
    raise TypeError(f"object of type {type(value).__name__} is not JSON serializable")


def fromjson(value: str) -> Any:
    """The value that a JSON text holds."""
    current().step()
    n = sum(value.count(sign) for sign in ",[{")
    entries(n)
    current().charge(256 * n + len(value))
    try:
        return json.loads(value)
    except RecursionError:
        raise TemplateError("the chat template reads JSON that is nested too deeply") from None


@pass_environment
def total(
    environment: SandboxedEnvironment, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    """jinja2's `sum`, with a bound on each addition."""
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    for value in turns(values):
        start = environment.call_binop(_NO_CONTEXT, "+", start, value)
    return start


FILTERS = {"tojson": tojson, "fromjson": fromjson, "from_json": fromjson, "sum": total}
GLOBALS: Mapping[str, Any] = {
    "dict": TemplateDict(),
    "namespace": TemplateNamespace,
    "range": bounded_range,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "tojson": tojson,
    "fromjson": fromjson,
    "from_json": fromjson,
}
