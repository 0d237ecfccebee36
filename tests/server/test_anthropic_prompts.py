"""Anthropic's bodies as chats in OpenAI's form, written out by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pyllm.server.apis._anthropic.given import MessagesBody, asked
from pyllm.server.asks import Ask
from pyllm.server.problems import ProblemError

TEXT = {"type": "text", "text": "Hello"}


def ask_of(*messages: dict[str, Any], **fields: Any) -> Ask:
    body = {"messages": list(messages), "max_tokens": 9, **fields}
    return asked(msgspec.convert(body, MessagesBody), body)


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_results_of_tools_come_before_what_the_user_says() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    found = ask_of(
        user(TEXT),
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "…"}, TEXT, use]},
        user(
            TEXT,
            {"type": "tool_result", "tool_use_id": "t1", "content": [TEXT, {"type": "text", "text": "you"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "no such file", "is_error": True},
            {"type": "tool_result", "tool_use_id": "t3"},
        ),
    )
    parts = [{"type": "text", "text": "Hello"}]
    call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    assert found.messages == [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Hello", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "Hello\nyou"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no such file"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": parts},
    ]
    assert not found.continues


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("Be brief.", ["Be brief."]),
        ([TEXT, {**TEXT, "cache_control": {"type": "ephemeral"}}], ["Hello", "Hello"]),
        ("x-anthropic-billing-header: cc_version=2.1; cch=a51;You are brief.", ["You are brief."]),
        ([{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.9; cch=a51;"}, TEXT], ["Hello"]),
        ([{"type": "text", "text": "x-anthropic-billing-header: a=b; cch=1; \n"}], None),
        ("", None),
    ],
)
def test_system(system: Any, said: list[str] | None) -> None:
    (*first, _) = ask_of(user(TEXT), system=system).messages or ()
    expected = [{"role": "system", "content": [{"type": "text", "text": text} for text in said]}] if said else []
    assert list(first) == expected


def test_a_system_message_may_come_later() -> None:
    found = ask_of(user(TEXT), {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Well?"})
    assert [message["role"] for message in found.messages or ()] == ["user", "system", "user"]


def test_texts_of_documents_and_search_results_are_read() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    found = {"type": "search_result", "title": "S", "source": "http://a", "content": [TEXT], "citations": {}}
    (message,) = ask_of(user(document, found)).messages or ()
    assert [part["text"] for part in message["content"]] == ["T\nD", "S\nhttp://a\nHello"]


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True, "thinking": True}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"enable_thinking": True, "thinking": True, "thinking_budget": 2048},
        ),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
    ],
)
def test_thinking(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    assert ask_of(user(TEXT), **fields).variables == variables


def test_options() -> None:
    tool = {"name": "look", "input_schema": {"type": "object"}, "strict": True, "cache_control": {}}
    choice = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}
    found = ask_of(user(TEXT), tools=[tool], tool_choice=choice, stop_sequences=["a"], top_k=3, seed=7, unknown=1)
    assert found.options == {
        "max_tokens": 9,
        "stop": ["a"],
        "top_k": 3,
        "seed": 7,
        "tool_choice": "look",
        "parallel_tool_calls": False,
    }
    function = {"name": "look", "parameters": {"type": "object"}, "strict": True}
    assert found.tools == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (user({"type": "image", "source": {}}), "messages[0].content[0]"),
        (user({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0]"),
        (user({"type": "tool_result", "content": [{"type": "image"}]}), "messages[0].content[0][0]"),
        (user({"type": "tool_result", "content": 1}), "messages[0].content[0].content"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"text": "x"}), "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}, "messages[0]"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}, "messages[0].content[0].name"),
    ],
)
def test_what_cannot_be_read_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(ProblemError) as caught:
        ask_of(message)
    assert (caught.value.problem.status, caught.value.problem.param) == (400, param)
