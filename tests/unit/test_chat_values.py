"""What templates can do with numbers, lists and JSON, and that they do it to copies."""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from pyllm.chat import ChatTemplate
from pyllm.errors import TemplateError

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 1000000, "minimum": -(10**15)}}}
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": SCHEMA}}]


def rendered(source: str, **variables: Any) -> str:
    return ChatTemplate({"default": source}).render(HELLO, **variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 1700000000 | tojson }}", "1700000000"),
        ("{{ [1700000000, -9007199254740993] | tojson }}", "[1700000000, -9007199254740993]"),
        ("{% macro m(n, k=5000000) %}{{ n + k }}{% endmacro %}{{ m(1700000000) }}", "1705000000"),
        ("{{ namespace(n=1700000000).n }}", "1700000000"),
        ("{% set ns = namespace(n=10**9) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1000000001"),
        ("{{ 1700000000 * 1000 }} {{ 1700000000 // 86400 }} {{ 1700000000 % 86400 }}", "1700000000000 19675 80000"),
        ("{{ 2 ** 64 }} {{ 10 ** 30 - 1 }}", "18446744073709551616 " + "9" * 30),
        ("{{ 1700000000 / 1000 }} {{ -1700000000 }}", "1700000.0 -1700000000"),
        ("{{ '%d and %s' % (1700000000, 10**12) }}", "1700000000 and 1000000000000"),
        ("{{ '%d' | format(1700000000) }} {{ '{:,}'.format(1700000000) }}", "1700000000 1,700,000,000"),
        ("{{ '2000000000 is %d' % 5 }}", "2000000000 is 5"),
        ("{{ 1700000000.4 | round | int }} {{ 1700000000 | string }}", "1700000000 1700000000"),
        ("{{ [3000000, 1700000000] | max }} {{ [3000000, 1700000000] | sum }}", "1700000000 1703000000"),
        ("{{ [{'n': 3000000}, {'n': 4}] | sum(attribute='n') }} {{ [1.5] | sum(start=1) }}", "3000004 2.5"),
        ("{{ 1700000000 in [1700000000] }} {{ 1700000000 > 1600000000 }}", "True True"),
        ("{{ range(1700000000, 1700000003) | list }}", "[1700000000, 1700000001, 1700000002]"),
        ("{{ dict(n=1700000000) }} {{ {'n': 1700000000}.get('x', 2000000) }}", "{'n': 1700000000} 2000000"),
        ("{{ '1700000000' | int }} {{ 1700000000 | filesizeformat }}", "1700000000 1.7 GB"),
        ("{{ none | default(1700000000) }} {{ x | default(1700000000) }}", "None 1700000000"),
        ("{{ cycler(1700000000, 2).next() }}", "1700000000"),
    ],
)
def test_large_numbers_are_numbers(source: str, text: str) -> None:
    assert rendered(source) == text


def test_schemas_with_large_numbers_are_written() -> None:
    text = ChatTemplate({"default": "{{ tools | tojson }}"}).render(HELLO, tools=TOOLS)
    assert '"maximum": 1000000, "minimum": -1000000000000000' in text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set l = [] %}{% for i in range(3) %}{% set _ = l.append(i) %}{% endfor %}{{ l }}", "[0, 1, 2]"),
        ("{% set l = [1] %}{% do l.extend([2, 3]) %}{% do l.insert(0, 0) %}{{ l.pop() }}{{ l }}", "3[0, 1, 2]"),
        (
            "{% set l = [3, 1, 2] %}{{ l.sort() }}{{ l }}{{ l.reverse() }}{{ l.pop(0) }}{{ l.remove(1) }}{{ l }}",
            "None[1, 2, 3]None3None[2]",
        ),
        ("{% set l = [1, 2] %}{% set m = l.copy() %}{% do l.clear() %}{{ l }}{{ m }}{{ m.index(2) }}", "[][1, 2]1"),
        ("{% set d = {'a': 1} %}{% do d.update({'b': 2}) %}{% do d.update(c=3) %}{{ d }}", "{'a': 1, 'b': 2, 'c': 3}"),
        ("{% set d = {'a': 1} %}{{ d.pop('a') }}{{ d.setdefault('b', 2) }}{{ d }}{{ d.pop('x', 0) }}", "12{'b': 2}0"),
        ("{% set ns = namespace(ids=[]) %}{% do ns.ids.append('x') %}{{ ns.ids | length }}", "1"),
        ("{% set l = ['a', 'b'] | list %}{% do l.extend(l | map('upper')) %}{{ l | join }}", "abAB"),
        ("{{ dict([('a', 1)], b=2) }}{{ dict.fromkeys(['x'], 0) }}", "{'a': 1, 'b': 2}{'x': 0}"),
    ],
)
def test_lists_and_dictionaries_can_be_changed(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ ['a', 'b'] | map('upper') | tojson }}", '["A", "B"]'),
        ("{{ {'k': [1, 2, 3] | select('odd')} | tojson }}", '{"k": [1, 3]}'),
        ("{{ {'a': 1, 'b': 2}.keys() | tojson }}{{ {'a': 1}.values() | tojson }}", '["a", "b"][1]'),
        ("{{ {'a': 1}.items() | tojson }}{{ range(3) | tojson }}", '[["a", 1]][0, 1, 2]'),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, sort_keys=True) }}", '{"a": 1, "b": "\\u00e9"}'),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", '[1,{"a":2}]'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ [1] | tojson(indent='\t') }}", "[\n\t1\n]"),
        ("{{ tojson([1]) }}", "[1]"),
        ("{{ ('{\"a\": [1, 2.5, null]}' | fromjson).a }}", "[1, 2.5, None]"),
        ("{{ ('{\"n\": 1700000000}' | from_json).n }}", "1700000000"),
        ("{{ fromjson('[true]') }}{{ from_json('{}') }}", "[True]{}"),
        (
            "{% generation %}x{% endgeneration %}{% for i in [0, 1] %}{% if i %}{% break %}{% endif %}y{% endfor %}",
            "xy",
        ),
        ("{% if [] | map('upper') %}true as generators are{% endif %}", "true as generators are"),
        ("{% set g = 'ab' | map('upper') %}{{ g | list }}{{ g | list }}", "['A', 'B'][]"),
        ("{% for x in [3, 1] | sort %}{{ x }}{{ loop.last }}{{ loop.length }} {% endfor %}", "1False2 3True2 "),
        ("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{{ 'a-b'.rsplit('-', 1) }}{{ ' a\tb '.split() }}{{ 'ab'.translate({97: 'x'}) }}", "['a', 'b']['a', 'b']xb"),
        ("{{ 'é'.encode() | length }}{{ 'ab' | e }}{{ 'x'.format_map({}) }}", "2abx"),
        ("{{ '{0.role} {m[role]!r:>8}'.format(messages[0], m=messages[0]) }}", "user   'user'"),
        ("{{ '%(a)s %5.1f%%' % {'a': 1} if false else '%5.1f%%' % 2.25 }}", "  2.2%"),
        ("{{ [{'a': 1, 'k': 'x'}, {'a': 2, 'k': 'x'}] | groupby('k') | length }}", "1"),
        ("{{ 5 | trim }}{{ (1, 2) in {(1, 2): 3} }}{{ {(1, 2): 3}[(1, 2)] }}", "5True3"),
    ],
)
def test_helpers_give_what_python_gives(source: str, text: str) -> None:
    assert rendered(source) == text


@pytest.mark.parametrize(
    "source",
    ["{{ 'x' | from_json }}", "{{ [x] | tojson }}", "{{ namespace() | tojson }}", "{{ ('[' * 99999) | fromjson }}"],
)
def test_what_is_no_json_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        rendered(source)


CHANGES = (
    "{% do messages.append({'role': 'x'}) %}{% do messages[0].update(content='changed') %}"
    "{% do messages[0].pop('tags') %}{% do tools[0].function.parameters.clear() %}{% do tools.pop() %}"
    "{% do extra.l.append(1) %}{{ messages | length }}"
)


def test_the_callers_objects_are_not_changed_and_nothing_is_kept() -> None:
    messages = [{"role": "user", "content": "Hello", "tags": ["a"]}]
    tools, extra = copy.deepcopy(TOOLS), {"l": [0]}
    before = copy.deepcopy((messages, tools, extra))
    model = ChatTemplate({"default": CHANGES, "tool_use": CHANGES})
    for _ in range(3):
        assert model.render(messages, tools=tools, extra=extra) == "2"
        assert (messages, tools, extra) == before


@pytest.mark.parametrize(
    "source",
    [
        "{% set l = [] %}{% do l.append(1) %}{{ l | length }}",
        "{% set d = {} %}{% do d.update({d | length: 1}) %}{{ d | length }}",
        "{% macro m(l=[]) %}{% do l.append(1) %}{{ l | length }}{% endmacro %}{{ m() }}",
        "{% set c = joiner() %}{{ c() }}1",
        "{% set ns = namespace() %}{% set ns.n = (ns.n or 0) + 1 %}{{ ns.n }}",
    ],
)
def test_nothing_persists_from_one_rendering_to_the_next(source: str) -> None:
    model = ChatTemplate({"default": source})
    assert [model.render(HELLO) for _ in range(3)] == ["1"] * 3


class Color(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Part:
    type: str
    text: str


class Dumped:
    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "dumped"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (OrderedDict(role="user", content=Color.RED), "red"),
        (MappingProxyType({"role": "user", "content": [np.int64(1700000000)]}), "[1700000000]"),
        ({"role": Color.RED, "content": [Part("text", "p")]}, "p"),
        (Dumped(), "dumped"),
        ({"role": "user", "content": (1, np.float32(0.5), True, None)}, "(1, 0.5, True, None)"),
    ],
)
def test_messages_are_read_as_plain_values(message: Any, text: str) -> None:
    assert ChatTemplate({"default": "{{ messages[0].content }}"}).render([message]) == text


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, open])
def test_values_that_no_template_can_read_are_refused(value: Any) -> None:
    with pytest.raises(TemplateError, match=f"a {type(value).__name__} is none of these"):
        ChatTemplate({"default": "x"}).render([{"role": "user", "content": [value]}])


def test_messages_that_hold_themselves_are_refused() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    with pytest.raises(TemplateError, match="hold themselves"):
        ChatTemplate({"default": "x"}).render([message])


def test_functions_given_as_variables_can_be_called() -> None:
    assert rendered("{{ day('%Y') }}", day=lambda format: format + "!") == "%Y!"
