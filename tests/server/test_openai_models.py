"""OpenAI's client with a real model, where what the model does matters: tools, forms, gaps, conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from server_rig import running

GREEDY: Any = {"model": "", "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RESULT = '{"weather": "hail", "temperature": 3}'
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def client(model_path: Callable[[str], Path]) -> Iterator[openai.OpenAI]:
    load = {"backend": "cpu"}
    with (
        running(model_path("qwen-0.5b"), n_ctx=2048, max_seqs=2, load=load) as rig,
        openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        yield client


def test_a_named_tool_is_called_and_its_result_is_told(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    options: Any = {**GREEDY, "tools": [WEATHER], "parallel_tool_calls": False, "max_tokens": 60}
    message = client.chat.completions.create(messages=QUESTION, tool_choice=choice, **options).choices[0].message
    (call,) = message.tool_calls or ()
    assert call.type == "function"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    history: Any = [*QUESTION, message.model_dump(exclude_none=True), result]
    told = client.chat.completions.create(messages=history, tool_choice="none", **options).choices[0]
    assert "hail" in (told.message.content or "")


def test_responses_go_from_call_to_answer(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    options: Any = {**GREEDY, "tools": [tool], "max_output_tokens": 60}
    conversation: list[Any] = [*QUESTION]
    with client.responses.stream(input=conversation, tool_choice="required", **options) as stream:
        output = stream.get_final_response().output
    call = output[0]
    assert call.type == "function_call"
    assert "Paris" in call.arguments
    conversation += [{k: v for k, v in item.to_dict().items() if k != "parsed_arguments"} for item in output]
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    assert "hail" in client.responses.create(input=conversation, tool_choice="none", **options).output_text


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_a_schema_is_filled(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Extract: Ann is 42 years old. Answer as JSON."}]
    options: Any = {**GREEDY, "max_tokens": 60}
    parsed = client.chat.completions.parse(messages=messages, response_format=Person, **options)
    assert parsed.choices[0].message.parsed == Person(name="Ann", age=42)


def test_a_gap_is_filled_from_both_sides(client: openai.OpenAI) -> None:
    prefix, suffix = "def add(a, b):\n    total = ", "\n    return total\n"
    options: Any = {**GREEDY, "max_tokens": 16}
    (choice,) = client.completions.create(prompt=prefix, suffix=suffix, **options).choices
    assert choice.text.startswith("a + b\n")
    pieces = client.completions.create(prompt=prefix, suffix=suffix, stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text
    body = {"prompt": prefix, "suffix": suffix, "max_tokens": 16, "temperature": 0}
    of_mistral: Any = client.post("/fim/completions", body=body, cast_to=dict[str, Any])
    assert of_mistral["choices"][0]["message"]["content"] == choice.text


def test_a_second_turn_reads_the_first_from_the_cache(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Count from one to twenty in words."}]
    first = client.chat.completions.create(messages=messages, max_tokens=40, **GREEDY)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "On"}]
    second = client.chat.completions.create(messages=messages, max_tokens=2, **GREEDY)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens // 32 * 32 > 0
