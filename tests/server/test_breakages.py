"""Where servers broke OpenAI's clients: the wire of each case, against a live server.

The numbers of issues that are named are of the servers and clients where each was found.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from chat_tools import REASONING, TOOLS, begin_with, function

import pyllm
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
NO_BLANKS = {str(byte): -100 for byte in b" \t\r\n"}
"""A bias by which a random model writes JSON without pages of blanks."""
CALLS: dict[str, Any] = {
    "messages": HELLO,
    "tools": TOOLS,
    "tool_choice": "required",
    "logit_bias": NO_BLANKS,
    "seed": 3,
    "temperature": 1.5,
}


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path, n_ctx=2048) as rig:
        yield rig


def post(rig: Rig, **body: Any) -> httpx2.Response:
    return httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=60)


def answer(rig: Rig, **body: Any) -> dict[str, Any]:
    """The first choice."""
    found = post(rig, **body)
    assert found.status_code == 200, found.text
    choice: dict[str, Any] = found.json()["choices"][0]
    return choice


def chunks(rig: Rig, **body: Any) -> list[dict[str, Any]]:
    lines = post(rig, **body, stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def calls_in(found: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """The calls of a stream, by index; each chunk is as it must be."""
    calls: dict[int, dict[str, str]] = {}
    order = []
    for chunk in found:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ()):
            index = delta["index"]
            order.append(index)
            if index not in calls:
                assert delta["type"] == "function"
                calls[index] = {"id": delta["id"], "name": delta["function"]["name"], "arguments": ""}
            else:
                assert "id" not in delta
                assert "name" not in delta["function"]
            calls[index]["arguments"] += delta["function"]["arguments"]
    assert order == sorted(order)
    assert list(calls) == list(range(len(calls)))
    return calls


def test_1_deltas_of_calls_have_an_index_and_one_id(rig: Rig) -> None:
    """ollama#7881, litellm#37792, codex#7517, continue#13235."""
    for seed in range(30):  # a random model writes as many calls as it happens to
        found = chunks(rig, **{**CALLS, "seed": seed})
        calls = calls_in(found)
        if len(calls) > 1 and found[-1]["choices"][0]["finish_reason"] == "tool_calls":
            break
    assert len(calls) > 1
    assert len({call["id"] for call in calls.values()}) == len(calls)
    for call in calls.values():
        assert call["name"] in ("get_time", "get_heat")
        assert json.loads(call["arguments"])["unit"] in ("utc", "local", "kelvin", "celsius")


def test_2_the_reason_of_calls_is_tool_calls(rig: Rig) -> None:
    """ollama#7963, vllm#9209, vllm#25054, litellm#35663."""
    one = {**CALLS, "parallel_tool_calls": False}  # a random model might go on calling until the context is full
    assert answer(rig, **one)["finish_reason"] == "tool_calls"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks(rig, **one)]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_3_null_content_is_read_and_written_with_calls_alone(rig: Rig) -> None:
    """llama.cpp#13471, lmstudio-bug-tracker#261, llama-cpp-python#1805."""
    said = answer(rig, **CALLS)["message"]
    assert said["content"] is None
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "noon"} for call in said["tool_calls"]]
    for history in ([*HELLO, said, *results], [*HELLO, {"role": "assistant", "content": None}, *HELLO]):
        message = answer(rig, messages=history, max_tokens=2)["message"]
        assert isinstance(message["content"], str)
    cut = answer(rig, messages=HELLO, max_tokens=0)["message"]
    assert cut["content"] == ""
    first = chunks(rig, messages=HELLO, max_tokens=1)[0]["choices"][0]["delta"]
    assert first == {"role": "assistant", "content": ""}


def test_4_content_may_be_parts(rig: Rig) -> None:
    """llama.cpp#8367, llama.cpp#19419, transformers#39829, llama.cpp#14353."""

    def parts(role: str, *texts: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}

    options: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    plain = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello\nyou"}]
    in_parts = [parts("system", "Be brief"), parts("user", "Hello", "you")]
    assert answer(rig, messages=in_parts, **options) == answer(rig, messages=plain, **options)
    begun = {"role": "assistant", "content": "Well"}
    expected = answer(rig, messages=[*plain, begun], **options)
    assert answer(rig, messages=[*in_parts, parts("assistant", "Well")], **options) == expected


def test_5_developers_and_late_systems_are_heard(rig: Rig, llm: pyllm.LLM) -> None:
    """codex#9392, vllm#42407."""
    system = {"role": "system", "content": "Be brief"}
    expected = llm.chat([system, *HELLO], temperature=0, max_tokens=4).text
    for messages in ([{**system, "role": "developer"}, *HELLO], [system, *HELLO]):
        assert answer(rig, messages=messages, temperature=0, max_tokens=4)["message"]["content"] == expected
    late = post(rig, messages=[*HELLO, system], temperature=0, max_tokens=4).json()
    assert late["usage"]["prompt_tokens"] == len(llm.chat_tokens([*HELLO, system]))


def test_6_usage_comes_when_it_is_asked_for_and_without_choices(rig: Rig) -> None:
    """apfel#100, ROCm/ATOM#1711."""
    unasked = chunks(rig, messages=HELLO, max_tokens=3)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in unasked)
    *others, last = chunks(rig, messages=HELLO, max_tokens=3, stream_options={"include_usage": True})
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3


def test_7_max_completion_tokens_counts_and_unknown_fields_do_not(rig: Rig) -> None:
    """llama-cpp-python#1907, ik_llama#2321, void#128."""
    body: dict[str, Any] = {"messages": HELLO, "max_completion_tokens": 3, "max_tokens": 9, "surprise": {"a": [1]}}
    found = post(rig, **body).json()
    assert found["usage"]["completion_tokens"] == 3
    assert found["choices"][0]["finish_reason"] == "length"


def test_8_a_tool_choice_is_never_dropped(rig: Rig) -> None:
    """ollama#17921, vllm#49712."""
    named = {"type": "function", "function": {"name": "get_heat"}}
    calls = answer(rig, **{**CALLS, "tool_choice": named, "parallel_tool_calls": False})["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_heat"]
    assert "tool_calls" not in answer(rig, **{**CALLS, "tool_choice": "none", "max_tokens": 8})["message"]
    assert post(rig, **{**CALLS, "tools": []}).status_code == 400
    assert post(rig, **{**CALLS, "tool_choice": "get_else"}).status_code == 400


def test_9_a_schema_is_held_or_refused_with_its_keyword(rig: Rig) -> None:
    """llama.cpp#19051, llama.cpp#26930, llama.cpp#27580."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    refused = post(rig, messages=HELLO, response_format=form)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "response_format"
    assert "#/properties/a/uniqueItems" in error["message"]
    odd = function("odd", "x")
    odd["function"]["parameters"]["properties"]["unit"] = {"type": "string", "pattern": "^(?=a)b"}
    choice = answer(rig, **{**CALLS, "tools": [odd, *TOOLS], "parallel_tool_calls": False})
    # A call of the odd one may be any object, which a random model may write until the context is full.
    assert choice["finish_reason"] in ("tool_calls", "length")


def test_9_a_schema_is_held_behind_reasoning(tmp_path: Path) -> None:
    """vllm#44012."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["red", "green"]}}}
    with running(write_tiny_gguf(tmp_path / "tiny.gguf", REASONING), n_ctx=2048) as rig:
        until(lambda: rig.house.models.loaded)
        llm = rig.house.models.loaded[0].llm.llm
        begin_with(llm, llm.chat_tokens(HELLO), "hm\n</think>\n\n")
        body: dict[str, Any] = {"messages": HELLO, "response_format": form}
        message = answer(rig, **body)["message"]
        asked = chunks(rig, **body, stream_options={"include_usage": True})
        usages = [post(rig, **body).json()["usage"], asked[-1]["usage"]]
        deltas = [c["choices"][0]["delta"] for c in chunks(rig, messages=HELLO, response_format=form)]
    assert message["reasoning_content"].strip() == "hm"
    assert {usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages} == {
        len(message["reasoning_content"].encode())  # tokens are bytes
    }
    assert json.loads(message["content"]) in ("red", "green")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


def test_10_a_client_that_waits_hears_something(path: Path) -> None:
    """llama.cpp#24013, llama.cpp#25241, vllm#47647, ds4#222."""
    go_on = threading.Event()
    with running(path, ping_every=0.02, grace=0.0) as rig:
        until(lambda: rig.house.models.loaded)
        engine = rig.house.models.loaded[0].llm.llm.engine
        held = threading.Thread(target=lambda: engine.between_steps(lambda: go_on.wait(60)))
        held.start()
        try:
            body = {"messages": HELLO, "max_tokens": 3, "stream": True}
            with httpx2.stream("POST", rig.url + "/v1/chat/completions", json=body, timeout=60) as stream:
                lines = stream.iter_lines()
                assert stream.status_code == 200
                assert next(lines).startswith(":")
                go_on.set()
                assert [line for line in lines if line.startswith("data: ")][-1] == "data: [DONE]"
        finally:
            go_on.set()
            held.join()
        client = openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0)
        messages: Any = HELLO
        pieces = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3, stream=True)
        assert len(list(pieces)) > 1


def test_10_generation_ends_with_its_client(rig: Rig) -> None:
    """llama.cpp#24496, ik_llama#1020, vllm#54947."""
    body = {"messages": HELLO, "max_tokens": 1500, "logit_bias": {"256": -100}, "stream": True}
    with httpx2.stream("POST", rig.url + "/v1/chat/completions", json=body, timeout=60) as stream:
        next(stream.iter_lines())
    (served,) = rig.house.models.loaded
    until(lambda: not rig.house.busy)
    assert served.n_users == 0
    served.llm.llm.engine.check()  # after the step under way
    assert served.llm.llm.engine.load().n_running == 0
