"""Validation of arguments by their annotations; a RequestError says what fits.

`checked` validates a function's arguments, `settle` the fields of a settings class. numpy's numbers are accepted like
Python's, None stands for a default, and a text is never read as a list of letters. An annotation that says more than a
type is `Annotated[type, Kind]`; annotations imported for type checkers alone are not checked.
"""

from __future__ import annotations

import functools
import os
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from pyllm.errors import RequestError

F = TypeVar("F", bound=Callable[..., Any])

_BYTES = (bytes, bytearray, memoryview)
_PLAIN = (bool, int, float, str, bytes)
_NONE = object()
_settled: dict[type, list[tuple[str, Kind, Any]]] = {}
"""Fields of settings classes: name, kind, default."""


class Kind(NamedTuple):
    """The values that an argument accepts."""

    words: str
    """"a whole number": follows "must be"."""
    take: Callable[[str, Any], Any]
    """take(name, value): the value, converted to its usual type. Raises RequestError."""
    takes_none: bool = False
    takes_text: bool = False
    """Whether a text may stand for a list of one."""


def checked(function: F) -> F:
    """Decorator: validates and converts arguments by their annotations before the call."""
    known: list[tuple[list[str], dict[str, tuple[Kind, Any]]]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not known:
            known.append(_parameters(function))
        names, kinds = known[0]
        taken = [
            _take(name, arg, *kinds[name]) if name in kinds else arg for name, arg in zip(names, args, strict=False)
        ]
        for name, arg in kwargs.items():
            if name in kinds:
                kwargs[name] = _take(name, arg, *kinds[name])
        return function(*taken, *args[len(taken) :], **kwargs)

    return call  # type: ignore[return-value]


def settle(settings: Any) -> None:
    """Validate and convert the fields of a frozen dataclass by their annotations; for its `__post_init__`."""
    kinds = _settled.get(type(settings)) or _settled.setdefault(type(settings), _fields(type(settings)))
    for name, kind, default in kinds:
        value = getattr(settings, name)
        taken = _take(name, value, kind, default)
        if taken is not value:
            object.__setattr__(settings, name, taken)


def refusal(name: str, value: Any, words: str, hint: str = "") -> RequestError:
    """The error for a value that does not fit."""
    return RequestError(f"{name} must be {words}, not {_shown(value)}" + (f"; {hint}" if hint else ""))


def entries_of(value: Any) -> list[Any] | None:
    """Entries of a list, a tuple, an array or another iterable, in order; None for any other value."""
    if isinstance(value, (str, *_BYTES, Mapping, abc.Set)):
        return None
    if getattr(value, "ndim", 0) == 1 and callable(getattr(value, "tolist", None)):
        value = value.tolist()  # an array's numbers as Python's
    try:
        return list(value)
    except TypeError:
        return None


def _take(name: str, value: Any, kind: Kind, default: Any) -> Any:
    if value is None and not kind.takes_none and default is not _NONE:
        return default() if callable(default) else default
    return kind.take(name, value)


def _shown(value: Any) -> str:
    try:
        if value is None or isinstance(value, _PLAIN):
            text = repr(value[:60] if isinstance(value, str | bytes) else value)
            return text if len(text) < 60 else text[:57] + "..."
    except ValueError:
        return "a number of thousands of digits"
    name = "array" if hasattr(value, "ndim") else type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


# Kinds of single values.


def _scalar(value: Any) -> Any:
    """A number of numpy, or an array of one without dimensions, as a number of Python."""
    return value.item() if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)) else value


def _whole(name: str, value: Any) -> int:
    number = _scalar(value)
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise refusal(name, number, "a whole number")
    number = int(number)
    if not -(1 << 63) <= number < 1 << 64:
        raise refusal(name, number, "a whole number of at most 64 bits")
    return number


def _number(name: str, value: Any) -> float:
    number = _scalar(value)
    if isinstance(number, Real) and not isinstance(number, bool):
        try:
            number = float(number)
        except OverflowError:
            raise refusal(name, value, "a number that a double holds") from None
        if number == number:
            return number
    raise refusal(name, number, "a number")


def _flag(name: str, value: Any) -> bool:
    flag = _scalar(value)
    if not isinstance(flag, bool):
        raise refusal(name, flag, "True or False")
    return flag


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refusal(name, value, "a text", decode_hint(value))
    return value


def _path(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise refusal(name, value, "a path (a text or a Path)", decode_hint(value))
    try:
        usable = bool(os.fsencode(text)) and "\0" not in text
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise RequestError(f"{name} is {_shown(text)}, which no file can be called")
    return text


def decode_hint(value: Any) -> str:
    """A hint for bytes given in place of a text; empty for other values."""
    return "decode it first: data.decode()" if isinstance(value, _BYTES) else ""


def _token_ids(name: str, value: Any) -> list[int]:
    if isinstance(value, str):
        raise refusal(name, value, "a list of token ids", "a tokenizer's encode() gives those of a text")
    entries = entries_of(value)
    if entries is None:
        raise refusal(name, value, "a list of token ids")
    if set(map(type, entries)) <= {int}:
        return entries
    return [_whole(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]


TokenIds = Annotated[Iterable[int], Kind("a list of token ids", _token_ids)]
"""Token ids: a list, an array, or another iterable. Functions get them as a list."""
FilePath = Annotated[str | os.PathLike[str], Kind("a path", _path, takes_text=True)]
"""A file's path. Functions get it as text."""


# Kinds made of others.


def kind_of(hint: Any) -> Kind:
    """The kind that an annotation stands for."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((extra for extra in inner[1:] if isinstance(extra, Kind)), None) or kind_of(inner[0])
    if origin in (Union, UnionType):
        return _either([kind_of(part) for part in inner if part is not NoneType], NoneType in inner)
    if origin is Literal:
        return _one_of(inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return _group([kind_of(part) for part in inner])
    if origin in (tuple, list, abc.Sequence, abc.Iterable):
        return _several(kind_of(inner[0]))
    if origin in (dict, abc.Mapping):
        return _mapping(*inner)
    if origin is abc.Callable or hint is abc.Callable:
        return _such(callable, "a function")
    if hint in _SINGLE:
        return _SINGLE[hint]
    if isinstance(hint, type) and hint is not Any:
        return _such(lambda value: isinstance(value, hint), f"a {hint.__name__}")
    return _such(lambda value: True, "anything")


_SINGLE = {
    int: Kind("a whole number", _whole),
    float: Kind("a number", _number),
    bool: Kind("True or False", _flag),
    str: Kind("a text", _text, takes_text=True),
}


def _such(fits: Callable[[Any], bool], words: str) -> Kind:
    def take(name: str, value: Any) -> Any:
        if not fits(value):
            raise refusal(name, value, words)
        return value

    return Kind(words, take)


def _one_of(values: Sequence[str]) -> Kind:
    *some, last = map(repr, values)
    return _such(lambda v: isinstance(v, str) and v in values, f"{', '.join(some)} or {last}" if some else last)


def _either(kinds: Sequence[Kind], or_none: bool) -> Kind:
    words = " or ".join(kind.words for kind in kinds)

    def take(name: str, value: Any) -> Any:
        if value is None and or_none:
            return None
        if len(kinds) == 1:
            return kinds[0].take(name, value)
        for kind in kinds:
            try:
                return kind.take(name, value)
            except RequestError:
                continue
        raise refusal(name, value, words)

    return Kind(words, take, or_none, any(kind.takes_text for kind in kinds))


def _several(item: Kind) -> Kind:
    words = f"a list of {_plural(item.words)}"
    if item.takes_text:
        words = f"{item.words} or {words}"

    def take(name: str, value: Any) -> tuple[Any, ...]:
        alone = item.takes_text and isinstance(value, str | os.PathLike)
        entries = [value] if alone else entries_of(value)
        if entries is None:
            raise refusal(name, value, words)
        return tuple([item.take(f"{name}[{i}]", entry) for i, entry in enumerate(entries)])

    return Kind(words, take)


def _plural(words: str) -> str:
    if words.startswith("a ") and " or " not in words:
        first, *rest = words[2:].split(" of ", 1)
        plural = first[:-1] + "ies" if first.endswith("y") else first + "s"
        return " of ".join([plural, *rest])
    return f"entries that are {words}"


def _group(items: Sequence[Kind]) -> Kind:
    words = f"a pair of {' and '.join(item.words for item in items)}"

    def take(name: str, value: Any) -> tuple[Any, ...]:
        entries = entries_of(value)
        if entries is None or len(entries) != len(items):
            raise refusal(name, value, words)
        return tuple([kind.take(f"{name}[{i}]", e) for i, (kind, e) in enumerate(zip(items, entries, strict=True))])

    return Kind(words, take)


def _mapping(key: Any, entry: Any) -> Kind:
    """Dictionaries, or lists of pairs. A number as key may be a text, as it is in JSON."""
    keys = Kind("a whole number", _whole_key) if key is int else kind_of(key)
    entries = kind_of(entry)
    pairs = _several(_group([keys, entries]))
    words = (
        f"a dictionary from {_plural(keys.words)} to {_plural(entries.words)}" if entry is not Any else "a dictionary"
    )

    def take(name: str, value: Any) -> dict[Any, Any]:
        if isinstance(value, Mapping):
            return {keys.take(f"a key of {name}", k): entries.take(f"{name}[{_shown(k)}]", v) for k, v in value.items()}
        if entries_of(value) is None or entry is Any:
            raise refusal(name, value, words)
        return dict(pairs.take(name, value))

    return Kind(words, take)


def _whole_key(name: str, value: Any) -> int:
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    return _whole(name, int(value) if digits else value)


# Annotations of functions and classes.


def _fields(settings: type) -> list[tuple[str, Kind, Any]]:
    hints = get_type_hints(settings, include_extras=True)
    found = []
    for f in fields(settings):
        default = f.default if f.default is not MISSING else f.default_factory
        found.append((f.name, kind_of(hints[f.name]), _NONE if default is MISSING else default))
    return found


def _parameters(function: Callable[..., Any]) -> tuple[list[str], dict[str, tuple[Kind, Any]]]:
    """Names of the parameters that may be given by position, and kinds and defaults of all that have an annotation."""
    code = function.__code__
    names = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    positional = names[: code.co_argcount]
    given = function.__defaults__ or ()
    defaults = dict(zip(positional[len(positional) - len(given) :], given, strict=True)) | (
        function.__kwdefaults__ or {}
    )
    kinds = {}
    for name in names:
        if name in function.__annotations__:

            def alone() -> None: ...

            alone.__annotations__ = {name: function.__annotations__[name]}
            try:
                hint = get_type_hints(alone, function.__globals__, include_extras=True)[name]
            except NameError:  # imported for type checkers only
                continue
            kinds[name] = kind_of(hint), defaults.get(name, _NONE)
    return positional, kinds
