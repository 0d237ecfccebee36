"""Calls that a model writes wrongly, in streams: what could be held back is text alone, and each ends as it must."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from anthropic_told import USER, WEATHER, telling, told

from server_rig import Rig

FUNCTION = {"name": "weather", "parameters": WEATHER["input_schema"]}
TOOLS = [{"type": "function", "function": FUNCTION}]
START = '<tool_call>\n{"name": "weather", "arguments": '
GOOD = START + '{"city": "Paris"}}\n</tool_call>'
CUT = START.rstrip()
"""White space at the end is no text."""
AT_ONCE = START + "Paris}\n</tool_call>"
"""Wrong before any argument."""
LATER = START + '{"city": "Paris", nothing}}\n</tool_call>'
"""Wrong when an argument was there."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with telling(tmp_path_factory.mktemp("models")) as rig:
        yield rig


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    yield
    told.clear()


def events(rig: Rig, path: str, answer: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream of this answer."""
    told[:] = [answer.encode()]
    body = {"model": "tiny", "max_tokens": 300, "stream": True, **body}
    found = httpx2.post(rig.url + path, json=body, timeout=300)
    assert found.status_code == 200, found.text
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line.startswith(("data: {", "{"))]
    if path == "/v1/chat/completions":
        assert found.text.endswith("data: [DONE]\n\n")
    return [json.loads(line) for line in lines]


def chat(rig: Rig, answer: str, **body: Any) -> tuple[str, dict[int, str], str]:
    """Of a streamed chat: its text, the arguments of its calls by index, its finish reason."""
    text, calls, reason = "", {}, ""
    for event in events(rig, "/v1/chat/completions", answer, messages=USER, tools=TOOLS, **body):
        (choice,) = event["choices"]
        assert not reason
        reason = choice["finish_reason"] or ""
        text += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            if call["index"] not in calls:
                assert call["function"]["name"] == "weather"
                assert call["id"]
            calls[call["index"]] = calls.get(call["index"], "") + call["function"]["arguments"]
    return text, calls, reason


def test_a_chats_call_that_is_wrong_at_once_is_text_alone(rig: Rig) -> None:
    assert chat(rig, AT_ONCE) == (AT_ONCE, {}, "stop")
    assert chat(rig, CUT) == (CUT, {}, "stop")


def test_a_chats_call_that_is_wrong_later_is_text_and_no_reason_to_call(rig: Rig) -> None:
    text, calls, reason = chat(rig, LATER)
    assert (text, reason) == (LATER, "stop")
    with pytest.raises(json.JSONDecodeError):
        json.loads(calls[0])


def test_a_chats_right_call_follows_a_wrong_one(rig: Rig) -> None:
    text, calls, reason = chat(rig, AT_ONCE + GOOD)
    assert (text, reason) == (AT_ONCE, "tool_calls")
    assert [json.loads(arguments) for arguments in calls.values()] == [{"city": "Paris"}]


def test_a_chats_call_that_is_cut_off_ends_with_the_length(rig: Rig) -> None:
    text, calls, reason = chat(rig, GOOD, max_tokens=len(START))
    assert (text, calls, reason) == (CUT, {}, "length")
    text, _, reason = chat(rig, GOOD, max_tokens=len(START) + 8)
    assert (text, reason) == (GOOD[: len(START) + 8], "length")


@pytest.mark.parametrize("answer", [AT_ONCE, LATER, CUT])
def test_responses_have_no_whole_call(rig: Rig, answer: str) -> None:
    tools = [{"type": "function", **FUNCTION}]
    found = events(rig, "/v1/responses", answer, input="Hello", tools=tools)
    last = found[-1]
    assert last["type"] == "response.completed"
    opened = [event["output_index"] for event in found if event["type"] == "response.output_item.added"]
    assert opened == [event["output_index"] for event in found if event["type"] == "response.output_item.done"]
    calls = [item for item in last["response"]["output"] if item["type"] == "function_call"]
    assert [call["status"] for call in calls] == (["incomplete"] if answer == LATER else [])
    (message,) = [item for item in last["response"]["output"] if item["type"] == "message"]
    assert message["content"][0]["text"] == answer


@pytest.mark.parametrize("answer", [AT_ONCE, LATER, CUT])
def test_messages_and_ollamas_chats_have_no_call_at_all(rig: Rig, answer: str) -> None:
    found = events(rig, "/v1/messages", answer, messages=USER, tools=[WEATHER])
    blocks = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert blocks == ["text"]
    assert [event["delta"]["stop_reason"] for event in found if event["type"] == "message_delta"] == ["end_turn"]
    lines = events(rig, "/api/chat", answer, messages=USER, tools=TOOLS)
    assert not [line for line in lines if line["message"].get("tool_calls")]
    assert "".join(line["message"]["content"] for line in lines) == answer
    assert (lines[-1]["done"], lines[-1]["done_reason"]) == (True, "stop")


@pytest.mark.parametrize("answer", [AT_ONCE, LATER])
def test_a_block_that_was_wanted_early_is_closed(rig: Rig, answer: str) -> None:
    tool = {**WEATHER, "eager_input_streaming": True}
    found = events(rig, "/v1/messages", answer, messages=USER, tools=[tool])
    opened = [event["index"] for event in found if event["type"] == "content_block_start"]
    assert opened == [event["index"] for event in found if event["type"] == "content_block_stop"]
    blocks = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert blocks == (["tool_use", "text"] if answer == LATER else ["text"])
    assert [event["delta"]["stop_reason"] for event in found if event["type"] == "message_delta"] == ["end_turn"]
