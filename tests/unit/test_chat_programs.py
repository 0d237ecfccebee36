"""Random templates give the text that jinja2's own sandbox gives, and an error where it gives one."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import SandboxedEnvironment

from pyllm.chat import sandbox
from pyllm.errors import TemplateError

VALUES = ["s", "l", "d", "n", "t", "f", "none", "true", "'a-b'", "[1, 2, 3]", "{'k': 'v'}", "2.5", "messages"]
VALUES += ["messages[0]", "messages[0].content", "l[1:]", "s[::-1]", "missing"]
FILTERS = [
    "upper",
    "lower",
    "trim",
    "title",
    "capitalize",
    "length",
    "list",
    "first",
    "last",
    "join",
    "sort",
    "unique|list",
    "reverse|list",
    "max",
    "min",
    "sum",
    "abs",
    "int",
    "float",
    "string",
    "wordcount",
    "pprint",
    "urlencode",
    "striptags",
    "e",
    "escape",
    "safe",
    "dictsort",
    "items|list",
    "filesizeformat",
    "xmlattr",
    "join('-')",
    "default('z')",
    "replace('a','b')",
    "replace('a','b',1)",
    "indent(2)",
    "indent(2,true)",
    "center(20)",
    "truncate(3)",
    "wordwrap(2)",
    "batch(2)|list",
    "batch(2,'z')|list",
    "slice(2)|list",
    "round(1)",
    "map('upper')|list",
    "map(attribute='k')|list",
    "select('odd')|list",
    "reject('none')|list",
    "selectattr('role')|list",
    "format(1)",
    "groupby('role')|list|length",
]
METHODS = [
    "upper()",
    "strip()",
    "strip('ab')",
    "split('-')",
    "split()",
    "rsplit('-',1)",
    "splitlines()",
    "partition('-')",
    "startswith(('a','b'))",
    "find('b')",
    "rfind('a')",
    "count('a')",
    "count(1)",
    "replace('a','zz')",
    "join(['x','y'])",
    "zfill(9)",
    "center(9,'*')",
    "format(1,2)",
    "title()",
    "casefold()",
    "isdigit()",
    "translate({97:'q'})",
    "expandtabs(4)",
    "removeprefix('a')",
    "encode()|length",
    "append(5)",
    "extend([1])",
    "insert(0,9)",
    "pop()",
    "index(2)",
    "copy()",
    "items()|list",
    "keys()|list",
    "values()|list",
    "get('k')",
    "get('q',3)",
    "update({'z':1})",
    "setdefault('y',2)",
    "is_integer()",
]
SIGNS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.builds("({}|{})".format, inner, st.sampled_from(FILTERS))
        | st.builds("{}.{}".format, st.sampled_from(VALUES), st.sampled_from(METHODS))
        | st.builds("({} {} {})".format, inner, st.sampled_from(SIGNS), inner)
        | st.builds("({} if {} else {})".format, inner, inner, inner)
    )


EXPRESSIONS = st.recursive(st.sampled_from(VALUES), _larger, max_leaves=5)
STATEMENTS = st.builds(
    str.replace,
    st.sampled_from(
        [
            "{{ EXPR }};",
            "{% set x = EXPR %}{{ x }}",
            "{% for q in EXPR %}{{ q }},{% endfor %}",
            "{% if EXPR %}y{% endif %}",
        ]
    ),
    st.just("EXPR"),
    EXPRESSIONS,
)
JINJA = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)


def variables() -> dict[str, Any]:
    return {"s": "a-b\nc A", "l": [3, 1, 2], "d": {"k": "v", "b": 1}, "n": 17, "t": (1, "x"), "f": 2.5}


def messages() -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi a-b"}]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STATEMENTS, min_size=1, max_size=3))
def test_any_template_gives_what_jinja2_gives(statements: list[str]) -> None:
    source = "".join(statements)
    try:
        wanted = JINJA.from_string(source).render(messages=messages(), **variables())
    except Exception:
        wanted = None
    try:
        got = sandbox.render(sandbox.compile_template(source), {"messages": messages(), **variables()})
    except TemplateError:
        got = None
    assert got == wanted or "object at 0x" in str(wanted)
