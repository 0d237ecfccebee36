"""What a hostile template may not do: reach Python's insides, or use up time and memory.

Limits are set low, so that what they hold back is small even where one fails. Processor time is bounded in
`pyllm.chat.budget`, memory is what tracemalloc counts.
"""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.chat import ChatTemplate, bounds, budget, sandbox
from pyllm.errors import TemplateError

HELLO = [{"role": "user", "content": "Hello"}]
TEXT, ENTRIES, TOTAL = 1 << 18, 1 << 14, 1 << 23
PEAK = 4 * TOTAL


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(budget, "MAX_TEXT", TEXT)
    monkeypatch.setattr(budget, "MAX_ENTRIES", ENTRIES)
    monkeypatch.setattr(bounds, "MAX_ENTRIES", ENTRIES)
    monkeypatch.setattr(budget, "MAX_TOTAL", TOTAL)
    monkeypatch.setattr(budget, "MAX_WORK", 1 << 23)
    monkeypatch.setattr(budget, "MAX_SECONDS", 1.0)
    return None


def render(source: str) -> str:
    return ChatTemplate({"default": source}).render(HELLO)


def loop(body: str, n: int = ENTRIES) -> str:
    return f"{{% for i in range({n}) %}}{body}{{% endfor %}}"


def deep(literal: str, n: int = 60) -> str:
    """`ns.a` and `ns.b`: equal, built apart, and of 2 ** n entries if each is counted as often as it is held."""
    start = "{% set ns = namespace(a=" + literal % "1" + ", b=" + literal % "1" + ") %}"
    more = "".join("{% set ns." + x + " = " + literal % f"ns.{x}, ns.{x}" + " %}" for x in "ab")
    return start + loop(more, n)


LISTS, TUPLES = deep("[%s]"), deep("(%s,)")
START = "{% set ns = namespace(s='x' * 200000, l=[0] * 16000, g=[], d={}, i=3, a=['a']) %}"

HUGE = {
    "a product of text": "{{ 'x' * 10 ** 10 }}",
    "a product of safe text": "{{ ('x' | safe) * 2000000000 }}",
    "a product of a list": "{{ 2000000000 * [1] }}{{ (1,) * 2000000000 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a power of a power": "{{ (3 ** 1000) ** (3 ** 1000) }}",
    "products without end": START + loop("{% set ns.i = ns.i * ns.i %}"),
    "a number read from text": "{{ ('f' * 200000) | int(base=16) // 3 }}",
    "a number in the source": "{{ 0x" + "f" * 40000 + " // 3 }}",
    "bytes of a number": "{{ (1).to_bytes(2000000000, 'big') }}",
    "a number rounded to the left": "{{ 5 | round(-2000000000) }}",
    "a number rounded to the right": "{{ 5.5 | round(2000000000, 'ceil') }}",
    "a range": "{{ range(10 ** 9) | list }}{{ range(10 ** 30) }}",
    "a long range": "{{ range(10 ** 30) }}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "rjust": "{{ 'x'.rjust(10 ** 9) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "the method center": "{{ 'x'.center(10 ** 9) }}",
    "the filter center": "{{ 'x' | center(10 ** 9) }}",
    "expandtabs": "{{ ('\\t' * 100000).expandtabs(9999) }}",
    "indent": "{{ 'a\nb' | indent(2000000000) }}",
    "indent of many lines": "{{ ('\\n' * 10000) | indent(9999) }}",
    "indent of lines that end otherwise": "{{ ('\\x0b' * 10000) | indent(1000) }}",
    "indent by a text": "{{ ('\\n' * 1000) | indent('x' * 100000) }}",
    "JSON with an indent": "{{ [1] | tojson(indent=2000000000) }}",
    "deep JSON with an indent": "{% set ns = namespace(a=[]) %}"
    + loop("{% set ns.a = [ns.a] %}", 500)
    + "{{ ns.a | tojson(indent=1000) }}",
    "JSON with long separators": "{{ range(9999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "a format's width": "{{ '%999999999d' % 1 }}",
    "a format's width by name": "{{ '%(a)999999999d' % {'a': 1} }}",
    "a format's width by an odd name": "{{ '%((a))999999999d' % {'(a)': 1} }}",
    "a format's width after an odd percent": "{{ '%5%%999999999d' % 1 }}",
    "a format's width as an argument": "{{ '%*d' % (999999999, 1) }}",
    "a format's precision": "{{ '%.999999999f' % 1.5 }}",
    "a format's many names": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "a format's many floats": "{{ ('%(a)f' * 40000) % {'a': 1e308} }}",
    "the filter format": "{{ '%999999999d' | format(1) }}",
    "the method format": "{{ '{:999999999}'.format(1) }}",
    "the method format, nested": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "the method format, many": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "the method format by attr": "{{ ('{:>99999999}' | attr('format'))(1) }}",
    "format_map": "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "format of safe text": "{{ ('{:>999999999}' | safe).format(1) }}",
    "bytes with a format": "{{ '%999999999d'.encode() % 1 }}",
    "a date": "{{ strftime_now('%2000000000Y' * 1000) }}",
    "the method replace": "{{ ('x' * 4000).replace('x', 'y' * 4000) }}",
    "the filter replace": "{{ ('x' * 4000) | replace('x', 'y' * 4000) }}",
    "replace between all": "{{ ('x' * 4000).replace('', 'y' * 4000) }}",
    "translate": "{{ ('a' * 9999).translate({97: 'x' * 9999}) }}",
    "the method join": "{{ ''.join(['x' * 9999] * 9999) }}",
    "the method join of separators": "{{ ('x' * 9999).join(['a'] * 9999) }}",
    "the filter join": "{{ (['x' * 9999] * 9999) | join }}",
    "the filter join of separators": "{{ ('x' * 9999) | join('y' * 9999) }}",
    "the filter join of an attribute": "{{ ([{'a': 'x' * 9999}] * 9999) | join(attribute='a') }}",
    "JSON": "{{ (['x' * 9999] * 9999) | tojson }}",
    "wordwrap": "{{ ('a ' * 4000) | wordwrap(1, wrapstring='x' * 9999) }}",
    "batch": "{{ [1] | batch(2000000000, 0) | list }}",
    "slice": "{{ [1] | slice(2000000000) | list }}",
    "a sum of lists": "{{ ([[1]] * 16000) | sum(start=[]) | length }}" + loop("{{ ([[1]] * 16000) | sum(start=[]) }}"),
    "lorem ipsum": "{{ lipsum(n=99999) }}",
    "doubling by ~": START + loop("{% set ns.s = ns.s ~ ns.s %}", 60),
    "doubling by +": START + loop("{% set ns.s = ns.s + ns.s %}", 60),
    "doubling by a block": START + loop("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}", 60),
    "doubling by replace": START + loop("{% set ns.s = ns.s.replace('x', 'xx') %}", 60),
    "doubling by extend": START + loop("{% do ns.g.extend(ns.l) %}{% do ns.g.extend(ns.g) %}", 60),
    "doubling by call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 19
    + "x"
    + "{% endcall %}" * 19,
    "written lists of lists": LISTS + "{{ ns.a }}",
    "lists of lists as JSON": LISTS + "{{ ns.a | tojson }}",
    "lists of lists as text": LISTS + "{{ ns.a | string }}",
    "lists of lists made safe": LISTS + "{{ ns.a | safe }}",
    "lists of lists in a format": LISTS + "{{ '%s' % (ns.a,) }}",
    "lists of lists in a method's format": LISTS + "{{ '{0!r:.1}'.format(ns.a) }}",
    "lists of lists in a namespace": LISTS + "{{ ns }}",
    "lists of lists among values": LISTS + "{{ {1: ns.a}.values() }}",
    "lists of lists among items": LISTS + "{{ {1: ns.a}.items() }}",
    "lists of lists in an error": LISTS + "{{ raise_exception(ns.a) }}",
    "lists of lists trimmed": LISTS + "{{ ns.a | trim }}",
    "lists of lists by a macro": LISTS + "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(ns.a) }}",
    "equal lists of lists": LISTS + "{{ ns.a == ns.b }}",
    "less lists of lists": LISTS + "{{ ns.a < ns.b }}",
    "lists of lists in a list": LISTS + "{{ ns.a in [ns.b] }}",
    "lists of lists tested": LISTS + "{{ ns.a is eq ns.b }}",
    "lists of lists selected": LISTS + "{{ [ns.a] | select('equalto', ns.b) | list }}",
    "lists of lists sorted": LISTS + "{{ [ns.a, ns.b] | sort }}",
    "lists of lists sorted in place": LISTS + "{{ [ns.a, ns.b].sort() }}",
    "lists of lists found": LISTS + "{{ [ns.b].index(ns.a) }}",
    "lists of lists counted": LISTS + "{{ [ns.b].count(ns.a) }}",
    "lists of lists removed": LISTS + "{{ [ns.b].remove(ns.a) }}",
    "lists of lists that changed": LISTS + "{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}",
    "the largest of lists of lists": LISTS + "{{ [ns.a, ns.b] | max }}",
    "hashed tuples in a literal": TUPLES + "{{ {ns.a: 1} }}",
    "hashed tuples looked up": TUPLES + "{{ {}[ns.a] }}",
    "hashed tuples got": TUPLES + "{{ {}.get(ns.a) }}",
    "hashed tuples popped": TUPLES + "{{ {}.pop(ns.a, 1) }}",
    "hashed tuples set": TUPLES + "{{ {}.setdefault(ns.a) }}",
    "hashed tuples updated": TUPLES + "{{ {}.update([(ns.a, 1)]) }}",
    "hashed tuples in dict": TUPLES + "{{ dict([(ns.a, 1)]) }}",
    "hashed tuples in fromkeys": TUPLES + "{{ dict.fromkeys([ns.a]) }}",
    "hashed tuples in a dictionary": TUPLES + "{{ ns.a in {} }}",
    "hashed tuples made unique": TUPLES + "{{ [ns.a] | unique | list }}",
    "a list that holds itself": "{% set l = [1] %}{% do l.append(l) %}{{ l | tojson }}",
    "lists that hold themselves, compared": "{% set l = [1] %}{% do l.append(l) %}{% set m = [1] %}{% do m.append(m) %}"
    "{{ l == m }}",
    "a dictionary that holds itself": "{% set d = {} %}{% do d.update(a=d) %}{{ d | pprint }}",
    "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "plain text in loops": loop("x" * 10000),
    "plain text in a macro": "{% macro m() %}" + loop("x" * 10000) + "{% endmacro %}{{ m() }}",
    "plain text in a block": "{% set a %}" + loop("x" * 10000) + "{% endset %}",
    "plain text in a filter": "{% filter upper %}" + loop("x" * 10000) + "{% endfilter %}",
    "kept slices of text": START + loop("{% do ns.g.append(ns.s[1:]) %}"),
    "kept slices of lists": START + loop("{% do ns.g.append(ns.l[1:]) %}"),
    "kept copies": START + loop("{% do ns.g.append(ns.l.copy()) %}"),
    "kept literals": START + loop("{% do ns.g.append([" + "0," * 500 + "]) %}"),
    "kept dictionaries": START + loop("{% do ns.g.append({" + ",".join(f"{i}: 0" for i in range(300)) + "}) %}"),
    "kept pieces": START + loop("{% do ns.g.append(ns.s.split('x')) %}"),
    "kept characters": START + loop("{% do ns.g.append(('€' * 10000) | list) %}"),
    "kept bytes": START + loop("{% do ns.g.append(ns.s.encode()) %}"),
    "kept JSON": START + loop("{% do ns.g.append(('[' ~ '{},' * 9000 ~ '1]') | from_json) %}"),
    "kept namespaces": START + loop("{% do ns.g.append(namespace(a=[i])) %}" * 9),
    "kept cyclers": START + loop("{% do ns.g.append(cycler(*ns.l)) %}"),
    "kept keys": START + loop(loop("{% do ns.d.update({loop.index ~ ',' ~ i: 1}) %}")),
    "JSON of many parts": "{{ ('[' ~ '[],' * 60000 ~ '1]') | from_json }}",
    "deep JSON": "{{ ('[' * 9999) | from_json }}",
    "characters of a long text": "{{ ('x' * 200000) | list }}",
    "characters made unique": "{{ ('x' * 200000) | unique | list }}",
    "characters sorted": "{{ ('x' * 200000) | sort }}",
    "lines of a long text": "{{ ('\\n' * 200000).splitlines() }}",
    "words of a long text": "{{ ('a ' * 99999).split() }}",
    "searching backwards": "{{ ('a' * 200000).rfind('b' ~ 'a' * 100000) }}",
    "cutting backwards": "{{ ('a' * 200000).rsplit('b' ~ 'a' * 100000) }}",
    "stripping by a long text": "{{ ('a' * 200000).strip('b' * 100000 ~ 'a') }}",
    "trimming by a long text": "{{ ('a' * 200000) | trim('b' * 100000 ~ 'a') }}",
    "slow filters": "{{ ('<!---->' * 20000) | striptags }}",
    "recursion of a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion of a loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recursion of a block": "{% block a %}{{ self.a() }}{% endblock %}",
    "a template without end": "x" * (sandbox.MAX_SOURCE + 1),
    "brackets without end": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists without end": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "operators without end": "{{ 1" + "+1" * 3000 + " }}",
    "filters without end": "{{ 1" + "|abs" * 3000 + " }}",
    "attributes without end": "{{ a" + ".b" * 3000 + " }}",
    "conditions without end": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "constants that are computed": "{{ 'x' | center(200000) }}" * 200,
    "switches that are computed": "{% autoescape ('x' | center(200000)) %}{% endautoescape %}" * 200,
}


@pytest.mark.parametrize("name", HUGE)
def test_no_template_makes_huge_values(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            render(HUGE[name])
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()


ENDLESS = {
    "loops": loop(loop("")),
    "loops of recursive loops": "{% for x in [0] recursive %}{{ loop(range(9999)) if loop.depth < 4 }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "appending and popping": START + loop(loop("{% do ns.g.append(i) %}{% do ns.g.pop() %}")),
    "selecting": START + loop("{% set _ = ns.l | select('gt', 1) | list %}"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_works_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(budget, "MAX_TOTAL", 1 << 40)
    with pytest.raises(TemplateError, match=r"within 0\.2 seconds"):
        render(ENDLESS[name])


CHAINS = {
    "lists": "{% set ns.a = [ns.a] %}",
    "what map gives": "{% set ns.a = ns.a | map('upper') %}",
    "what reverse gives": "{% set ns.a = ns.a | reverse %}",
    "what batch gives": "{% set ns.a = ns.a | batch(1) %}",
    "namespaces": "{% set ns.a = namespace(a=ns.a) %}",
    "bound methods": "{% set ns.a = [ns.a].append %}",
}


@pytest.mark.parametrize("name", CHAINS)
def test_long_chains_do_not_end_the_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that hold one another many thousand deep can exhaust the stack when they are freed."""
    monkeypatch.setattr(budget, "MAX_ENTRIES", 1 << 20)
    monkeypatch.setattr(budget, "MAX_TOTAL", 1 << 28)
    monkeypatch.setattr(budget, "MAX_SECONDS", 60.0)
    assert render(START + loop(CHAINS[name], 30_000) + "end") == "end"


INSIDES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.next.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (raise_exception | attr('__globals__')).x }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__init__.__globals__}'.format(range) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ [].append.__self__.__class__ }}",
    "{{ {}.items().mapping.x }}",
    "{{ ([1] | map('abs'))._values[0] }}",
    "{{ ([1] | map('abs')).throw(1) }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ dict.mro() }}",
    "{{ namespace(__call__=1) }}",
    "{% set ns = namespace() %}{% set ns.__html__ = 'x' %}",
    "{{ namespace.mro() }}",
    "{{ [1].sort(key=range) }}",
    "{{ 'x'.encode('idna') }}",
    "{{ (1).from_bytes('x') }}",
    "{% include 'x' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends 'x' %}",
]


@pytest.mark.parametrize("source", INSIDES)
def test_no_template_reaches_pythons_insides(source: str) -> None:
    """What may not be seen is an error, or undefined, which is written as nothing."""
    with contextlib.suppress(TemplateError):
        assert render(source) == ""


NAMES = [*sorted({n for methods in bounds.METHODS.values() for n in methods}), "format", "format_map"]
FILTER_NAMES = sorted(set(sandbox._environment().filters) - {"random"})
VALUES = st.sampled_from(
    ["ns.s", "ns.l", "ns.g", "ns.d", "ns.i", "ns.a", "ns.t", "ns", "9999999", "'x'", "-1", "2.5", "none", "messages"]
)
ARGUMENTS = st.lists(VALUES, max_size=3).map(", ".join)
CALLS = st.builds("{}.{}({})".format, VALUES, st.sampled_from(NAMES), ARGUMENTS)
FILTERED = st.builds("{} | {}({})".format, VALUES, st.sampled_from(FILTER_NAMES), ARGUMENTS)
SIGNS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and"]
OPERATIONS = st.builds("({} {} {})".format, VALUES, st.sampled_from(SIGNS), VALUES)
STATEMENTS = st.builds("{{% set ns.{} = {} %}}".format, st.sampled_from("slgdiat"), CALLS | FILTERED | OPERATIONS)
ODD = "{% set ns = namespace(s='%s{0}a\\n' * 9, l=[0, 1], g=[], d={'a': 1}, i=3, a=['a'], t=(1, 'x')) %}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STATEMENTS, min_size=1, max_size=5), st.integers(1, 40))
def test_any_operations_are_bounded(statements: list[str], n: int) -> None:
    """Whatever is called with whatever, again and again: a text, or a TemplateError."""
    tracemalloc.start()
    try:
        source = ODD + loop("".join(statements), n) + "{{ ns.s }}"
        with contextlib.suppress(TemplateError):
            assert len(render(source)) <= TEXT
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()
