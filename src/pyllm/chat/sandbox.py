"""A jinja2 environment for templates that come with a downloaded file: the helpers they expect, and bounded work.

Templates are code of strangers. jinja2's immutable sandbox keeps them from Python's insides; what it leaves open is
work without end. So every loop turn, call, filter and joined text reports to a `Budget`, which allows a rendering five
seconds, 16 million characters in any one value and 256 million in all values together. Between two reports at most one
operation on values of that size runs: a hostile template ends soon after the five seconds, with a TemplateError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pyllm.errors import TemplateError

MAX_SECONDS = 5.0
MAX_VALUE = 1 << 24  # characters, or entries, in one value
MAX_TOTAL = 1 << 28  # the same, over all values of a rendering
MAX_ENTRIES = 1 << 20  # entries of lists, and of lists in lists, in a value that is written out
MAX_NUMBER = 100_000  # largest whole number given to a filter or function: widths, counts

# Filters that look at a list or hand it on, but never write it out.
_LOOKING = {
    "length", "count", "first", "last", "list", "map", "select", "selectattr", "reject", "rejectattr", "items",
    "dictsort", "default", "d",
}  # fmt: skip


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + MAX_SECONDS
        self._left = MAX_TOTAL

    def step(self) -> None:
        if time.monotonic() > self._ends:
            raise TemplateError(f"The chat template did not finish within {MAX_SECONDS:g} seconds.")

    def made(self, value: Any) -> Any:
        """Account for a value that an operation made, and hand it on."""
        self.step()
        size = len(value) if isinstance(value, str | bytes | list | tuple | dict) else 1
        self._left -= size
        if size > MAX_VALUE or self._left < 0:
            raise _too_much()
        return value


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render within a budget. Raises TemplateError, whatever it was that went wrong, in one line."""
    token = _budget.set(Budget())
    try:
        return template.render(variables)
    except TemplateError:
        raise
    except RecursionError:
        raise TemplateError("The chat template calls itself without end.") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TemplateError(f"The chat template cannot render these messages: {reason}") from error
    finally:
        _budget.reset(token)


def compile_template(source: str) -> jinja2.Template:
    """Parse a template. Raises TemplateError where it is no jinja2."""
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"The chat template does not parse, line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise TemplateError("The chat template is nested too deeply to parse.") from None
    except Exception as error:
        raise TemplateError(f"The chat template does not parse: {error}") from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words, for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own convention

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    # Without constant folding: nothing of a template runs when it is only parsed.
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and not (_is_small(left) and _is_small(right) and abs(right) <= 64):
            raise _too_much()
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _weigh(right)
        return _made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped by the sandbox
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name in ("format", "format_map"):
                _check_format(owner)
            args = _check_arguments(name, (owner, *args), kwargs)[1:]
        else:
            _check_numbers((*args, *kwargs.values()))
        return _made(super().call(__context, __obj, *args, **kwargs))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Reporting().visit(source), *args, **kwargs)


class _Reporting(NodeTransformer):
    """Puts a report into every loop and every joining of texts, the two that jinja2 has no hook for."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(part, "_part") for part in node.nodes]
        return _filtered(node, "_part")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_part, extensions=[loopcontrols, _Generation]
    )
    environment.filters = {name: _guarded(name, f) for name, f in environment.filters.items() if name != "urlize"}
    environment.filters |= {"tojson": _tojson, "_turns": _turns, "_part": _part}
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment


def _made(value: Any) -> Any:
    budget = _budget.get()
    return value if budget is None else budget.made(value)


def _turns(values: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get() or Budget()
    for value in values:
        budget.step()
        yield value


def _part(value: Any) -> Any:
    """A value about to become text."""
    if not isinstance(value, str):
        _weigh(value)
    return _made(value)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with jinja2's own marks, such as "wants the environment"
    def guarded(*args: Any, **kwargs: Any) -> Any:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0
        values = _check_arguments(name, args[skip:], kwargs)
        return _made(function(*args[:skip], *values, **kwargs))

    return guarded


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Refuse arguments from which an operation would make something huge; generators are read out."""
    if name == "join" and len(args) > 1:
        # "sep".join(items) as a method, items|join(sep) as a filter
        items, separator = (args[1], args[0]) if isinstance(args[0], str) and not isinstance(args[1], str) else args[:2]
        items = list(items)
        _check_product(separator, len(items))
        args = tuple(items if a is not separator and i < 2 else a for i, a in enumerate(args))
    _check_numbers((*args, *kwargs.values()))
    if name not in _LOOKING:
        for value in (*args, *kwargs.values()):
            _weigh(value)
    if name == "replace" and len(args) > 2:
        text, old, new = str(args[0]), str(args[1]), str(args[2])
        _check_product(new, text.count(old))
    elif name in ("indent", "expandtabs") and args:
        widths = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, int)] or [4]
        width = max(*widths, *(len(v) for v in args[1:] if isinstance(v, str)), 8)
        _check_product(" " * width, str(args[0]).count("\n" if name == "indent" else "\t"))
    return args


def _check_numbers(values: Iterable[Any]) -> None:
    if not all(map(_is_small, values)):
        raise _too_much()


def _check_product(left: Any, right: Any) -> None:
    left, right = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(left, int):
        if left.bit_length() + right.bit_length() > 4096:
            raise _too_much()
    elif isinstance(right, int) and isinstance(left, str | list | tuple) and len(left) * right > MAX_VALUE:
        raise _too_much()


def _check_format(text: str) -> None:
    """Refuse widths in format strings that a prompt has no use for."""
    digits = 0
    for char in text:
        digits = digits + 1 if char.isdigit() else 0
        if digits > 4 or char == "*":
            raise TemplateError("The chat template uses a format string that pyllm does not allow.")


def _is_small(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) <= MAX_NUMBER


def _weigh(value: Any) -> None:
    """Refuse values that hold too much when written out; a list that holds one list many times counts it each time."""
    left, todo = MAX_VALUE, [value]
    while todo:
        value = todo.pop()
        left -= len(value) if isinstance(value, str | bytes) else MAX_VALUE // MAX_ENTRIES
        if isinstance(value, dict):
            todo.extend(value)
            todo.extend(value.values())
        elif isinstance(value, list | tuple):
            todo.extend(value)
        if left < 0 or len(todo) > MAX_ENTRIES:
            raise _too_much()


def _too_much() -> TemplateError:
    return TemplateError("The chat template makes more text than any prompt may hold.")


def _raise(message: str) -> NoReturn:
    raise TemplateError(f"The chat template refuses these messages: {' '.join(str(message).split())}")


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it for templates: no HTML escapes, characters as they are."""
    _check_arguments("", (value, indent), {})
    return str(
        _made(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))
    )
