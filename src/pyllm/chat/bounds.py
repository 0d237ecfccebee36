"""Bounds on results of Python's methods and jinja2's filters, checked before the call.

`METHODS` names the methods of texts, lists and dictionaries that templates may call; a rule checks the arguments of a
call, and may replace an iterator by a list. None: no rule is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sized
from typing import Any

from pyllm.chat.budget import (
    MAX_ENTRIES,
    PIECE,
    Listed,
    current,
    entries,
    listed,
    made,
    text,
    too_much,
    turns,
    weigh,
    work,
)
from pyllm.errors import TemplateError

Arguments = tuple[Any, ...]
Rule = Callable[[Arguments, Mapping[str, Any]], Arguments | None]
"""Gets the arguments, the method's owner or the filtered value first. Returns replacements for them, or None."""

_SLOW = 100_000
"""Most characters for slow filters."""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CODECS = ("utf-8", "utf8", "ascii", "latin-1")
_PERCENT = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d*))?[hlL]?.?", re.DOTALL)
_NESTED_KEY = re.compile(r"%\([^()]*\(")
_NUMBER = 320  # characters of a float written without an exponent


def argument(args: Arguments, kwargs: Mapping[str, Any], at: int, name: str = "", default: Any = None) -> Any:
    """The argument at a place or by its name."""
    return args[at] if len(args) > at else kwargs.get(name, default)


def whole(value: Any) -> int:
    """A whole number among a call's arguments; other types count as 0, since the call itself refuses them."""
    return value if isinstance(value, int) else 0


def size(value: Any) -> int:
    """Entries of what can be counted."""
    return len(value) if isinstance(value, Sized) else 0


# --- texts


def _width(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    text(whole(argument(args, kwargs, 1, "width")))


def _strip(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    work(len(args[0]) * size(argument(args, kwargs, 1, "chars")))


def _from_the_right(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """Backward searches are quadratic; forward ones are not."""
    work(len(args[0]) * size(argument(args, kwargs, 1, "sep")))


def _expandtabs(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    text(len(args[0]) + args[0].count("\t") * whole(argument(args, kwargs, 1, "tabsize", 8)))


def _replace(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    value, old, new = (argument(args, kwargs, i, name) for i, name in enumerate(("s", "old", "new")))
    weigh(value, old, new)
    value, old, new = str(value), str(old), str(new)
    n, most = value.count(old), argument(args, kwargs, 3, "count")
    text(len(value) + len(new) * (n if not isinstance(most, int) or most < 0 else min(n, most)))


def _join(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    """As a method, the separator first."""
    items = listed(args[1]) if len(args) > 1 else []
    text(weigh(items) + len(args[0]) * len(items))
    return (args[0], items, *args[2:])


def _split(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments | None:
    value, most = args[0], argument(args, kwargs, 2, "maxsplit", -1)
    if len(value) <= MAX_ENTRIES or 0 <= whole(most) <= MAX_ENTRIES:
        return None
    separator = argument(args, kwargs, 1, "sep")
    entries(value.count(separator) if isinstance(separator, str) and separator else len(value) // 2)
    return None


def _rsplit(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments | None:
    _from_the_right(args, kwargs)
    return _split(args, kwargs)


def _splitlines(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    entries(_n_lines(args[0]))


def _n_lines(value: str) -> int:
    return 1 + sum(value.count(end) for end in _LINE_ENDS)


def _translate(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    table = argument(args, kwargs, 1, "table")
    if isinstance(table, dict):
        text(len(args[0]) * max([1, *(len(v) for v in table.values() if isinstance(v, str))]))
    else:
        weigh(table)


def _codec(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    name = argument(args, kwargs, 1, "encoding", "utf-8")
    if not isinstance(name, str) or name.lower() not in _CODECS:
        raise TemplateError("the chat template encodes text other than as UTF-8, which pyllm does not allow")


def _sequence(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """Prefixes, suffixes, tables of characters."""
    weigh(*args[1:])


# --- lists and dictionaries


def _one_more(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    entries(len(args[0]) + 1)


def _extend(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    added = [values if isinstance(values, list | tuple) else listed(values) for values in args[1:]]
    entries(len(args[0]) + sum(map(len, added)))
    return (args[0], *added)


def _compares(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    weigh(*args)


def _sort(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("key") is not None:
        raise TemplateError("the chat template sorts by a function, which pyllm does not allow")
    weigh(args[0])


def _key(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """Only tuples are slow to hash."""
    if len(args) > 1 and isinstance(args[1], tuple):
        weigh(args[1])


def _setdefault(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _key(args, kwargs)
    entries(len(args[0]) + 1)


def _update(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    added = [value if isinstance(value, dict) else listed(value) for value in args[1:]]
    weigh([value for value in added if isinstance(value, list)])  # pairs, whose keys are hashed
    entries(len(args[0]) + sum(map(len, added)) + len(kwargs))
    return (args[0], *added)


def _free(names: str) -> dict[str, Rule | None]:
    return dict.fromkeys(names.split())


METHODS: dict[type, dict[str, Rule | None]] = {
    str: _free(
        "capitalize casefold count find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
        "isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix swapcase title upper"
    )
    | {
        "startswith": _sequence,
        "endswith": _sequence,
        "maketrans": _sequence,
        "strip": _strip,
        "lstrip": _strip,
        "rstrip": _strip,
        "rfind": _from_the_right,
        "rindex": _from_the_right,
        "rpartition": _from_the_right,
        "rsplit": _rsplit,
        "split": _split,
        "splitlines": _splitlines,
        "center": _width,
        "ljust": _width,
        "rjust": _width,
        "zfill": _width,
        "expandtabs": _expandtabs,
        "replace": _replace,
        "join": _join,
        "translate": _translate,
        "encode": _codec,
    },
    bytes: {"decode": _codec},
    list: _free("clear copy pop reverse")
    | {
        "append": _one_more,
        "insert": _one_more,
        "extend": _extend,
        "index": _compares,
        "count": _compares,
        "remove": _compares,
        "sort": _sort,
    },
    tuple: {"index": _compares, "count": _compares},
    dict: _free("clear copy items keys popitem values")
    | {"get": _key, "pop": _key, "setdefault": _setdefault, "update": _update},
    int: _free("bit_length is_integer"),
    float: _free("is_integer"),
}
"""Methods by the type of their owner; `str.format` and `format_map` have a formatter of their own."""


def methods_of(owner: Any) -> dict[str, Rule | None] | None:
    """The methods that templates may call on a value; None where it is not of a built-in type."""
    for kind in type(owner).__mro__:
        if kind in METHODS:
            return METHODS[kind]
    return {} if type(owner).__module__ == "builtins" and not callable(owner) else None


# --- filters


def _looks(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """A filter that iterates over a value's entries without writing them out."""
    if isinstance(args[0], str):
        entries(len(args[0]))
        current().charge(PIECE * len(args[0]))


def _compares_all(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    """A filter that iterates over a value's entries and compares or hashes them."""
    _looks(args, kwargs)
    weigh(*args, *kwargs.values())


def _trim(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    work(weigh(args[0]) * size(argument(args, kwargs, 1, "chars")))


def _slow(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    if weigh(*args, *kwargs.values()) > _SLOW:
        raise too_much()


def _wordwrap(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _slow(args, {})
    wrap = argument(args, kwargs, 3, "wrapstring")
    text(len(str(args[0])) * (1 + size(wrap)))


def _join_filter(args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    items = listed(args[0])
    separator = argument(args, kwargs, 1, "d", "")
    text(weigh(items, separator) + len(str(separator)) * len(items))
    return (items, *args[1:])


def _indent(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    value, width = args[0], argument(args, kwargs, 1, "width", 4)
    if isinstance(value, str):
        n = _n_lines(value)
        entries(n)
        text(len(value) + (len(width) if isinstance(width, str) else whole(width)) * n)


def _batch(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _looks(args, kwargs)
    if argument(args, kwargs, 2, "fill_with") is not None:
        entries(whole(argument(args, kwargs, 1, "linecount")))


def _slice(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    _looks(args, kwargs)
    entries(whole(argument(args, kwargs, 1, "slices")))


def _round(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    if abs(whole(argument(args, kwargs, 1, "precision"))) > 4096:
        raise TemplateError("the chat template rounds to more places than a number has")


def _format(args: Arguments, kwargs: Mapping[str, Any]) -> None:
    weigh(args[0])
    check_percent(str(args[0]), kwargs or args[1:])


def check_percent(value: str, arguments: Any) -> None:
    """Bound the result of `value % arguments`. Raises TemplateError."""
    weight = weigh(arguments)
    if _NESTED_KEY.search(value):
        raise TemplateError("the chat template uses a format string that pyllm does not allow")
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    widest = max([0, *(abs(a) for a in given if isinstance(a, int))])
    total = len(value)
    for found in turns(_PERCENT.finditer(value)):
        numbers = [widest if n == "*" else int(n[:12]) for n in found.groups() if n]
        total += sum(numbers) + weight + _NUMBER
        text(total)


FILTERS: dict[str, Rule | None] = {
    **_free("abs attr count d default first float int last length random"),
    **dict.fromkeys(("list", "items", "map", "select", "selectattr", "reject", "rejectattr"), _looks),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _compares_all),
    **dict.fromkeys(("pprint", "striptags", "title", "urlencode", "wordcount", "xmlattr"), _slow),
    "batch": _batch,
    "center": _width,
    "format": _format,
    "indent": _indent,
    "join": _join_filter,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "trim": _trim,
    "wordwrap": _wordwrap,
}
"""Rules of jinja2's filters; filters not listed write their value out, or compare its entries."""


def bounded(name: str, args: Arguments, kwargs: Mapping[str, Any]) -> Arguments:
    """The arguments of a filter, checked by its rule, or weighed."""
    if name not in FILTERS:
        weigh(*args, *kwargs.values())
        return args
    rule = FILTERS[name]
    return (rule(args, kwargs) if rule is not None and args else None) or args


def result_of(value: Any) -> Any:
    """The result of a filter: generators and iterators become `Listed`."""
    if isinstance(value, str | bytes | list | tuple | dict | Listed) or not hasattr(value, "__next__"):
        return made(value)
    return Listed(value)
