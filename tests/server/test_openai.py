"""OpenAI's client against a live server: chats, tools, log probabilities, forms, embeddings, models, errors."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import numpy as np
import openai
import pydantic
import pytest
from chat_tools import TOOLS

import pyllm
from server_rig import Rig, running
from tiny_gguf import write_tiny_gguf

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: Any = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def rig(path: Path) -> Iterator[Rig]:
    with running(path, aliases=(("chat", "tiny"),), n_ctx=2048) as rig:
        yield rig


@pytest.fixture(scope="module")
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_is_the_librarys(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    expected = llm.chat(HELLO, temperature=0, max_tokens=12)
    answer = client.chat.completions.create(messages=HELLO, max_completion_tokens=12, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.finish_reason, choice.logprobs, choice.message.tool_calls) == ("length", None, None)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.n_prompt
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == expected.usage.n_prompt + 12


def test_several_answers_with_seeds_are_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "n": 3, "seed": 5, "temperature": 1.5}
    whole = [choice.message.content for choice in client.chat.completions.create(**options).choices]
    assert len(set(whole)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == whole


def test_async_streams_run_beside_each_other(rig: Rig, llm: pyllm.LLM) -> None:
    async def read(client: openai.AsyncOpenAI, text: str) -> str:
        messages: Any = [{"role": "user", "content": text}]
        stream = await client.chat.completions.create(messages=messages, max_tokens=10, stream=True, **GREEDY)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key="none") as client:
            return list(await asyncio.gather(*(read(client, text) for text in "abcdef")))

    assert asyncio.run(read_all()) == [llm.chat(text, temperature=0, max_tokens=10).text for text in "abcdef"]


def test_log_probabilities_are_the_librarys(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    expected = llm.chat(HELLO, temperature=0, max_tokens=6, logprobs=3).logprobs
    assert expected is not None
    options: Any = {**GREEDY, "messages": HELLO, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**options).choices[0].logprobs
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**options, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert whole is not None
    for found in (whole.content, streamed):
        assert found is not None
        assert [token.bytes for token in found] == [list(token.bytes) for token in expected]
        assert np.allclose([token.logprob for token in found], [token.logprob for token in expected], atol=1e-4)
        assert [len(token.top_logprobs) for token in found] == [3] * 6
        assert found[0].top_logprobs[0].bytes == found[0].bytes


def test_options_reach_the_sampler_by_their_names(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    def answer(**options: Any) -> str | None:
        made = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, **options)
        return made.choices[0].message.content

    assert answer(logit_bias={"65": 100}, temperature=0) == "AAAAAA"
    assert answer(seed=1, extra_body={"top_k": 1}) == llm.chat(HELLO, temperature=0, max_tokens=6).text
    assert answer(extra_body={"regex": "ab{4}c"}) == "abbbbc"
    assert answer(extra_body={"guided_choice": ["only"]}) == "only"
    assert answer(extra_body={"structured_outputs": {"regex": "xyz"}}) == "xyz"
    text = llm.chat(HELLO, temperature=0, max_tokens=6).text
    assert answer(temperature=0, stop=[text[2:4]]) == text.partition(text[2:4])[0]
    repeated = llm.chat(HELLO, temperature=0, max_tokens=6, repeat_penalty=1.7).text
    assert answer(temperature=0, extra_body={"repetition_penalty": 1.7}) == repeated


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("top_p", 0.1),
        ("frequency_penalty", 1.5),
        ("presence_penalty", 1.5),
        ("min_p", 0.5),
        ("typical_p", 0.2),
        ("mirostat", 2),
        ("samplers", ["top_k", "temperature"]),
    ],
)
def test_an_option_is_the_librarys(client: openai.OpenAI, llm: pyllm.LLM, option: str, value: Any) -> None:
    shared: Any = {"seed": 7, "temperature": 1.2, "max_tokens": 12}
    expected = llm.chat(HELLO, **shared, **{option: value}).text
    assert expected != llm.chat(HELLO, **shared).text
    body = {"messages": HELLO, **shared, option: value}
    answer: Any = client.post("/chat/completions", body=body, cast_to=dict[str, Any])
    assert answer["choices"][0]["message"]["content"] == expected


ONE = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
ODD = {**ONE, "propertyNames": {"minLength": 1}}


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "one", "strict": True, "schema": ONE}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "odd", "strict": False, "schema": ODD}}},
        {"response_format": {"type": "json_object", "schema": ONE}},
        {"guided_json": ONE},
        {"structured_outputs": {"json": ONE}},
        {"guided_grammar": 'root ::= "{\\"a\\": 1}"'},
    ],
)
def test_a_form_is_held(client: openai.OpenAI, form: Any) -> None:
    body = {"messages": HELLO, "temperature": 0, **form}
    answer: Any = client.post("/chat/completions", body=body, cast_to=dict[str, Any])
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": 1}


def test_json_objects_begin_as_such_and_text_is_free(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    options: Any = {**GREEDY, "messages": HELLO, "max_tokens": 3}
    said = client.chat.completions.create(response_format={"type": "json_object"}, **options).choices[0].message.content
    assert said is not None
    assert said.startswith("{")
    free = client.chat.completions.create(response_format={"type": "text"}, **options).choices[0].message.content
    assert free == llm.chat(HELLO, temperature=0, max_tokens=3).text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_heat"}}])
def test_a_tool_choice_is_held(client: openai.OpenAI, choice: Any) -> None:
    options: Any = {**GREEDY, "messages": HELLO, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**options)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name in ("get_time", "get_heat")
    assert choice == "required" or call.function.name == "get_heat"
    values = {"get_time": ("utc", "local"), "get_heat": ("kelvin", "celsius")}
    assert json.loads(call.function.arguments)["unit"] in values[call.function.name]


def test_allowed_tools_are_the_only_ones(client: openai.OpenAI) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_heat"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    tools: Any = TOOLS
    answer = client.chat.completions.create(messages=HELLO, tools=tools, tool_choice=choice, **GREEDY)
    assert {name for name, _ in calls_of(answer.choices[0].message)} == {"get_heat"}


def test_the_streaming_helper_assembles_the_same_calls(client: openai.OpenAI) -> None:
    options: Any = {**GREEDY, "messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
    options |= {"parallel_tool_calls": False}
    whole = client.chat.completions.create(**options).choices[0].message
    with client.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert final.finish_reason == "tool_calls"
    assert calls_of(final.message) == calls_of(whole) != []


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]


def test_functions_of_2023_are_answered_in_their_form(client: openai.OpenAI) -> None:
    functions: Any = [tool["function"] for tool in TOOLS]
    options: Any = {**GREEDY, "messages": HELLO, "functions": functions, "function_call": {"name": "get_time"}}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "get_time"
    assert choice.message.tool_calls is None
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**options, stream=True):
        if call := chunk.choices[0].delta.function_call:
            name += call.name or ""
            arguments += call.arguments or ""
    assert name == "get_time"
    assert json.loads(arguments) == json.loads(choice.message.function_call.arguments)


class Answer(pydantic.BaseModel):
    color: Literal["red", "green"]
    count: Literal[1, 2, 3]


def test_parse_gives_an_object_of_a_class(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(messages=HELLO, response_format=Answer, **GREEDY)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(messages=HELLO, response_format=Answer, **GREEDY) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_a_strict_tool_is_parsed(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Answer)
    options: Any = {**GREEDY, "messages": HELLO, "tool_choice": "required", "parallel_tool_calls": False}
    parsed = client.chat.completions.parse(tools=[tool], **options)
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Answer)


@pytest.mark.parametrize("strict", [False, True])
def test_with_tools_and_a_form_an_answer_is_either(client: openai.OpenAI, strict: bool) -> None:
    tools: Any = [{**tool, "function": {**tool["function"], "strict": strict}} for tool in TOOLS]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": Answer.model_json_schema()}}
    options: Any = {**GREEDY, "messages": HELLO, "tools": tools, "parallel_tool_calls": False, "response_format": form}

    def choice(first: str, **more: Any) -> Any:
        """The answer of a model that prefers this character."""
        return client.chat.completions.create(logit_bias={str(ord(first)): 100}, **options, **more).choices[0]

    call = choice("<")
    assert call.finish_reason == "tool_calls"
    assert len(call.message.tool_calls) == 1
    Answer.model_validate_json(choice("{").message.content)
    assert choice("{", tool_choice="required").finish_reason == "tool_calls"
    Answer.model_validate_json(choice("<", tool_choice="none").message.content)


def test_an_effort_and_variables_reach_the_template(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}|{{ reasoning_effort }}|{{ enable_thinking }}|{{ style }}|"
    file = write_tiny_gguf(tmp_path / "tiny.gguf", template)
    with running(file, n_ctx=512) as rig, openai.OpenAI(base_url=rig.url + "/v1", api_key="none") as client:

        def n_prompt(**options: Any) -> int:
            """Tokens are bytes, and BOS."""
            usage = client.chat.completions.create(messages=HELLO, max_tokens=1, **options, **GREEDY).usage
            assert usage is not None
            return usage.prompt_tokens - 1

        assert n_prompt() == len("Hello||||")
        assert n_prompt(reasoning_effort="none") == len("Hello||False||")
        assert n_prompt(reasoning_effort="high") == len("Hello|high|True||")
        assert n_prompt(reasoning_effort="xhigh") == len("Hello|high|True||")
        given = {"chat_template_kwargs": {"style": "dry", "enable_thinking": False}}
        assert n_prompt(reasoning_effort="low", extra_body=given) == len("Hello|low|False|dry|")


def test_a_last_message_of_the_assistant_is_continued(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    messages: Any = [*HELLO, {"role": "assistant", "content": "Well"}]
    expected = llm.chat(messages, continue_final_message=True, temperature=0, max_tokens=6).text
    answer = client.chat.completions.create(messages=messages, max_tokens=6, **GREEDY)
    assert answer.choices[0].message.content == expected
    another: Any = {"continue_final_message": False}
    answer = client.chat.completions.create(messages=messages, max_tokens=6, extra_body=another, **GREEDY)
    assert answer.choices[0].message.content == llm.chat(messages, temperature=0, max_tokens=6).text


# --- completions


def test_completions_of_several_prompts_are_in_order(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    ids = llm.tokenizer.encode("ab")
    prompts: Any
    for prompts in (["ab", "cd"], [ids, llm.tokenizer.encode("cd")], "ab", ids):
        texts = prompts if prompts in (["ab", "cd"],) or isinstance(prompts[0], list) else [prompts]
        expected = [llm.complete(text, temperature=0, max_tokens=5).text for text in texts]
        options: Any = {**GREEDY, "prompt": prompts, "max_tokens": 5}
        answer = client.completions.create(**options)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == list(range(len(texts)))
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5 * len(texts)
        streamed = [""] * len(texts)
        for chunk in client.completions.create(**options, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == expected


def test_log_probabilities_of_an_echo_are_the_prompts(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    ids = llm.tokenizer.encode("abc")
    assert ids[0] == llm.tokenizer.bos_id
    rows = llm.logits(ids).astype(np.float64)
    truth = [row[i] - np.log(np.exp(row).sum()) for row, i in zip(rows, ids[1:], strict=False)]
    for prompt, first in (("abc", []), (ids, [None])):
        options: Any = {**GREEDY, "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 2}
        choice = client.completions.create(**options).choices[0]
        assert choice.text.startswith("abc")
        found = choice.logprobs
        assert found is not None
        assert found.token_logprobs is not None
        assert list(found.token_logprobs[: len(first)]) == first
        assert np.allclose(found.token_logprobs[len(first) : -1], truth, atol=1e-4)
        assert found.tokens is not None
        assert "".join(found.tokens).endswith(choice.text)
        assert found.top_logprobs is not None
        assert all(top is None or found.tokens[i] in top for i, top in enumerate(found.top_logprobs))


def test_the_best_of_several_is_returned(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    expected = llm.complete("ab", seed=3, temperature=2, max_tokens=6, best_of=4, n=2)
    options: Any = {"model": "tiny", "prompt": "ab", "seed": 3, "temperature": 2, "max_tokens": 6}
    answer = client.completions.create(n=2, best_of=4, **options)
    assert [choice.text for choice in answer.choices] == [one.text for one in expected.choices]


# --- embeddings, models, errors


def test_embeddings_are_the_librarys(rig: Rig, client: openai.OpenAI, llm: pyllm.LLM) -> None:
    texts = ["ab", "a longer one"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    expected = llm.embed(texts)
    inputs: Any
    for inputs in (texts, ids):
        for encoding in ({}, {"encoding_format": "float"}):  # the client's own is base64, which it decodes
            made = client.embeddings.create(model="tiny", input=inputs, **encoding)  # type: ignore[arg-type]
            assert np.allclose([one.embedding for one in made.data], expected, atol=1e-5)
            assert made.usage.prompt_tokens == sum(map(len, ids))
    assert np.allclose(client.embeddings.create(model="tiny", input=ids[0]).data[0].embedding, expected[0], atol=1e-5)
    raw = httpx2.post(rig.url + "/embeddings", json={"input": "ab", "encoding_format": "base64"}, timeout=60).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    assert np.allclose(decoded, expected[0], atol=1e-5)


def test_fewer_dimensions_have_length_one_again(client: openai.OpenAI, llm: pyllm.LLM) -> None:
    (made,) = client.embeddings.create(model="tiny", input="ab", dimensions=8).data
    first = llm.embed("ab")[:8]
    assert np.allclose(made.embedding, first / math.sqrt(float(first @ first)), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions must be from 1 to 32"):
        client.embeddings.create(model="tiny", input="ab", dimensions=33)


def test_models_are_listed_by_all_their_names(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "chat"]
    assert client.models.retrieve("chat").object == "model"
    with pytest.raises(openai.NotFoundError, match="there are: tiny, chat"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"messages": "hello"}, "messages", "expected `array`"),
        ({"messages": []}, "messages", "one message at least"),
        ({"n": 99}, "n", "from 1 to 16"),
        ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "the vocabulary has 0 to 257"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": "nope"}, "tool_choice", "get_time, get_heat"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"chat_template_kwargs": {"messages": []}}, "variables", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "reads text alone"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, body: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/chat/completions", body={"messages": HELLO, **body}, cast_to=object)
    error: Any = caught.value.body
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_what_is_too_long_is_named_and_what_is_missing(client: openai.OpenAI) -> None:
    long = "ab " * 1000
    for path, field, value in (
        ("/chat/completions", "messages", [{"role": "user", "content": long}]),
        ("/completions", "prompt", long),
        ("/embeddings", "input", long),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(path, body={field: value}, cast_to=object)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", field)
        with pytest.raises(openai.BadRequestError) as caught:
            client.post(path, body={field: 5}, cast_to=object)
        assert caught.value.param == field
    with pytest.raises(openai.BadRequestError, match="fill in a middle") as caught:
        client.completions.create(model="tiny", prompt="a", suffix="b")
    assert caught.value.param == "suffix"


def test_unknown_fields_and_nulls_are_ignored(client: openai.OpenAI) -> None:
    ignored: Any = {"verbosity": "low", "store": True, "metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k"}
    nulls: Any = {"tools": None, "stop": None, "temperature": None, "response_format": None, "stream_options": None}
    client.chat.completions.create(messages=HELLO, max_tokens=1, model="", extra_body=ignored | nulls)


def test_paths_without_v1_are_the_same(rig: Rig) -> None:
    for path in ("/chat/completions", "/v1/chat/completions"):
        answer = httpx2.post(rig.url + path, json={"messages": HELLO, "max_tokens": 1}, timeout=60)
        assert answer.status_code == 200
    assert httpx2.get(rig.url + "/models").json() == httpx2.get(rig.url + "/v1/models").json()
