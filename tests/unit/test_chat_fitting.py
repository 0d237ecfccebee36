"""Any chat that clients send, in any template: each of its texts is in the prompt, once and in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import chat_needles as needles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import gguf, tokenizers
from pyllm.chat import ChatTemplate, budget, caps, default_template, prompt
from pyllm.chat.caps import in_order
from pyllm.chat.dialects import Dialect
from pyllm.chat.events import ToolCallEnd
from pyllm.errors import PyllmError, RequestError, TemplateError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NO_REASONING = {"deepseek-ai-DeepSeek-V3.1.jinja", "deepseek-ai-DeepSeek-V3.2.jinja"}
"""They leave out what was reasoned unless thinking is on, or in all cases."""
USER = {"role": "user", "content": "ask"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "result"}


CALLS_FIRST = {"google-gemma-4-31B-it.jinja"}
"""They write a message's calls before its text."""


def check(template: ChatTemplate, name: str, case: str) -> None:
    messages, tools, options, words = needles.CASES[case]
    if "reasoning" in case and name in NO_REASONING:
        words = [word for word in words if word != "thought-one"]
    text = template.render(messages, tools=tools, **options, **TOKENS)
    if case == "text beside a call" and name in CALLS_FIRST:
        assert text.count("I-look") == 1
        words = [word for word in words if word != "I-look"]
    assert in_order(text, words), text
    assert not re.search(r"""'type'|"type": "text"|None|\\\"""", text), text
    if tools:
        assert all(tool["function"]["name"] in text for tool in needles.TOOLS), text
    if case == "system not first":
        assert text.count("system-one") == 1, text
    if case == "two calls":
        assert text.index("Bonn-am-Rhein") < text.index("Köln") < text.index("result-two"), text
    if options:
        assert text.endswith(words[-1]), text


@pytest.mark.parametrize("name", [*needles.TEMPLATES, "default"])
def test_templates_of_many_habits(name: str) -> None:
    template = ChatTemplate({"default": needles.TEMPLATES[name]}) if name != "default" else default_template()
    for case in needles.CASES:
        check(template, name, case)


def test_templates_of_models(shared_data: Path) -> None:
    paths = sorted((shared_data / "templates").glob("*.jinja"))
    assert len(paths) >= 25
    for path in paths:
        template = ChatTemplate({"default": path.read_text("utf-8")})
        for case in needles.CASES:
            check(template, path.name, case)


def rendered(name: str, messages: Any, **more: Any) -> str:
    return ChatTemplate({"default": needles.TEMPLATES[name]}).render(messages, **more)


def test_messages_of_a_system_become_one_where_the_template_has_one_place() -> None:
    system = [{"role": "system", "content": "one"}, {"role": "developer", "content": [{"type": "text", "text": "two"}]}]
    assert rendered("system first", [*system, USER]) == "<system>one\n\ntwo<user>ask"
    assert rendered("system first", [USER, *system]) == "<system>one\n\ntwo<user>ask"
    assert rendered("no system", [*system, USER]) == "<user>one\n\ntwo\n\nask"
    assert rendered("texts joined", [*system, USER]) == "<system>one<system>two<user>ask"
    assert rendered("no system", system) == "<user>one\n\ntwo"


def test_a_developer_is_one_where_the_template_knows_the_role_and_a_system_elsewhere() -> None:
    messages = [{"role": "developer", "content": "rules"}, USER]
    assert rendered("developer", messages) == "<rules>rules<user>ask"
    assert rendered("texts joined", messages) == "<system>rules<user>ask"


def test_ids_have_the_form_that_the_template_insists_on() -> None:
    calls = [{**CALL["tool_calls"][0], "id": id_} for id_ in ("call_1", "abcDEF123")]
    messages = [USER, {"role": "assistant", "tool_calls": calls}, RESULT, {**RESULT, "tool_call_id": "abcDEF123"}]
    text = rendered("ids of nine", messages)
    ids = re.findall(r"[\[(](\w+) ", text)
    assert [len(id_) for id_ in ids] == [9] * 4
    assert ids[:2] == ids[2:]
    assert ids[1] == "abcDEF123"
    assert ids[0] != "call_1"
    text = rendered("name in the id", messages)
    assert "[functions.forecast:0 {}][functions.forecast:1 {}](functions.forecast:0)result" in text


def test_results_without_an_id_answer_the_calls_in_order() -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b")]
    results = [{"role": "tool", "content": "first"}, {"role": "tool", "content": "second"}]
    text = rendered("one call", [USER, {"role": "assistant", "tool_calls": calls}, *results])
    assert text == "<user>ask<assistant>[a {}]<tool>first<assistant>[b {}]<tool>second"


def test_older_forms_of_calls_are_calls() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "forecast", "arguments": '{"a": 1}'}}
    messages = [USER, old, {"role": "function", "name": "forecast", "content": "result"}]
    assert rendered("thinking", messages) == '<user>ask<assistant>[forecast {"a": 1}]<tool>result'


def test_arguments_that_are_no_json_are_not_lost() -> None:
    broken = {**CALL, "tool_calls": [{"id": "x", "function": {"name": "forecast", "arguments": '{"place": "Bo'}}]}
    assert "forecast" in rendered("texts joined", [USER, broken, RESULT])
    assert '{"place": "Bo' in rendered("texts joined", [USER, broken, RESULT])


def test_reasoning_of_earlier_turns_is_left_out_where_it_would_be_text() -> None:
    thought = {"role": "assistant", "content": "answer", "reasoning_content": "thought"}
    assert rendered("texts joined", [USER, thought, USER]) == "<user>ask<assistant>answer<user>ask"
    last = rendered("texts joined", [USER, thought], add_generation_prompt=False)
    assert last == "<user>ask<assistant><think>\nthought\n</think>\n\nanswer"
    parts = [{"type": "text", "text": "answer"}, {"type": "text", "text": "more"}]
    last = rendered("texts joined", [USER, {**thought, "content": parts}], add_generation_prompt=False)
    assert last == "<user>ask<assistant><think>\nthought\n</think>\n\nanswer\nmore"


def test_a_chat_that_needs_no_fitting_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "_Probe", lambda *_: pytest.fail("probed"))
    source = needles.TEMPLATES["texts alone"] + "{# not probed #}"
    messages = [{"role": "system", "content": " be brief "}, USER, {"role": "assistant", "content": ""}, USER]
    text = ChatTemplate({"default": source}).render(messages)
    assert text == "<system> be brief <user>ask<assistant><user>ask<ai>"


def test_a_template_is_tried_once_for_all_that_have_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    source = needles.TEMPLATES["texts alone"] + "{# probed once #}"
    found = ChatTemplate({"default": source}).caps()
    monkeypatch.setattr(caps, "_Probe", lambda *_: pytest.fail("probed"))
    assert ChatTemplate({"default": source}).caps() is found


def test_trying_a_template_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    n: list[int] = []

    def show(variables: Any) -> str:
        n.append(1)
        raise TemplateError("no")

    assert not caps.probed(show, "refuses all").known
    assert len(n) <= 40
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.1)
    slow = ChatTemplate({"default": "{% for i in range(1000000) %}{{ range(1000000) | list | length }}{% endfor %}"})
    with pytest.raises(TemplateError, match="did not finish"):
        slow.render([CALL, RESULT])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "data:,"}}, r"messages\[0\] has a part of type 'image_url' at 1"),
        ({"type": "input_audio", "input_audio": {}}, "'input_audio'"),
        ({"type": "text"}, "'text' at 1"),
        ({"type": 5}, "'5'"),
    ],
)
@pytest.mark.parametrize("name", ["texts alone", "parts or text"])
def test_what_a_text_model_cannot_read_is_an_error(name: str, part: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        rendered(name, [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])


@pytest.mark.parametrize("call", ["forecast", {}, {"function": {}}, {"type": "custom", "custom": {"name": "x"}}])
def test_calls_without_a_name_are_an_error(call: Any) -> None:
    with pytest.raises(RequestError, match=r"messages\[1\]\.tool_calls\[0\] must be"):
        rendered("texts alone", [USER, {"role": "assistant", "tool_calls": [call]}])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x", "text", "function", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "function", "name", "arguments", "id"]), inner, max_size=3)
    ),
    max_leaves=5,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "developer"])},
    optional=dict.fromkeys(["content", "tool_calls", "tool_call_id", "name", "reasoning", "function_call"], VALUES),
)


@given(st.lists(MESSAGES, max_size=3), st.lists(st.dictionaries(st.sampled_from(["type", "name", "function"]), VALUES)))
@settings(deadline=None, max_examples=150)
def test_odd_messages_are_rendered_or_refused(messages: Any, tools: Any) -> None:
    for template in ODD:
        for continues in (False, True):
            with suppress(PyllmError):
                template.render(messages, tools=tools, continue_final_message=continues)


ODD = [
    ChatTemplate({"default": needles.TEMPLATES[name]}) for name in ("no system", "ids of nine", "one call", "thinking")
]


def test_a_message_that_the_template_leaves_out_is_an_error() -> None:
    with pytest.raises(TemplateError, match="leaves out messages with the role 'critic'"):
        rendered("developer", [USER, {"role": "critic", "content": "bad"}])


NATIVE = [
    # LFM2's documentation writes calls so, Granite 3.3's its list
    (
        "<|im_start|>List of tools: [{{ tools | tojson }}]",
        '<|tool_call_start|>[forecast(place="Bo\\"nn", days=[1, {"a": None}], wet=True), clock()]<|tool_call_end|>',
    ),
    (
        "respond only with <|tool_call|> followed by a JSON list of tools used {{ tools | tojson }}",
        '<|tool_call|>[{"name": "forecast", "arguments": {"place": "Bo\\"nn", "days": [1, {"a": null}], "wet": true}},'
        '{"name": "clock", "arguments": {}}]',
    ),
]


@pytest.mark.parametrize(("head", "written"), NATIVE)
def test_calls_are_in_the_models_form_where_its_template_shows_tools_alone(head: str, written: str) -> None:
    """And the dialect that reads the model's answers reads them back."""
    body = needles.TEMPLATES["texts alone"].replace("<ai>", "<assistant>")
    template = ChatTemplate({"default": head + body})
    arguments = {"place": 'Bo"nn', "days": [1, {"a": None}], "wet": True}
    calls = [{"function": {"name": "forecast", "arguments": arguments}}, {"function": {"name": "clock"}}]
    tools = [{"name": "forecast"}, {"name": "clock"}]
    text = template.render([USER, {"role": "assistant", "tool_calls": calls}, RESULT], tools=tools)
    assert text.endswith(f"<user>ask<assistant>{written}<tool>result<assistant>")
    parser = Dialect(template).parser([{"type": "function", "function": tool} for tool in tools], prompt="")
    events = [*parser.push(written), *parser.finish()]
    read = [(e.call.name, e.call.arguments) for e in events if isinstance(e, ToolCallEnd) and e.call is not None]
    assert read == [("forecast", arguments), ("clock", {})]


# --- an answer that is begun


def test_a_begun_answer_is_continued_as_transformers_does() -> None:
    messages = [USER, {"role": "assistant", "content": "Sure, "}]
    assert rendered("texts alone", messages, continue_final_message=True) == "<user>ask<assistant>Sure, "
    # a template that strips blanks: those at the end are not the prompt's
    assert rendered("no system", messages, continue_final_message=True) == "<user>ask<assistant>Sure,"
    messages[-1] = {"role": "assistant", "content": "", "thinking": "Let me"}
    assert rendered("thinking", messages, continue_final_message=True) == "<user>ask<assistant>((Let me"
    assert rendered("texts alone", messages, continue_final_message=True).endswith("<think>\nLet me")


def test_a_message_may_hold_the_mark_of_its_own_end() -> None:
    messages = [{"role": "user", "content": prompt._END}, {"role": "assistant", "content": "x"}]
    text = rendered("texts alone", messages, continue_final_message=True)
    assert text == f"<user>{prompt._END}<assistant>x"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER], "last message with the role 'assistant'"),
        ([], "last message"),
        ([USER, CALL], "has tool calls"),
        ([USER, {"role": "assistant", "content": {"a": 1}}], "is none"),
        ([USER, {"role": "assistant", "content": [1]}], "is none"),
    ],
)
def test_only_an_answer_can_be_continued(messages: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        rendered("thinking", messages, continue_final_message=True)


def test_an_answer_that_the_template_leaves_out_cannot_be_continued() -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="does not show the end of the last message"):
        ChatTemplate({"default": source}).render(
            [USER, {"role": "assistant", "content": "x"}], continue_final_message=True
        )


# --- control tokens


def test_control_tokens_in_what_is_made_fit_are_text(model_path: Callable[[str], Path]) -> None:
    with gguf.open_gguf(model_path("smollm2")) as file:
        tokenizer = tokenizers.from_gguf(file.metadata)
    end = "<|im_end|>"
    template = ChatTemplate({"default": needles.TEMPLATES["no system"]}, tokenizer)
    call = {"function": {"name": "forecast", "arguments": '{"place": "\\u003c|im_end|\\u003e"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": end}]},
        USER,
        {"role": "assistant", "tool_calls": [call], "reasoning_content": end},
        {"role": "tool", "content": [{"type": "text", "text": end}, {"type": "text", "text": end}]},
    ]
    tools = [{"name": "forecast", "description": end}]
    ids = template.encode(messages, tools=tools)
    assert tokenizer.token_id(end) not in ids
    assert tokenizer.decode(ids, skip_special=False).count(end) == 6
    assert tokenizer.token_id(end) in template.encode(messages, tools=tools, special_in_messages=True)
