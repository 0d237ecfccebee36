"""Answers as the documentation of models shows them, read by each dialect; no template is needed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from dialect_cases import TOOLS, Gathered, read, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.chat.dialects import FALLBACK
from pyllm.chat.dialects.known import (
    all_known,
    gemma4,
    granite,
    harmony,
    kimi,
    kimi3,
    lfm2,
    llama3,
    minimax3,
    nemotron2,
)
from pyllm.chat.dialects.known import functionary as functionary_module
from pyllm.chat.dialects.parser import Parser
from pyllm.chat.dialects.spec import (
    Calls,
    DialectSpec,
    HeadBody,
    JsonArguments,
    KeyForm,
    ObjectBody,
    Reasoning,
    TaggedArguments,
)

THINK = Reasoning("<think>", "</think>")
HERMES = DialectSpec("fallback", THINK, FALLBACK)
NEMO = DialectSpec(
    "derived",
    calls=Calls(ObjectBody(id="id"), section_start=("[TOOL_CALLS]", "["), section_end=("]",), separator=","),
    ids="nine",
)
MISTRAL = DialectSpec(
    "derived",
    Reasoning("[THINK]", "[/THINK]"),
    Calls(HeadBody(("name", "[CALL_ID]", "id", "[ARGS]")), start=("[TOOL_CALLS]",)),
    ids="nine",
)
DEEPSEEK = DialectSpec(
    "derived",
    THINK,
    Calls(
        HeadBody(("name", "<｜tool▁sep｜>"), JsonArguments()),
        start=("<｜tool▁call▁begin｜>",),
        end=("<｜tool▁call▁end｜>",),
        section_start=("<｜tool▁calls▁begin｜>",),
        section_end=("<｜tool▁calls▁end｜>",),
    ),
)
CODER = DialectSpec(
    "derived",
    THINK,
    Calls(
        HeadBody(("name", ">"), TaggedArguments("<parameter=", (KeyForm(">", value_close="</parameter>"),), "\n")),
        start=("<tool_call>", "<function="),
        end=("</function>", "</tool_call>"),
    ),
)
GLM = DialectSpec(
    "derived",
    THINK,
    Calls(
        HeadBody(
            ("name",),
            TaggedArguments("<arg_key>", (KeyForm("</arg_key>", ("<arg_value>",), "</arg_value>"),)),
        ),
        start=("<tool_call>",),
        end=("</tool_call>",),
    ),
)
DSML = DialectSpec(
    "derived",
    THINK,
    Calls(
        HeadBody(
            ("name", '">'),
            TaggedArguments(
                '<｜DSML｜parameter name="',
                (
                    KeyForm('" string="true">', value_close="</｜DSML｜parameter>", kind="string"),
                    KeyForm('" string="false">', value_close="</｜DSML｜parameter>", kind="json"),
                ),
            ),
        ),
        start=('<｜DSML｜invoke name="',),
        end=("</｜DSML｜invoke>",),
        section_start=("<｜DSML｜function_calls>",),
        section_end=("</｜DSML｜function_calls>",),
    ),
)
FUNCTIONARY = functionary_module.KNOWN.spec
HARMONY, GEMMA, LFM, LLAMA = harmony.KNOWN.spec, gemma4.KNOWN.spec, lfm2.KNOWN.spec, llama3.KNOWN.spec
PARIS = ("get_weather", {"city": "Paris"})
DAYS = ("get_weather", {"city": "Paris", "days": 3})
PY = ("search_files", {"pattern": "*.py"})


def nested(text: str) -> str:
    """MiniMax M3's tags, each after its mark, which is written ^ here."""
    return text.replace("^", "]<]minimax[>[")


Expected = tuple[str, str, list[tuple[str, dict[str, Any]]]]
ANSWERS: list[tuple[DialectSpec, str, Expected]] = [
    (
        HERMES,
        '<think>\nThe user asks.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Paris"}}\n</tool_call>\n<tool_call>\n{"name": "search_files", "arguments": {"pattern": "*.py"}}\n'
        "</tool_call>",
        ("I look.", "The user asks.", [PARIS, PY]),
    ),
    # Arguments before the name, or as a text; parameters for arguments; no arguments.
    (HERMES, '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', ("", "", [PARIS])),
    (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
        ("", "", [PARIS]),
    ),
    (HERMES, '<tool_call>{"name":"get_weather","parameters":{"city":"Paris"}}</tool_call>', ("", "", [PARIS])),
    (HERMES, '<tool_call>{"name": "get_weather"}</tool_call>', ("", "", [("get_weather", {})])),
    (HERMES, '<tool_call>{"name": "get_weather", "arguments": null}</tool_call> ', ("", "", [("get_weather", {})])),
    # Braces doubled, as Qwen2.5-Coder's template shows them.
    (
        HERMES,
        '<tool_call>\n{{"name": "get_weather", "arguments": {"city": "Paris"}}}\n</tool_call>\n'
        '<tool_call>{ {"name": "search_files", "arguments": {"pattern": "*.py"}} }</tool_call>',
        ("", "", [PARIS, PY]),
    ),
    # Line breaks within strings, as small models write them; an end that is missing.
    (
        HERMES,
        '<tool_call>{"name": "search_files", "arguments": {"code": "a\n\tb"}}',
        ("", "", [("search_files", {"code": "a\n\tb"})]),
    ),
    # Text after a call; reasoning between calls; thinking closed at once.
    (
        HERMES,
        'a\n<tool_call>{"name": "search_files", "arguments": {"pattern": "*.py"}}</tool_call>\n<think>b</think>\nc\n',
        ("ac\n", "b", [PY]),
    ),
    (HERMES, "<think></think>Text with <think> in it.", ("Text with <think> in it.", "", [])),
    (HERMES, "</think>\n\nText.", ("Text.", "", [])),
    (
        NEMO,
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1B2c3D4e"}, '
        '{"name": "search_files", "arguments": {"pattern": "*.py"}, "id": "f5G6h7I8j"}]',
        ("", "", [PARIS, PY]),
    ),
    (MISTRAL, '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}', ("", "", [PARIS])),
    (
        MISTRAL,
        '[THINK]Why?[/THINK]Well.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]search_files[ARGS]'
        '{"pattern": "*.py"}',
        ("Well.", "Why?", [PARIS, PY]),
    ),
    (
        DEEPSEEK,
        "<think>R</think>T<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>search_files<｜tool▁sep｜>{"pattern": "*.py"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("T", "R", [PARIS, PY]),
    ),
    (
        CODER,
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        ("I look.", "", [DAYS]),
    ),
    # The outer tag is left out at times; values without line breaks around them.
    (CODER, "<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>", ("", "", [PARIS])),
    (CODER, "<function=get_weather><parameter=city>Paris</parameter></function></tool_call>", ("", "", [PARIS])),
    (
        GLM,
        "<think>R</think>\nT\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        ("T", "R", [DAYS]),
    ),
    (GLM, "<tool_call>get_weather</tool_call>", ("", "", [("get_weather", {})])),
    (
        DSML,
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        ("", "", [DAYS]),
    ),
    (
        HARMONY,
        "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary"
        ' to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>',
        ("", "Need the weather.", [PARIS]),
    ),
    (HARMONY, ' to=functions.get_weather<|channel|>commentary json<|message|>{"city":"Paris"}', ("", "", [PARIS])),
    (
        HARMONY,
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Sunny.<|return|>",
        ("I look.Sunny.", "", []),
    ),
    (
        HARMONY,
        "<|channel|>commentary to=assistant<|channel|>analysis<|message|>R<|end|><|start|>assistant<|channel|>final"
        "<|message|>T",
        ("T", "R", []),
    ),
    (HARMONY, "No channel at all.", ("No channel at all.", "", [])),
    (
        GEMMA,
        '<|channel>thought\nR\n<channel|>T<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'
        '<|tool_call>call:search_files{pattern:<|"|>*.py<|"|>}<tool_call|>',
        ("T", "R", [DAYS, PY]),
    ),
    (GEMMA, "<|channel>thought<channel|>T", ("T", "", [])),
    (GEMMA, "T<channel|><|channel>thought\n<channel|>", ("T", "", [])),
    (
        GEMMA,
        '<|tool_call>call:get_weather{metric:true,options:{a:[1.5,<|"|>x: {<|"|>],b:{}},places:[]}<tool_call|>',
        (
            "",
            "",
            [("get_weather", {"metric": True, "options": {"a": [1.5, "x: {"], "b": {}}, "places": []})],
        ),
    ),
    (
        LFM,
        "I look.<|tool_call_start|>[get_weather(city='Paris', days=3), search_files(pattern=\"*.py\")]"
        "<|tool_call_end|>",
        ("I look.", "", [DAYS, PY]),
    ),
    (
        LFM,
        '<|tool_call_start|>[get_weather(options={\'a\': True, "b": [null, None]}, city="a\\n\\"b\\" \\u00e9")]'
        "<|tool_call_end|>",
        ("", "", [("get_weather", {"options": {"a": True, "b": [None, None]}, "city": 'a\n"b" é'})]),
    ),
    (LFM, "See [link](https://example.org) and [f(x)].", ("See [link](https://example.org) and [f(x)].", "", [])),
    (
        kimi.KNOWN.spec,
        "T<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.search_files:1<|tool_call_argument_begin|>'
        '{"pattern": "*.py"}<|tool_call_end|><|tool_calls_section_end|>',
        ("T", "", [PARIS, PY]),
    ),
    # A call before reasoning has an end, without its section, without its own end.
    (
        replace(kimi.KNOWN.spec, reasoning=THINK),
        "<think>R<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>',
        ("", "R", [PARIS]),
    ),
    (
        replace(kimi.KNOWN.spec, reasoning=THINK),
        '<think>R<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}'
        '<|tool_call_begin|>functions.search_files:1<|tool_call_argument_begin|>{"pattern": "*.py"}',
        ("", "R", [PARIS, PY]),
    ),
    (
        kimi3.KNOWN.spec,
        "<|open|>think<|sep|>R<|close|>think<|sep|><|open|>response<|sep|>T<|close|>response<|sep|><|open|>tools<|sep|>"
        '<|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Paris'
        '<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
        ("T", "R", [DAYS]),
    ),
    (
        replace(minimax3.KNOWN.spec, reasoning=Reasoning("<mm:think>", "</mm:think>")),
        "<mm:think>R</mm:think>T"
        + nested('^<tool_call>\n^<invoke name="get_weather">^<city>Paris^</city>^<days>3^</days>')
        + nested("^<places>^<item>a^</item>^<item>b^</item>^</places>^<options>^<x>^<y>1^</y>^</x>^</options>")
        + nested('^</invoke>\n^<invoke name="search_files">^</invoke>\n^</tool_call>'),
        (
            "T",
            "R",
            [
                ("get_weather", {**DAYS[1], "places": ["a", "b"], "options": {"x": {"y": 1}}}),
                ("search_files", {}),
            ],
        ),
    ),
    (
        minimax3.KNOWN.spec,
        nested('^<tool_call>^<invoke name="get_weather">^</invoke>'),
        ("", "", [("get_weather", {})]),
    ),
    (
        minimax3.KNOWN.spec,
        nested('^<tool_call>^<invoke name="get_weather">^<city>^<b>x^</b>^</city>^</invoke>'),
        ("", "", [("get_weather", {"city": nested("^<b>x^</b>")})]),
    ),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', ("", "", [PARIS])),
    (LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', ("", "", [PARIS])),
    (
        LLAMA,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "search_files", "parameters": '
        '{"pattern": "*.py"}}',
        ("", "", [PARIS, PY]),
    ),
    # JSON that calls no tool is an answer.
    (LLAMA, '{"name": "Ada", "parameters": {}}', ('{"name": "Ada", "parameters": {}}', "", [])),
    (LLAMA, ' {"a": [1, 2]} ', (' {"a": [1, 2]} ', "", [])),
    (LLAMA, 'Like {"name": "get_weather"}.', ('Like {"name": "get_weather"}.', "", [])),
    (
        granite.KNOWN.spec,
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        ("", "", [PARIS]),
    ),
    (granite.KNOWN.spec, "<response>T</response>", ("T", "", [])),
    (
        nemotron2.KNOWN.spec,
        '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>',
        ("", "", [PARIS]),
    ),
    (FUNCTIONARY, "all\nHello.", ("Hello.", "", [])),
    (FUNCTIONARY, 'all\nI look.>>>get_weather\n{"city": "Paris"}', ("I look.", "", [PARIS])),
    (
        FUNCTIONARY,
        'get_weather\n{"city": "Paris"}>>>search_files\n{"pattern": "*.py"}',
        ("", "", [PARIS, PY]),
    ),
    (FUNCTIONARY, "all\nIn Python:\n>>> 1 + 1\n2\n", ("In Python:\n>>> 1 + 1\n2\n", "", [])),
]


def said(found: Gathered) -> Expected:
    return found.text, found.reasoning, [(name, dict(arguments)) for name, arguments in found.calls]


@pytest.mark.parametrize(("spec", "answer", "expected"), ANSWERS, ids=range(len(ANSWERS)))
def test_answers_of_the_documentation(spec: DialectSpec, answer: str, expected: Expected) -> None:
    found = read(Parser(spec, TOOLS), [answer])
    assert (said(found), found.reasons) == (expected, [])
    assert said(read(Parser(spec, TOOLS), list(answer))) == expected
    for at in range(len(answer)):
        assert said(read(Parser(spec, TOOLS), [answer[:at], answer[at:]])) == expected


def test_every_hand_written_dialect_is_read_above() -> None:
    read_above = {id(spec) for spec, _, _ in ANSWERS}
    assert [known.spec.calls for known in all_known() if id(known.spec) not in read_above] == []


@pytest.mark.parametrize(
    ("spec", "answer", "reason"),
    [
        (HERMES, '<tool_call>{"name": "get_weather", "arguments": {city: 1}}</tool_call>', "no JSON"),
        (HERMES, '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>', "no JSON object"),
        (HERMES, '<tool_call>{"name": "get_weather", "arguments": {"a": 1]}</tool_call>', "no JSON"),
        (HERMES, '<tool_call>{"arguments": {"a": 1}}</tool_call>', "names no tool"),
        (HERMES, '<tool_call>{"name": "get_weather", "arguments": {"a": 01}}</tool_call>', "no JSON"),
        (HERMES, "<tool_call>get_weather(city)</tool_call> and more", "'{' is missing"),
        (HERMES, '<tool_call>{{"name": "get_weather", "arguments": {}}</tool_call>', "'}' is missing"),
        (LFM, '<|tool_call_start|>[get_weather(city="Paris)]<|tool_call_end|>', "ended inside"),
        (HERMES, 'T <tool_call>{"name": "get_weather", "arguments": {"city": "Par', "ended inside"),
        (CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar", "ended inside"),
        (CODER, "<tool_call>\n<function=get_weather>\nParis\n</function>\n</tool_call>", "is missing"),
        (CODER, "<tool_call>\n<function=" + "x" * 300, "has no end"),
        (GLM, "<tool_call>get_weather<arg_key>city</arg_key>Paris</tool_call>", "'<arg_value>' is missing"),
        (LFM, "<|tool_call_start|>[get_weather('Paris')]<|tool_call_end|>", "doesn't read"),
        (LFM, "<|tool_call_start|>[get_weather(city='Paris']<|tool_call_end|>", "doesn't read"),
        (LFM, "<|tool_call_start|>[]<|tool_call_end|>", "doesn't read"),
        (GEMMA, "<|tool_call>call:get_weather{city}<tool_call|>", "doesn't read"),
        (minimax3.KNOWN.spec, nested('^<tool_call>^<invoke name="f">^<a>^</b>^</invoke>'), "</b> ends nothing"),
        (minimax3.KNOWN.spec, nested('^<tool_call>^<invoke name="f">^<a>1^</invoke>'), "<a> has no end"),
        (minimax3.KNOWN.spec, nested('^<tool_call>^<invoke name="f">^</a>^</invoke>'), "</a> ends nothing"),
        (minimax3.KNOWN.spec, nested('^<tool_call>^<invoke name="f^</invoke>'), "no end"),
        (HARMONY, "<|channel|>commentary to=python<|message|>print(1)<|call|>", "no JSON object"),
        (NEMO, "[TOOL_CALLS] [1]", "'{' is missing"),
    ],
)
def test_what_is_no_call_is_text_and_has_a_reason(spec: DialectSpec, answer: str, reason: str) -> None:
    found = read(Parser(spec, TOOLS), [answer])
    assert not found.calls
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]
    assert found.text.removesuffix("<|call|>") == answer.removesuffix("<|call|>")
    assert read(Parser(spec, TOOLS), list(answer)).text == found.text


def test_a_call_after_one_that_is_none() -> None:
    good = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    found = read(Parser(HERMES, TOOLS), [f"<tool_call>oops</tool_call>\n{good}"])
    assert found.text == "<tool_call>oops</tool_call>"
    assert found.calls == [PARIS]


@pytest.mark.parametrize(("spec", "pattern"), [(HERMES, r"call_[0-9a-f]{24}"), (MISTRAL, r"[0-9A-Za-z]{9}")])
def test_ids_are_made_in_a_form_that_templates_take(spec: DialectSpec, pattern: str) -> None:
    answers = {
        HERMES.calls: '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
        MISTRAL.calls: "[TOOL_CALLS]get_weather[ARGS]{}",
    }
    ids = [read(Parser(spec, TOOLS), [answers[spec.calls]]).ids[0] for _ in range(20)]
    assert all(re.fullmatch(pattern, found) for found in ids)
    assert len(set(ids)) == 20


def test_ids_of_the_dialect_are_kept() -> None:
    assert read(Parser(MISTRAL, TOOLS), ["[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{}"]).ids == ["a1B2c3D4e"]
    nemo = '[TOOL_CALLS][{"name": "get_weather", "arguments": {}, "id": "f5G6h7I8j"}]'
    assert read(Parser(NEMO, TOOLS), [nemo]).ids == ["f5G6h7I8j"]


SCHEMAS: list[tuple[Any, str, Any]] = [
    ("string", "3", "3"),
    ("string", "null", "null"),
    ("string", '"x"', '"x"'),
    ("integer", "3", 3),
    ("integer", "3.0", 3),
    ("integer", "x", "x"),
    ("number", "3", 3),
    ("number", "1e3", 1000.0),
    ("boolean", "True", True),
    ("boolean", "false", False),
    ("array", "['a', None]", ["a", None]),
    ("object", '{"a": {"b": [1]}}', {"a": {"b": [1]}}),
    ("object", "{'a': True}", {"a": True}),
    ({"type": ["string", "null"]}, "null", None),
    ({"type": ["string", "null"]}, "3", "3"),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x", "x"),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"enum": [1, 2]}, "1", 1),
    ({"const": "5"}, "5", "5"),
    ({"$ref": "#/$defs/size"}, "5", 5),
    ({"$ref": "#/$defs/nothing"}, "5", 5),
    ({}, "5", 5),
    ({}, "five", "five"),
    ({}, '"five"', '"five"'),
]


@pytest.mark.parametrize(("schema", "raw", "value"), SCHEMAS)
def test_raw_values_have_the_types_of_the_schema(schema: Any, raw: str, value: Any) -> None:
    tools = [tool("f", x=schema)]
    tools[0]["function"]["parameters"]["$defs"] = {"size": {"type": "integer"}}
    for answer in (
        f"<tool_call>f<arg_key>x</arg_key><arg_value>{raw}</arg_value></tool_call>",
        f"<tool_call><arg_key>x</arg_key></tool_call><tool_call>f<arg_key>x</arg_key><arg_value>{raw}</arg_value></tool_call>",
    ):
        found = read(Parser(GLM, tools), list(answer)).calls
        assert found[-1] == ("f", {"x": value})
        assert type(found[-1][1]["x"]) is type(value)


def test_what_the_prompt_says_is_the_beginning_of_the_answer() -> None:
    assert said(read(Parser(HERMES, TOOLS, prefix="<think>\n"), ["R\n</think>\n\nT"])) == ("T", "R", [])
    assert said(read(Parser(HERMES, TOOLS, prefix="<think>\nA"), ["B</think>T"])) == ("T", "B", [])
    assert said(read(Parser(HERMES, TOOLS, prefix="<think></think>\n\n"), ["T <think>"])) == ("T <think>", "", [])


def test_text_comes_at_once() -> None:
    """Nothing is held back but white space and what may be the beginning of a marker."""
    parser = Parser(HERMES, TOOLS)
    for piece, shown in [
        ("Hello", "Hello"),
        (" ", ""),
        ("world <", " world"),
        ("b", " <b"),
        ("<tool_cal", ""),
        ("m", "<tool_calm"),
    ]:
        found = Gathered()
        found.add(parser.push(piece))
        assert found.text == shown
    many = Gathered()
    many.add(event for _ in range(1000) for event in parser.push("\n"))
    assert 900 < len(many.text) < 1000
    found = Gathered()
    found.add(parser.push('<tool_call>{"name": "f", "arguments": {"a": "on'))
    assert found._arguments == {0: '{"a": "on'}
    found.add(parser.push("e"))
    assert found._arguments == {0: '{"a": "one'}


SPECS = list({id(spec): spec for spec, _, _ in ANSWERS}.values())
WORDS = ["a", "é", '"name"', '"arguments"', '"city"', "get_weather", "search_files", "null", "1", "to=", "all"]


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_a_model_writes_reads_the_same_however_it_arrives(spec: DialectSpec, data: st.DataObject) -> None:
    words = st.sampled_from([*sorted(spec.literals), *WORDS, *'{}[]":,<>=\\\n '])
    whole = data.draw(st.sampled_from([answer for other, answer, _ in ANSWERS if other is spec]))
    at = data.draw(st.integers(0, len(whole)))
    pieces = [whole[:at], *data.draw(st.lists(words, max_size=12)), *data.draw(st.sampled_from([[whole[at:]], []]))]
    answer = "".join(pieces)
    found = read(Parser(spec, TOOLS), [answer])
    for pushed in (list(answer), pieces):
        other = read(Parser(spec, TOOLS), pushed)
        assert (said(other), other.reasons) == (said(found), found.reasons)
    # Nothing is lost: letters that are no call's and no marker's come back.
    assert found.calls or spec.channels or answer.count("é") == (found.text + found.reasoning).count("é")
