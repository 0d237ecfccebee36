"""`dataclass`, as in the standard library, for classes that cost next to nothing to make.

The standard library writes and compiles up to seven functions for each frozen class, 0.3 ms, and a program that starts
makes a hundred and fifty classes. Here frozen classes share methods that go by their fields, and `__init__` is written
when it is first called. Fields, `replace`, `asdict`, pickling, inheritance and messages are those of the standard
library; so are classes that are not frozen.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

_MISSING = dataclasses.MISSING


def _make(
    cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, eq: bool = True, **more: Any
) -> Any:
    """The decorator; see the module."""
    if cls is None:
        return lambda cls: _make(cls, frozen=frozen, slots=slots, eq=eq, **more)
    if not frozen or not more.keys() <= {"kw_only"}:
        return dataclasses.dataclass(frozen=frozen, slots=slots, eq=eq, **more)(cls)
    own = dict(vars(cls))
    # A subclass of a frozen class has to be made as one.
    inherits = any(dataclasses.is_dataclass(base) for base in cls.__mro__[1:])
    made: Any = dataclasses.dataclass(frozen=inherits, slots=slots, init=False, repr=False, eq=False, **more)(cls)
    methods: dict[str, Any] = {"__init__": _first_init(made), "__repr__": _repr}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash}
    if not inherits:
        made.__dataclass_params__.frozen = True
        methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
        if slots:
            methods |= {"__getstate__": _getstate, "__setstate__": _setstate}
    for name, method in methods.items():
        if own.get(name) is None:  # __hash__ is None beside an __eq__
            setattr(made, name, method)
    if "__init__" not in own:
        made.__signature__ = _Signature()
    return made


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    dataclass = _make


class _Signature:
    """The signature of a class whose `__init__` may not be written yet."""

    def __get__(self, instance: object, owner: type) -> Any:
        from inspect import Signature, signature

        if "__init__" in vars(owner) and "__dataclass_fields__" not in vars(owner):
            raise AttributeError("__signature__")  # a subclass with an own one
        found = signature(_written(owner))
        return Signature([*found.parameters.values()][1:])


def _first_init(made: type) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init = made.__init__ = _written(made)  # type: ignore[misc]
        init(self, *args, **kwargs)

    __init__.__qualname__ = f"{made.__qualname__}.__init__"
    return __init__


def _written(made: type) -> Callable[..., None]:
    """The `__init__` of a class."""
    scope: dict[str, Any] = {"_set": object.__setattr__, "_missing": _MISSING}
    positional: list[str] = []
    named: list[str] = []
    body: list[str] = []
    for i, field in enumerate(dataclasses.fields(made)):
        name, value = field.name, field.name
        if field.default_factory is not _MISSING:
            scope[f"_make{i}"] = field.default_factory
            value = f"_make{i}() if {name} is _missing else {name}" if field.init else f"_make{i}()"
            default = "=_missing"
        elif field.default is not _MISSING:
            scope[f"_default{i}"] = field.default
            value = name if field.init else f"_default{i}"
            default = f"=_default{i}"
        else:
            default = ""
        if field.init:
            (named if field.kw_only else positional).append(name + default)
        if field.init or default:
            body.append(f"    _set(self, {name!r}, {value})")
    parameters = ", ".join(["self", *positional, *(["*", *named] if named else [])])
    if hasattr(made, "__post_init__"):
        body.append("    self.__post_init__()")
    exec(f"def __init__({parameters}):\n" + ("\n".join(body) or "    pass"), scope)
    init: Callable[..., None] = scope["__init__"]
    init.__qualname__, init.__module__ = f"{made.__qualname__}.__init__", made.__module__
    return init


@cache
def _values(cls: type, use: Callable[[Any], bool]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that gives an object's values of those fields of its class that `use` chooses."""
    names = [field.name for field in dataclasses.fields(cls) if use(field)]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _is_compared(field: Any) -> bool:
    return bool(field.compare)


def _is_hashed(field: Any) -> bool:
    return bool(field.compare if field.hash is None else field.hash)


def _eq(self: Any, other: Any) -> Any:
    if other is self:
        return True
    if other.__class__ is not self.__class__:
        return NotImplemented
    kind: type = self.__class__
    values = _values(kind, _is_compared)
    return values(self) == values(other)


def _hash(self: Any) -> int:
    return hash(_values(self.__class__, _is_hashed)(self))


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{self.__class__.__qualname__}({shown})"


def _refuse_to_set(self: Any, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
