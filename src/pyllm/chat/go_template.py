"""Chat templates of Modelfiles, in the plain part of Go's text/template, translated to jinja2.

Sources: the documentation of Go's text/template, and Ollama's docs/template.md for the names (.Messages, .System, …). A
template without .Messages is written for one exchange, .System, .Prompt and .Response, and runs once for each; of the
last one, what follows .Response is left out, so that the answer comes there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import field

from pyllm.chat.go_expression import Scope, expression, words
from pyllm.chat.sandbox import MAX_SOURCE
from pyllm.errors import TemplateError
from pyllm.records import dataclass

_GO = re.compile(r"\{\{-?\s*(?:\.[A-Z]|\$|end\b|if\s|range\s|with\s|else\b|/\*|json\s)")
_DEEPEST = 100

_SHOW = (
    "{% macro show(x) %}{% if x is string or x is number %}{{ x }}"
    "{% elif x is defined and x is not none %}{{ x | tojson }}{% endif %}{% endmacro %}"
)
_SYSTEM = (
    "{% set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | "
    "join('\\n\\n') %}{% set prompt = '' %}{% set response = '' %}"
)
_EXCHANGES = (
    "{% set now = namespace(system='', prompt='', response='') %}{% for m in messages %}"
    "{% if (m.role == 'system' and (now.prompt or now.response)) or (m.role == 'user' and now.response) %}"
    "{{ exchange(now.system, now.prompt, now.response) }}"
    "{% set now.system = '' %}{% set now.prompt = '' %}{% set now.response = '' %}{% endif %}"
    "{% if m.role == 'system' %}{% set now.system = m.content %}"
    "{% elif m.role == 'user' %}{% set now.prompt = m.content %}"
    "{% elif m.role == 'assistant' %}{% set now.response = m.content %}{% endif %}"
    "{% endfor %}{{ last(now.system, now.prompt, now.response) }}"
)


def is_go(text: str) -> bool:
    """Whether a template is one of Go's, not of jinja2's."""
    return "{%" not in text and (_GO.search(text) is not None or "{{" not in text)


def as_jinja(text: str) -> str:
    """The template in jinja2. Raises TemplateError with the action that is not understood."""
    if len(text) > MAX_SOURCE:
        raise TemplateError(f"the template has {len(text)} characters; {MAX_SOURCE} are allowed")
    nodes = _parse(text)
    used = set(re.findall(r"\.([A-Z]\w*)", text))
    if "Messages" in used:
        return _SHOW + _SYSTEM + "{% set v = namespace() %}" + _written(nodes, Scope("", 0))
    if "Response" not in used:
        nodes = [*nodes, _Node("show", action=".Response")]
    head = "(system, prompt, response) %}{% set v = namespace() %}"
    whole, cut = _written(nodes, Scope("", 0)), _written(_until_response(nodes)[0], Scope("", 0))
    return (
        f"{_SHOW}{{% macro exchange{head}{whole}{{% endmacro %}}{{% macro last{head}{cut}{{% endmacro %}}{_EXCHANGES}"
    )


@dataclass(frozen=True, slots=True)
class _Node:
    """A text, or an action with what is within it."""

    kind: str
    """text, show, set, if, range, with, break, continue."""
    text: str = ""
    action: str = ""
    inner: Sequence[_Node] = ()
    otherwise: Sequence[_Node] = field(default=())


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is an action, its text); blanks are cut where an action says so."""
    at, trims = 0, False
    while True:
        start = text.find("{{", at)
        plain = text[at:] if start < 0 else text[at:start]
        plain = plain.lstrip() if trims else plain
        if start < 0:
            yield False, plain
            return
        end = _end_of(text, start + 2)
        action = text[start + 2 : end]
        if re.match(r"-\s", action):
            plain, action = plain.rstrip(), action[1:]
        trims = re.search(r"\s-$", action) is not None
        yield False, plain
        yield True, (action[:-1] if trims else action).strip()
        at = end + 2


def _end_of(text: str, at: int) -> int:
    """Where the "}}" of an action is; texts in it, and comments, may hold one."""
    if comment := re.compile(r"-?\s*/\*").match(text, at):
        at = max(comment.end(), text.find("*/", comment.end()))
    # Texts that do not end match, too: so nothing is searched twice.
    for match in re.compile(r'"(?:\\.|[^"\\\n])*"?|`[^`]*`?|(\}\})').finditer(text, at):
        if match[1]:
            return match.start()
    raise TemplateError("the template has an action that does not end; a Go template's are {{ … }}")


def _parse(text: str) -> list[_Node]:
    """The nodes of a template. Raises TemplateError."""
    pieces = [(is_action, piece) for is_action, piece in _pieces(text) if piece and not piece.startswith("/*")]
    nodes, rest, end = _block(pieces, 0, 0)
    if end or rest < len(pieces):
        raise TemplateError(f"the template has {{{{ {end} }}}} without a beginning")
    return nodes


def _block(pieces: Sequence[tuple[bool, str]], at: int, depth: int) -> tuple[list[_Node], int, str]:
    """Nodes up to an "end" or "else" or the end of the text, where it goes on, and the word that ended it."""
    if depth > _DEEPEST:
        raise TemplateError("the template is nested too deeply")
    nodes: list[_Node] = []
    while at < len(pieces):
        is_action, piece = pieces[at]
        at += 1
        word = piece.split(maxsplit=1)[0] if is_action else ""
        if not is_action:
            nodes.append(_Node("text", text=piece))
        elif word in ("end", "else"):
            return nodes, at, piece
        elif word in ("if", "range", "with"):
            node, at = _control(word, piece[len(word) :].strip(), pieces, at, depth)
            nodes.append(node)
        elif word in ("break", "continue"):
            nodes.append(_Node(word))
        elif word in ("template", "define", "block"):
            raise TemplateError(f"the template has {{{{ {word} }}}}, which is not known; templates are one piece")
        else:
            is_set = re.match(r"\$\w+\s*:?=", piece) is not None
            nodes.append(_Node("set" if is_set else "show", action=piece))
    return nodes, at, ""


def _control(word: str, condition: str, pieces: Sequence[tuple[bool, str]], at: int, depth: int) -> tuple[_Node, int]:
    inner, at, end = _block(pieces, at, depth + 1)
    otherwise: Sequence[_Node] = ()
    if end.startswith("else"):
        following = end[4:].strip()
        if following:  # else if …
            again = following.split(maxsplit=1)[0]
            if again not in ("if", "with"):
                raise TemplateError(f"the template has {{{{ {end[:60]} }}}}, which is not known")
            node, at = _control(again, following[len(again) :].strip(), pieces, at, depth + 1)
            return _Node(word, action=condition, inner=inner, otherwise=[node]), at
        otherwise, at, end = _block(pieces, at, depth + 1)
    if end != "end":
        raise TemplateError(f"the template has {{{{ {word} {condition[:60]} }}}} without {{{{ end }}}}")
    return _Node(word, action=condition, inner=inner, otherwise=otherwise), at


def _until_response(nodes: Sequence[_Node]) -> tuple[list[_Node], bool]:
    """Nodes up to the one that shows .Response, itself included; whether it was there."""
    found: list[_Node] = []
    for node in nodes:
        if node.kind == "show" and re.search(r"(^|[\s($])\.Response\b", node.action):
            return [*found, node], True
        inner, ends = _until_response(node.inner)
        otherwise, ends_there = _until_response(node.otherwise)
        if ends or ends_there:
            found.append(_Node(node.kind, node.text, node.action, inner, otherwise if not ends else node.otherwise))
            return found, True
        found.append(node)
    return found, False


def _written(nodes: Sequence[_Node], scope: Scope) -> str:
    """Nodes as jinja2."""
    return "".join(_one(node, scope) for node in nodes)


def _one(node: _Node, scope: Scope) -> str:
    if node.kind == "text":
        return "{{ " + words(node.text) + " }}"
    if node.kind in ("break", "continue"):
        return f"{{% {node.kind} %}}"
    if node.kind == "show":
        return f"{{{{ show({expression(node.action, scope)}) }}}}"
    if node.kind == "set":
        name, _, value = node.action.partition("=")
        return f"{{% set v.x_{name.strip(' $:')} = {expression(value, scope)} %}}"
    if node.kind == "if":
        otherwise = "{% else %}" + _written(node.otherwise, scope) if node.otherwise else ""
        condition = expression(node.action, scope)
        return f"{{% if {condition} %}}{_written(node.inner, scope)}{otherwise}{{% endif %}}"
    names, _, value = node.action.rpartition(":=")
    variables = [name.strip(" $") for name in names.split(",") if name.strip()]
    if not all(name.isidentifier() for name in variables) or len(variables) > 2:
        raise TemplateError(f"the template has {{{{ {node.kind} {node.action[:60]} }}}}, which is not understood")
    inside = Scope(f"d{scope.depth + 1}", scope.depth + 1)
    otherwise = "{% else %}" + _written(node.otherwise, scope) if node.otherwise else ""
    what, inner = expression(value, scope), _written(node.inner, inside)
    if node.kind == "with":
        kept = "".join(f"{{% set v.x_{name} = {inside.dot} %}}" for name in variables)
        return f"{{% set {inside.dot} = {what} %}}{{% if {inside.dot} %}}{kept}{inner}{otherwise}{{% endif %}}"
    kept = "".join(
        f"{{% set v.x_{name} = {'loop.index0' if len(variables) == 2 and name == variables[0] else inside.dot} %}}"
        for name in variables
    )
    return f"{{% for {inside.dot} in {what} %}}{kept}{inner}{otherwise}{{% endfor %}}"
