"""Anthropic's client, and llama-server's gaps, with a real model, where what the model does matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pydantic
import pytest

from server_rig import Rig, running

GREEDY: Any = {"model": "", "extra_body": {"temperature": 0}}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def rig(model_path: Callable[[str], Path]) -> Iterator[Rig]:
    with running(model_path("qwen-0.5b"), n_ctx=2048, max_seqs=2, load={"backend": "cpu"}) as rig:
        yield rig


@pytest.fixture(scope="module")
def client(rig: Rig) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=rig.url, api_key="any", max_retries=0, timeout=300) as client:
        yield client


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any", "disable_parallel_tool_use": True}])
def test_a_loop_of_calls_and_results(client: anthropic.Anthropic, choice: Any) -> None:
    options: Any = {**GREEDY, "tools": [WEATHER], "max_tokens": 60}
    with client.messages.stream(messages=QUESTION, tool_choice=choice, **options) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use"
    (call,) = called.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"weather": "hail", "temperature": 3}'}
    history: Any = [
        *QUESTION,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    told = client.messages.create(messages=history, tool_choice={"type": "none"}, **options)
    (text,) = told.content
    assert text.type == "text"
    assert "hail" in text.text
    # The first turn's prompt, tools included, was not computed again.
    n_first = called.usage.input_tokens + (called.usage.cache_read_input_tokens or 0)
    assert (told.usage.cache_read_input_tokens or 0) >= n_first // 32 * 32 > 0


def test_the_clients_own_loop_of_tools(client: anthropic.Anthropic) -> None:
    asked: list[str] = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the current weather of a city.

        Args:
            city: The city's name.
        """
        asked.append(city)
        return '{"weather": "hail", "temperature": 3}'

    tools: Any = [get_weather]
    runner = client.beta.messages.tool_runner(tools=tools, messages=QUESTION, max_tokens=60, max_iterations=3, **GREEDY)
    last = runner.until_done()
    assert asked[0] == "Paris"
    assert any("hail" in block.text for block in last.content if block.type == "text")


def test_streamed_is_as_whole(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "Count from one to ten in words."}]
    whole = client.messages.create(messages=messages, max_tokens=40, **GREEDY)
    with client.messages.stream(messages=messages, max_tokens=40, **GREEDY) as stream:
        texts = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert len(texts) > 5
    assert "".join(texts) == streamed.content[0].to_dict()["text"] == whole.content[0].to_dict()["text"]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.stop_reason == whole.stop_reason


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_a_schema_is_filled(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "Extract: Ann is 42 years old. Answer as JSON."}]
    parsed = client.messages.parse(messages=messages, max_tokens=60, output_format=Person, **GREEDY)
    assert parsed.parsed_output == Person(name="Ann", age=42)


def test_a_prefill_is_continued(client: anthropic.Anthropic) -> None:
    messages: Any = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    made = client.messages.create(messages=messages, max_tokens=8, **GREEDY)
    assert made.content[0].to_dict()["text"] == " Paris."


def test_a_gap_is_filled_from_both_sides(rig: Rig) -> None:
    body = {
        "input_prefix": "def add(a, b):\n    total = ",
        "input_suffix": "\n    return total\n",
        "input_extra": [{"filename": "main.py", "text": "print(add(1, 2))\n"}],
        "temperature": 0,
        "n_predict": 16,
    }
    found = httpx2.post(rig.url + "/infill", json=body, timeout=300).json()
    assert found["content"].startswith("a + b")
    for mark in ("<|file_sep|>main.py\n", "<|fim_prefix|>def add", "<|fim_suffix|>\n    return total\n<|fim_middle|>"):
        assert mark in found["prompt"]
    begun = httpx2.post(rig.url + "/infill", json={**body, "prompt": "a +"}, timeout=300).json()
    assert begun["prompt"].endswith("<|fim_middle|>a +")
    assert begun["content"].startswith(" b")
