"""Answers of a real model that are held to a form: schemas, choices, grammars, calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pyllm
import schema_cases
import tool_cases
from pyllm.errors import RequestError


@dataclass
class City:
    name: str
    country: str
    founded: int | None = None


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
                "required": ["city", "unit"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "description": "The time of day"}},
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
}


@pytest.fixture(scope="module")
def llm(model_path: Callable[[str], Path]) -> Iterator[pyllm.LLM]:
    with pyllm.load(model_path("smollm2"), n_ctx=2048) as llm:
        yield llm


def test_a_class(llm: pyllm.LLM) -> None:
    result = llm.chat("Describe Paris: name, country.", response_format=City, temperature=0, max_tokens=100)
    assert result.finish_reason == "stop"
    assert isinstance(result.parsed, City)
    assert json.loads(result.text)["name"] == result.parsed.name == "Paris"


def test_schemas_at_any_temperature(llm: pyllm.LLM) -> None:
    chats: list[Any] = [[{"role": "user", "content": f"Invent person {i}."}] for i in range(20)]
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "seed": 7}
    whole = llm.generate(chats, response_format=PERSON, max_tokens=120, **options)
    cut = llm.generate(chats[:5], response_format=PERSON, max_tokens=6, **options)
    for result in whole:
        if result.finish_reason == "stop":
            jsonschema.validate(result.parsed, PERSON)
        else:
            assert result.parsed is None
    assert sum(result.finish_reason == "stop" for result in whole) > 15
    assert {result.finish_reason for result in cut} == {"length"}
    llm.engine.check()


@pytest.mark.long
def test_random_schemas_and_those_of_tools(llm: pyllm.LLM) -> None:
    """Every answer is valid or cut, and says so; a fifth is cut on purpose."""
    schemas = [schema_cases.random_schema(seed) for seed in range(300)] + [*tool_cases.TOOLS.values()]
    validator = jsonschema.Draft202012Validator
    n_cut = n_valid = 0
    for i, schema in enumerate(schemas):
        short = i % 5 == 0
        result = llm.chat(
            "Write an example in JSON.",
            response_format=schema,
            max_tokens=8 if short else 200,
            temperature=1.5,
            top_p=1.0,
            min_p=0.0,
            top_k=0,
            seed=i,
        )
        if result.finish_reason == "stop":
            n_valid += 1
            validator(schema, format_checker=schema_cases.format_checker()).validate(json.loads(result.text))
            assert result.parsed == json.loads(result.text)
        else:
            n_cut += 1
            assert result.finish_reason == "length"
            assert result.usage.n_generated == (8 if short else 200)
            assert result.parsed is None
    assert n_cut + n_valid == len(schemas) >= 350
    assert n_valid > len(schemas) // 2
    llm.engine.check()


def test_text_forms(llm: pyllm.LLM) -> None:
    assert llm.chat("Is Paris in France?", choice=["yes", "no"], temperature=0).text in ("yes", "no")
    phone = llm.chat("A phone number, please.", regex=r"\d{3}-\d{4}", temperature=1.5)
    assert re.fullmatch(r"\d{3}-\d{4}", phone.text)
    assert phone.finish_reason == "stop"
    assert llm.complete("The answer is ", grammar='root ::= "4" [0-9]').text[0] == "4"
    assert llm.complete("The answer is ", grammar='start: "yes" | "no"').text in ("yes", "no")


def test_streams_and_several_answers(llm: pyllm.LLM) -> None:
    pieces = list(llm.chat("Describe Rome.", response_format=PERSON, stream=True, seed=1, max_tokens=200))
    jsonschema.validate(json.loads("".join(pieces)), PERSON)
    results = llm.chat("Describe Rome.", response_format=PERSON, n=3, seed=1, max_tokens=200).choices
    assert len({result.text for result in results}) > 1
    for result in results:
        jsonschema.validate(json.loads(result.text), PERSON)


def test_tool_choice(llm: pyllm.LLM) -> None:
    question = "How is the weather in Rome?"
    options: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False, "temperature": 0, "max_tokens": 150}
    for choice in ("required", "get_weather", {"type": "function", "function": {"name": "get_weather"}}):
        result = llm.chat(question, tool_choice=choice, **options)
        assert result.finish_reason == "tool_calls"
        (call,) = result.tool_calls
        assert call.name in ("get_weather", "get_time")
    assert call.name == "get_weather"
    jsonschema.validate(call.arguments, TOOLS[0]["function"]["parameters"])  # type: ignore[index]
    assert not llm.chat(question, tool_choice="none", **options).tool_calls


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response_format": {"uniqueItems": True}}, "response_format: the schema cannot be held at #/uniqueItems"),
        ({"regex": "a", "choice": ["a"]}, "regex and choice cannot both be given"),
        ({"tool_choice": "required"}, "tool_choice needs tools, and there are none"),
        ({"tool_choice": "nope", "tools": TOOLS}, "tool_choice names 'nope', and there is no such tool"),
        ({"tool_choice": "required", "tools": TOOLS, "regex": "a"}, "an answer is calls of tools or has a form"),
        ({"tool_choice": {}, "tools": TOOLS}, "tool_choice must be auto, none, required, or name a tool"),
    ],
)
def test_refusals(llm: pyllm.LLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        llm.chat("Hello", **options)


def test_tools_are_for_chats(llm: pyllm.LLM) -> None:
    with pytest.raises(RequestError, match="tool_choice is for chats"):
        llm.complete("Hello", tool_choice="required")
