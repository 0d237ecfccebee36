"""A jinja2 environment for templates from downloaded files: the helpers that they expect, and bounded work.

Templates are untrusted code. jinja2's sandbox hides Python's internals; of built-in values only the methods in `bounds`
are reachable. jinja2 does not bound work; a `Budget` does: whatever may take time or memory reports to it, and is
checked before it runs. A hostile template ends shortly after the five seconds of its budget, with a TemplateError.

Lists and dictionaries can be changed, as templates for llama.cpp expect. They must be copies of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any, cast

import jinja2
from jinja2 import meta, nodes, sandbox
from jinja2.ext import Extension, do, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pyllm.chat import bounds, helpers
from pyllm.chat.budget import PIECE, bits, current, entries, made, new_budget, text, turns, weigh
from pyllm.chat.formatter import formatted
from pyllm.errors import TemplateError

MAX_SOURCE = 1 << 17
"""Most characters of a template; the longest ones of models have a quarter of it."""

_CALLS_ITS_OWN = (Macro, LoopContext)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render within a budget. Any failure raises TemplateError, in one line.

    Lists and dictionaries in `variables` may be changed by the template.
    """
    with new_budget():
        try:
            return template.render(variables)
        except TemplateError:
            raise
        except RecursionError:
            raise TemplateError("the chat template calls itself without end") from None
        except Exception as error:
            reason = " ".join(str(error)[:1000].split())[:300] or type(error).__name__
            raise TemplateError(f"the chat template cannot render these messages: {reason}") from error


def compile_template(source: str) -> jinja2.Template:
    """Parse a template. Raises TemplateError where it is not valid jinja2."""
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the chat template has {len(source)} characters; {MAX_SOURCE} are allowed")
    with new_budget():
        try:
            return _environment().from_string(source.removeprefix("\ufeff"))
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not parse, line {error.lineno}: {error.message}") from error
        except RecursionError:
            raise TemplateError("the chat template is nested too deeply to parse") from None
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(f"the chat template does not parse: {error}") from error


def variables_of(source: str) -> set[str]:
    """Names that a (valid) template reads and does not set itself."""
    return meta.find_undeclared_variables(_environment().parse(source))


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's words, for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own convention

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(sandbox.SandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, LoopContext):
            args = tuple(turns(a) for a in args)  # the entries of a recursive loop
        elif not isinstance(__obj, Macro):
            args = _looked_at(__obj, args, kwargs)
        owner = getattr(__obj, "__self__", None) if isinstance(__obj, BuiltinMethodType) else None
        before = owner.__sizeof__() if isinstance(owner, list | dict) else 0
        result = made(super().call(__context, __obj, *args, **kwargs))
        if isinstance(owner, list | dict):
            current().charge(max(0, owner.__sizeof__() - before))
        elif isinstance(owner, str) and isinstance(result, list):
            current().charge(PIECE * len(result) + len(owner))
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        methods = bounds.methods_of(obj)
        return super().is_safe_attribute(obj, attr, value) and (methods is None or attr in methods)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, MethodType | BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        owner = value.__self__
        return formatted(self, owner, value.__name__) if isinstance(owner, str) else None

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Reporting().visit(source), *args, **kwargs)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins the pieces of a template's, macro's or block's text, for jinja2."""
        pieces, n = [], 0
        for part in parts:
            n += len(part)
            text(n)
            pieces.append(part)
        return made("".join(pieces))


class _Reporting(NodeTransformer):
    """Adds reports where jinja2 has no hook: loops, joined texts, comparisons, slices, literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(part, "_part") for part in node.nodes]
        return _filtered(node, "_part")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_compared")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_searched" if operand.op in ("in", "notin") else "_compared")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _filtered(node.key, "_compared")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return node if node.ctx == "store" else self._literal(node)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int):
            bits(node.value)
        return node

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_made")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _environment() -> _Environment:
    # Without constant folding: nothing of a template runs when it is only parsed.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_output,
        extensions=[loopcontrols, do, _Generation],
    )
    environment.filters = {name: _guarded(name, f) for name, f in environment.filters.items() if name != "urlize"}
    environment.filters |= helpers.FILTERS
    environment.filters |= {"_turns": turns, "_part": _part, "_made": made}
    environment.filters |= {"_compared": _compared, "_searched": _searched}
    environment.tests = {name: _tested(cast(Any, test)) for name, test in environment.tests.items()}
    del environment.globals["lipsum"]
    environment.globals |= helpers.GLOBALS
    return environment


# --- reports


@jinja2.pass_context
def _output(context: Any, value: Any) -> Any:
    """Report output of a template. (It takes the context so that jinja2 does not call it for constants.)"""
    return _part(value)


def _part(value: Any) -> Any:
    """Report a value about to become text."""
    if not isinstance(value, str):
        weigh(value)
    return made(value)


def _compared(value: Any) -> Any:
    """Report a value about to be compared or hashed."""
    current().step()
    if isinstance(value, list | tuple | dict | Namespace):
        weigh(value)
    return value


def _searched(value: Any) -> Any:
    """Report a value to be searched; a dictionary does not compare all entries."""
    return value if isinstance(value, dict) else _compared(value)


def _tested(test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def tested(*args: Any) -> Any:
        current().step()
        return test(*(_compared(a) for a in args)) if len(args) > 1 else test(*args)

    return tested


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with jinja2's own marks, such as "wants the environment"
    def guarded(*args: Any, **kwargs: Any) -> Any:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0
        current().step()
        return bounds.result_of(function(*args[:skip], *bounds.bounded(name, args[skip:], kwargs), **kwargs))

    return guarded


def _looked_at(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a method call, checked by the method's rule."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(function, BuiltinMethodType | MethodType) and isinstance(owner, str | bytes | list | tuple | dict):
        methods = bounds.methods_of(owner) or {}
        if name not in methods:
            raise TemplateError(
                f"the chat template calls {name} of a {type(owner).__name__}, which pyllm does not allow"
            )
        rule = methods[name]
        return args if rule is None else ((rule((owner, *args), kwargs) or (owner, *args))[1:])
    weigh(*args, *(() if function is helpers.TemplateNamespace else kwargs.values()))
    return args


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Bound the result of an operation."""
    if operator == "%" and isinstance(left, bytes):
        raise TemplateError("the chat template formats bytes, which pyllm does not allow")
    if operator == "%" and isinstance(left, str):
        bounds.check_percent(left, right)
    for value in (left, right):
        if isinstance(value, int):
            bits(value)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        bits(1 << min(left.bit_length() * abs(right), 1 << 20))
    elif operator == "*":
        value, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int):
            if isinstance(value, str | bytes):
                text(len(value) * times)
            elif isinstance(value, list | tuple):
                entries(len(value) * times)
