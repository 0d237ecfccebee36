"""OpenAI's Responses by its client: items, events in order, calls of functions, forms, what needs a state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pydantic
import pytest
from chat_tools import REASONING, TOOLS, begin_with

import pyllm
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

GREEDY: Any = {"model": "tiny", "temperature": 0}
FUNCTIONS: Any = [{"type": "function", **tool["function"], "strict": False} for tool in TOOLS]


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path, n_ctx=2048) as rig:
        yield rig


@pytest.fixture(scope="module")
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def events_of(rig: Rig, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire."""
    answer = httpx2.post(rig.url + "/v1/responses", json={**GREEDY, **body, "stream": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    found = []
    for frame in answer.text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def test_an_answer_is_the_librarys(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
    expected = llm.chat(messages, temperature=0, max_tokens=8)
    response = client.responses.create(input="Hello", instructions="Be brief", max_output_tokens=8, **GREEDY)
    assert response.output_text == expected.text
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.input_tokens == expected.usage.n_prompt
    assert response.usage.output_tokens == 8
    counted = client.responses.input_tokens.count(model="tiny", input="Hello", instructions="Be brief")
    assert counted.input_tokens == expected.usage.n_prompt


def test_items_become_the_messages_that_chats_have(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"unit": "utc"}'}}
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief"}]},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "I look", "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon\nor so"},
    ]
    items: Any = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief"}]},
        {"role": "user", "content": "What time is it?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": '{"unit": "utc"}'},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "noon"}, {"type": "input_text", "text": "or so"}],
        },
    ]
    options: Any = {"tools": FUNCTIONS, "tool_choice": "none"}
    counted = client.responses.input_tokens.count(model="tiny", input=items, **options)
    assert counted.input_tokens == len(llm.chat_tokens(messages, tools=TOOLS))
    response = client.responses.create(input=items, max_output_tokens=6, **options, **GREEDY)
    expected = llm.chat(messages, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=6)
    assert response.output_text == expected.text


def test_events_of_a_message_come_in_order(rig: Rig) -> None:
    events = events_of(rig, input="Hello", max_output_tokens=6)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    inner = events[3:-2]
    assert {(e["item_id"], e["output_index"], e["content_index"]) for e in inner} == {(events[2]["item"]["id"], 0, 0)}
    text = "".join(event["delta"] for event in events[4:-4])
    assert text == events[-4]["text"] == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert len({event["response"]["id"] for event in (events[0], events[1], events[-1])}) == 1
    assert events[-1]["response"]["usage"]["output_tokens"] == 6


def test_events_of_a_call_come_in_order(rig: Rig) -> None:
    options: Any = {"tools": FUNCTIONS, "tool_choice": "required", "parallel_tool_calls": False}
    events = events_of(rig, input="Hello", **options)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    added, done = events[2]["item"], events[-2]["item"]
    assert {event["item_id"] for event in events[3:-2]} == {added["id"]}
    assert (added["call_id"], added["name"], added["arguments"]) == (done["call_id"], done["name"], "")
    assert done["arguments"] == "".join(event["delta"] for event in events[3:-3])
    assert json.loads(done["arguments"])["unit"] in ("utc", "local", "kelvin", "celsius")
    assert events[-1]["response"]["output"] == [done]


def test_the_clients_stream_assembles_calls(client: openai.OpenAI) -> None:
    options: Any = {"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "get_heat"}, **GREEDY}
    with client.responses.stream(input="Hello", parallel_tool_calls=False, **options) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_response().output
    assert (call.type, call.name) == ("function_call", "get_heat")  # type: ignore[union-attr]


def test_reasoning_is_an_item_before_the_message(tmp_path: Path) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    with running(write_tiny_gguf(tmp_path / "tiny.gguf", REASONING), n_ctx=2048) as rig:
        until(lambda: rig.house.models.loaded)
        llm = rig.house.models.loaded[0].llm.llm
        begin_with(llm, llm.chat_tokens(messages), "hm\n</think>\n\nWell")
        options: Any = {"input": messages, "max_output_tokens": 20}
        events = events_of(rig, **options)
        whole = httpx2.post(rig.url + "/v1/responses", json={**GREEDY, **options}, timeout=60).json()
        n_quiet = len(llm.chat_tokens(messages, variables={"enable_thinking": False}))
        quiet = events_of(rig, **options, reasoning={"effort": "none"})[-1]["response"]
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds[2:-1])) == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done", "output_text.delta", "output_text.done",
    ]  # fmt: skip
    reasoning, message = events[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["content"][0]["text"].strip()) == ("reasoning", "hm")
    assert message["content"][0]["text"].startswith("Well")
    assert {e["output_index"] for e in events if e["type"] == "response.output_text.delta"} == {1}
    assert [item["content"] for item in whole["output"]] == [reasoning["content"], message["content"]]
    assert 0 < whole["usage"]["output_tokens_details"]["reasoning_tokens"] <= 20
    assert quiet["usage"]["input_tokens"] == n_quiet
    assert [item["type"] for item in quiet["output"]] == ["message"]


class Answer(pydantic.BaseModel):
    color: Literal["red", "green"]


def test_parse_gives_an_object_of_a_class(client: openai.OpenAI) -> None:
    assert isinstance(client.responses.parse(input="Hello", text_format=Answer, **GREEDY).output_parsed, Answer)
    with client.responses.stream(input="Hello", text_format=Answer, **GREEDY) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Answer)


def test_log_probabilities_come_where_they_are_asked_for(client: openai.OpenAI, rig: Rig) -> None:
    options: Any = {"max_output_tokens": 4, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    part: Any = client.responses.create(input="Hello", **options, **GREEDY).output[0].content[0]  # type: ignore[union-attr]
    assert [len(token.top_logprobs) for token in part.logprobs] == [2] * 4
    events = events_of(rig, input="Hello", **options)
    deltas = [token for event in events if event["type"].endswith(".delta") for token in event["logprobs"]]
    assert [token["logprob"] for token in deltas] == [token.logprob for token in part.logprobs]


def test_tools_of_other_kinds_are_left_out(client: openai.OpenAI) -> None:
    tools: Any = [
        *FUNCTIONS,
        {"type": "web_search"},
        {"type": "custom", "name": "apply_patch"},
        {"type": "namespace", "name": "x"},
    ]
    options: Any = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, **GREEDY}
    (call,) = client.responses.create(input="Hello", **options).output
    assert call.type == "function_call"
    chosen: Any = {"tools": tools, "tool_choice": {"type": "web_search"}, "max_output_tokens": 1, **GREEDY}
    assert client.responses.create(input="Hello", **chosen).status == "incomplete"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "stateless"),
        ({"conversation": "conv_1"}, "conversation", "stateless"),
        ({"background": True}, "background", "stateless"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "send it whole"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "text alone"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "expected `int | null`"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format", "not"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, body: Any, param: str, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            client.post("/responses", body={"input": "Hello", "stream": stream, **body}, cast_to=object)
        error: Any = caught.value.body
        assert error["param"] == param


def test_the_oldest_turns_are_left_out_where_that_is_asked_for(client: openai.OpenAI) -> None:
    long: Any = [{"role": role, "content": "ab " * 200} for role in ("user", "assistant") * 5]
    items: Any = [*long, {"role": "user", "content": "Hello"}]
    options: Any = {"input": items, "max_output_tokens": 2, **GREEDY}
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**options)
    assert client.responses.create(truncation="auto", **options).truncation == "auto"


def test_a_prompt_that_is_too_long_has_the_code_that_agents_compact_by(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="ab " * 2000, stream=True, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"


def test_what_fails_after_the_beginning_is_the_last_event(path: Path) -> None:
    with running(path, n_ctx=2048, grace=0.0) as rig:
        events = events_of(rig, input="ab " * 2000)
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
