"""The budget of one rendering of a template: processor time, and the size of values.

Every loop turn, call, filter, comparison, slice and joined text reports to a `Budget`. Between two reports at most one
operation runs, on values of bounded size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, TypeVar

from jinja2.utils import Namespace

from pyllm.errors import TemplateError

MAX_SECONDS = 5.0
"""Processor time of the rendering thread, so a busy machine does not count."""
MAX_TEXT = 1 << 24
"""Characters in one text, or in all texts that one value holds."""
MAX_ENTRIES = 1 << 20
"""Entries of one list or dictionary, or of all lists and dictionaries that one value holds."""
MAX_BITS = 1 << 16
"""Bits of a whole number."""
MAX_TOTAL = 1 << 29
"""Bytes of all values made by a rendering."""
MAX_WORK = 1 << 29
"""Characters that one operation may compare."""

_PER_ENTRY = MAX_TEXT // MAX_ENTRIES
_OBJECT = 256  # bytes that values of other kinds count for: namespaces, macros
PIECE = 80
"""Bytes of a short text."""

T = TypeVar("T")


class Listed:
    """Result of `map`, `select` and similar filters: to be read once, and true even when empty, like a generator.

    Unlike a generator it is computed at once and holds no other one, so chains of filters are not nested.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._values = listed(values)
        self._at = 0

    def __iter__(self) -> Listed:
        return self

    def __next__(self) -> Any:
        if self._at >= len(self._values):
            raise StopIteration
        self._at += 1
        return self._values[self._at - 1]

    def __repr__(self) -> str:
        return "<generator object>"


class Budget:
    """The rest of a budget."""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self._ends = time.thread_time() + MAX_SECONDS
        self._left = MAX_TOTAL

    def step(self) -> None:
        """Raise TemplateError where the time is used up."""
        if time.thread_time() > self._ends:
            raise TemplateError(f"the chat template did not finish within {MAX_SECONDS:g} seconds")

    def charge(self, n_bytes: int) -> None:
        """Raise TemplateError where a rendering has made too much."""
        self._left -= n_bytes
        if self._left < 0:
            raise too_much()


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def new_budget(shared: bool = False) -> Iterator[None]:
    """A whole budget for what runs within; `shared`: one for all renderings within together."""
    if not shared and (outer := _budget.get()) is not None and outer.shared:
        yield
        return
    token = _budget.set(Budget(shared))
    try:
        yield
    finally:
        _budget.reset(token)


def current() -> Budget:
    """The budget of the current rendering."""
    return _budget.get() or Budget()


def made(value: T) -> T:
    """Charge for a value that an operation made; returns it."""
    budget = current()
    budget.step()
    if value is None or isinstance(value, bool | float):
        budget.charge(32)
    elif isinstance(value, str | bytes):
        text(len(value))
        budget.charge(value.__sizeof__())
    elif isinstance(value, int):
        bits(value)
        budget.charge(value.__sizeof__())
    elif isinstance(value, list | tuple | dict):
        entries(len(value))
        budget.charge(value.__sizeof__())
    else:
        budget.charge(_OBJECT)
    return value


def turns(values: Iterable[T]) -> Iterator[T]:
    """The values, one step each."""
    budget = current()
    for value in values:
        budget.step()
        yield value


def listed(values: Iterable[Any]) -> list[Any]:
    """The values as a list, of bounded length."""
    found = list(islice(values, MAX_ENTRIES + 1))
    entries(len(found))
    if isinstance(values, str):
        current().charge(PIECE * len(found))
    return made(found)


# --- bounds of one value; each raises TemplateError


def text(n: int) -> None:
    """Check that a text of this many characters may be made."""
    if n > MAX_TEXT:
        raise too_much()


def entries(n: int) -> None:
    """Check that this many entries may be made."""
    if n > MAX_ENTRIES:
        raise too_much()


def bits(value: int) -> None:
    """Check that a whole number may be made, or calculated with."""
    if value.bit_length() > MAX_BITS:
        raise TemplateError("the chat template calculates with larger numbers than any prompt has")


def work(n: int) -> None:
    """Check that this many characters may be compared."""
    if n > MAX_WORK:
        raise TemplateError("the chat template compares more text than any prompt may hold")


def weigh(*values: Any) -> int:
    """Size of these values in characters when written out; an entry counts for several.

    A list that occurs many times counts each time, as in writing, comparing and hashing.
    """
    weight, todo = 0, list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, str | bytes):
            weight += len(value) + _PER_ENTRY
        elif isinstance(value, int):
            weight += value.bit_length() // 3 + _PER_ENTRY
        else:
            weight += _PER_ENTRY
            todo.extend(_held(value))
        if weight > MAX_TEXT or len(todo) > MAX_ENTRIES:
            raise too_much()
    return weight


def depth(value: Any) -> int:
    """Nesting depth of lists and dictionaries. The value must have been weighed."""
    deepest, todo = 0, [(value, 0)]
    while todo:
        value, above = todo.pop()
        held = _held(value)
        deepest = max(deepest, above + bool(held))
        todo.extend((entry, above + 1) for entry in held)
    return deepest


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, Listed):
        return value._values
    if isinstance(value, KeysView | ValuesView | type({}.items())):
        return list(value)
    return ()


def too_much() -> TemplateError:
    """The error for a value that is too large."""
    return TemplateError("the chat template makes more text than any prompt may hold")
