"""Anthropic's API, spoken by its own client with a live server. The tiny model is made to say what a test needs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic_told import USER, WEATHER, saying, telling, text_of, told

from server_rig import Rig

TIME: Any = {"name": "time", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with telling(tmp_path_factory.mktemp("models")) as rig:
        yield rig


@pytest.fixture
def client(rig: Rig) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=rig.url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    yield
    told.clear()


def events_of(rig: Rig, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A stream's events as they are sent; each one's name must be its type."""
    body = {**body, **body["extra_body"], "stream": True}
    text = httpx2.post(rig.url + "/v1/messages", json=body, timeout=60).text
    found = []
    for frame in text.split("\n\n"):
        if frame and not frame.startswith(":"):
            name, data = frame.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return [event for event in found if event["type"] != "ping"]


def test_text(client: anthropic.Anthropic) -> None:
    made = client.messages.create(**saying("Hello you"))
    assert [(b.type, b.text) for b in made.content if b.type == "text"] == [("text", "Hello you")]
    assert (made.type, made.role, made.model, made.stop_reason) == ("message", "assistant", "tiny", "end_turn")
    # Bytes are this model's tokens, and BOS comes first.
    assert made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0) == 1 + len(
        "<|user|>Hello\n<|assistant|>"
    )
    assert made.usage.output_tokens == len("Hello you")
    assert made._request_id is not None
    assert made._request_id.removeprefix("req_") == made.id.removeprefix("msg_")


def test_a_stream_has_its_events_in_order(rig: Rig) -> None:
    said = f"<think>I think.</think>I look.{CALL}"
    events = events_of(rig, saying(said, tools=[WEATHER]))
    assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
        "message_start",
        *["content_block_start", "content_block_stop"] * 3,
        "message_delta",
        "message_stop",
    ]
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({"type": event["content_block"]["type"], "deltas": []})
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            blocks[-1]["deltas"].append(event["delta"])
    thinking, text, call = blocks
    assert [b["type"] for b in blocks] == ["thinking", "text", "tool_use"]
    assert "".join(d.get("thinking", "") for d in thinking["deltas"]) == "I think."
    assert thinking["deltas"][-1] == {"type": "signature_delta", "signature": ""}
    assert {d["type"] for d in text["deltas"]} == {"text_delta"}
    assert "".join(d["text"] for d in text["deltas"]) == "I look."
    assert len(text["deltas"]) > 1
    assert json.loads("".join(d["partial_json"] for d in call["deltas"])) == {"city": "Paris"}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(said)
    first, last = events[0]["message"]["usage"], events[-2]["usage"]
    assert first["input_tokens"] == last["input_tokens"] + last["cache_read_input_tokens"] > 0


def test_the_stream_helper_makes_the_same_message_as_without_a_stream(client: anthropic.Anthropic) -> None:
    asked = saying(f"<think>I think.</think>I look.{CALL}", tools=[WEATHER])
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        texts = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert texts == "I look."
    assert [b.type for b in whole.content] == ["thinking", "text", "tool_use"]

    def plain(message: Any) -> list[dict[str, Any]]:
        blocks = [block.to_dict() for block in message.content]
        return [{k: v for k, v in b.items() if k not in ("id", "parsed_output", "citations")} for b in blocks]

    assert plain(streamed) == plain(whole)
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_async(rig: Rig) -> None:
    async def main() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=rig.url, api_key="any", max_retries=0) as client:

            async def one(text: str) -> str:
                async with client.messages.stream(**saying(text)) as stream:
                    return "".join([piece async for piece in stream.text_stream])

            return await asyncio.gather(*(one(f"answer {i}") for i in range(4)))

    assert asyncio.run(main()) == [f"answer {i}" for i in range(4)]


# --- ends


def test_max_tokens(client: anthropic.Anthropic) -> None:
    made = client.messages.create(**{**saying("Hello you"), "max_tokens": 5})
    assert (made.stop_reason, text_of(made), made.usage.output_tokens) == ("max_tokens", "Hello", 5)


def test_no_tokens_at_all_read_the_prompt_into_the_cache(client: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": "How are you, and what are you doing all day long?" * 2}]
    made = client.messages.create(model="tiny", max_tokens=0, messages=question)
    assert (made.content, made.usage.output_tokens, made.usage.cache_read_input_tokens) == ([], 0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(rig: Rig, client: anthropic.Anthropic, stream: bool) -> None:
    asked = saying("one two three", stop_sequences=["four", " thr"])
    if stream:
        delta = events_of(rig, asked)[-2]["delta"]
        assert delta == {"stop_reason": "stop_sequence", "stop_sequence": " thr"}
        return
    made = client.messages.create(**asked)
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", " thr")
    assert text_of(made) == "one two"


def test_a_full_context(client: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": "x" * 900}]
    made = client.messages.create(**{**saying("y" * 400), "messages": long, "max_tokens": 400})
    assert made.stop_reason == "model_context_window_exceeded"
    assert made.usage.input_tokens + made.usage.output_tokens >= 1024


# --- tools


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_tool_choice_is_held(client: anthropic.Anthropic, choice: Any) -> None:
    asked: Any = {
        "tools": [WEATHER] if choice["type"] == "any" else [TIME, WEATHER],
        "tool_choice": {**choice, "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 1.0},
    }
    made = client.messages.create(model="tiny", max_tokens=300, messages=USER, **asked)
    assert made.stop_reason == "tool_use"
    (call,) = made.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Paris"})


def test_no_tool_is_called_with_none(client: anthropic.Anthropic) -> None:
    made = client.messages.create(**saying(CALL, tools=[WEATHER], tool_choice={"type": "none"}))
    assert [b.type for b in made.content] == ["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most_without_parallel_use(rig: Rig, client: anthropic.Anthropic, stream: bool) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    asked = saying(CALL + "\n" + CALL, tools=[WEATHER], tool_choice=choice)
    both = client.messages.create(**{**asked, "tool_choice": {"type": "auto"}})
    assert [b.type for b in both.content] == ["tool_use"] * 2, both
    if stream:
        starts = [e["content_block"] for e in events_of(rig, asked) if e["type"] == "content_block_start"]
        assert [block["type"] for block in starts] == ["tool_use"]
        return
    one = client.messages.create(**asked)
    assert [b.type for b in one.content] == ["tool_use"], one


def test_a_broken_call_is_text_and_no_block(rig: Rig) -> None:
    broken = '<tool_call>\n{"name": "weather", "arguments": {"city": "Par\n</tool_call>'
    events = events_of(rig, saying(broken, tools=[WEATHER]))
    assert [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"] == ["text"]
    text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    assert text == broken
    assert events[-2]["delta"]["stop_reason"] == "end_turn"


def test_eager_input_comes_in_pieces(rig: Rig) -> None:
    def deltas(tool: dict[str, Any]) -> list[str]:
        events = events_of(rig, saying(CALL, tools=[tool]))
        return [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]

    whole, eager = deltas(WEATHER), deltas({**WEATHER, "eager_input_streaming": True})
    assert len(whole) == 1 < len(eager)
    assert json.loads("".join(eager)) == json.loads(whole[0]) == {"city": "Paris"}


def test_a_loop_of_calls_and_results(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**saying(f"<think>Hm.</think>{CALL}", tools=[WEATHER]))
    call = first.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    history: Any = [
        *USER,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
    ]
    second = client.messages.create(**saying("It rains.", messages=history, tools=[WEATHER]))
    assert text_of(second) == "It rains."
    # The first prompt and its answer are the beginning of the second one.
    assert (second.usage.cache_read_input_tokens or 0) > len("<|user|>Hello\n<|assistant|>")


def test_tools_that_run_elsewhere_are_left_out(client: anthropic.Anthropic) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    alone = client.messages.count_tokens(model="tiny", messages=USER, tools=[WEATHER])
    both = client.messages.count_tokens(model="tiny", messages=USER, tools=[search, WEATHER])
    assert both.input_tokens == alone.input_tokens > 40
    with pytest.raises(anthropic.BadRequestError, match="no tools that the model could call"):
        client.messages.create(**saying("x", tools=[search], tool_choice={"type": "any"}))


# --- thinking and forms


@pytest.mark.parametrize("stream", [False, True])
def test_no_thinking_where_it_is_disabled(rig: Rig, client: anthropic.Anthropic, stream: bool) -> None:
    asked = saying("<think>I think.</think>Yes.", thinking={"type": "disabled"})
    if stream:
        events = events_of(rig, asked)
        assert [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"] == ["text"]
        return
    assert [b.type for b in client.messages.create(**asked).content] == ["text"]


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_is_held(client: anthropic.Anthropic, field: str) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    made = client.messages.create(
        model="tiny",
        max_tokens=400,  # a random model may write as much indent as the grammar admits, four times 66 characters
        messages=USER,
        extra_body={field: {"format": form, "effort": "low"} if field == "output_config" else form},
    )
    assert json.loads(text_of(made))["ok"] in (True, False)


def test_prefill(client: anthropic.Anthropic) -> None:
    history: Any = [*USER, {"role": "assistant", "content": "It is"}]
    counted = client.messages.count_tokens(model="tiny", messages=history)
    assert counted.input_tokens == 1 + len("<|user|>Hello\n<|assistant|>It is")
    made = client.messages.create(**saying(" so", messages=history))
    assert text_of(made) == " so"


# --- prompts


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    counted = client.messages.count_tokens(model="tiny", messages=USER, system=system, tools=[WEATHER])
    made = client.messages.create(**saying("x", system=system, tools=[WEATHER]))
    assert counted.input_tokens == made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0)


def test_the_billing_header_leaves_the_prefix_as_it_is(client: anthropic.Anthropic) -> None:
    def asked(sign: str) -> Any:
        header = f"x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch={sign};"
        system = [{"type": "text", "text": header}, {"type": "text", "text": "You help with code. " * 8}]
        return client.messages.create(**saying("x", system=system))

    asked("a5145")
    usage = asked("0ff1c").usage
    assert usage.cache_read_input_tokens > 128
    plain = client.messages.count_tokens(model="tiny", messages=USER, system="You help with code. " * 8)
    assert usage.input_tokens + usage.cache_read_input_tokens == plain.input_tokens


def test_what_means_nothing_here_is_ignored(client: anthropic.Anthropic) -> None:
    made = client.beta.messages.create(
        model="tiny",
        max_tokens=300,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]}
        ],
        metadata={"user_id": "u"},
        service_tier="auto",
        betas=["context-management-2025-06-27", "interleaved-thinking-2025-05-14"],
        extra_body={"choice": ["Yes"], "context_management": {"edits": []}, "container": None, "mcp_servers": []},
    )
    assert text_of(made) == "Yes"


def test_models(client: anthropic.Anthropic) -> None:
    found = client.models.list()
    assert [(model.id, model.type, model.display_name) for model in found] == [("tiny", "model", "tiny")]
    assert client.models.retrieve("tiny").created_at.year >= 2024
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-9")
