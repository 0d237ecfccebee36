"""Tools: the template shows them, or a system text describes them."""

from __future__ import annotations

import json
from typing import Any

import chat_cases as cases
import pytest

from pyllm.chat import ChatTemplate, caps
from pyllm.errors import TemplateError

HELLO = [{"role": "user", "content": "Hello"}]
NAMED = [{"name": "weather", "parameters": {"type": "object", "properties": {}}}]
BODY = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LISTED = "{% for t in tools %}{{ t.function.name }};{% endfor %}"


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source})


@pytest.mark.parametrize(
    "source",
    [
        BODY,
        cases.SMOLLM2,
        cases.PHI3,
        "{% if tools %}{% endif %}" + BODY,
        "{% if tools %}{{ tools|length }}{% endif %}" + BODY,
    ],
)
@pytest.mark.parametrize("tools", [cases.TOOLS, NAMED, [{"type": "code_interpreter"}]])
def test_tools_that_the_template_does_not_show_are_described(source: str, tools: list[dict[str, Any]]) -> None:
    model = template(source)
    assert not model.takes_tools
    system = {"role": "system", "content": "Be brief."}
    text = model.render([system, *HELLO], tools=tools)
    assert text.index("Be brief.") < text.index("# Tools") < text.index("<tool_call>") < text.index("Hello")
    for tool in tools:
        assert json.dumps(tool.get("function", tool), ensure_ascii=False) in text
    assert "# Tools" in model.render(HELLO, tools=tools)
    assert model.render(HELLO) == model.render(HELLO, tools=[]) == model.render(HELLO, tools=None)


def test_calls_and_results_are_in_the_form_that_is_described() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": "I look.", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c", "content": "wet"},
        {"role": "tool", "tool_call_id": "c", "content": "cold"},
    ]
    text = template(BODY).render(messages, tools=cases.TOOLS)
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    results = "<tool_response>\nwet\n</tool_response>\n<tool_response>\ncold\n</tool_response>\n"
    assert text.endswith(f"user: Hello\nassistant: I look.\n{written}{written}user: {results}")


def test_a_message_that_names_the_tool_does_not_hide_that_it_is_not_shown() -> None:
    text = template(BODY).render([{"role": "user", "content": "What is the weather?"}], tools=cases.TOOLS)
    assert "# Tools" in text


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools %}" + LISTED + "{% endif %}" + BODY,
        "{% if messages[0].role == 'system' and tools %}" + LISTED + "{% endif %}" + BODY,
        "{% for m in messages %}{% if loop.last and m.role == 'user' and tools %}"
        + LISTED
        + "{% endif %}{% endfor %}"
        + BODY,
        "{% if messages|length > 2 and tools %}" + LISTED + "{% endif %}" + BODY,
        "{% if messages[0].content is string %}{{ raise_exception('parts!') }}{% endif %}" + LISTED,
        "{% if tools %}{{ raise_exception('one tool at a time, please') }}{% endif %}" + BODY,
        "{{ raise_exception('no') }}",
        "{{ messages[0].special.field }}",
    ],
)
def test_templates_with_a_place_for_tools_are_known(source: str) -> None:
    assert template(source).takes_tools


def test_what_a_template_says_of_tools_is_said() -> None:
    source = "{% if tools %}{{ raise_exception('one tool at a time, please') }}{% endif %}" + BODY
    with pytest.raises(TemplateError, match="one tool at a time"):
        template(source).render(HELLO, tools=cases.TOOLS)


def test_tools_that_are_seen_are_no_error_whatever_the_trial_said() -> None:
    source = "{% if mode == 'agent' %}" + LISTED + "{% endif %}" + BODY
    assert not template(source).takes_tools
    assert template(source).render(HELLO, tools=cases.TOOLS, mode="agent") == "weather;user: Hello\n"


def test_tools_go_to_the_variable_that_the_template_reads_them_from() -> None:
    source = "{% if xml_tools %}{{ xml_tools|tojson }}{% endif %}{% if python_tools %}py{% endif %}" + BODY
    text = template(source).render(HELLO, tools=cases.TOOLS)
    assert text == template(source).render(HELLO, xml_tools=cases.TOOLS)
    assert text.startswith('[{"type": "function"')


def test_tools_are_described_though_the_history_names_them_all() -> None:
    call = {"function": {"name": "weather", "arguments": {}}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "wet"}]
    assert "# Tools" in template(BODY).render(messages, tools=cases.TOOLS, mode="chat")


def test_a_template_that_shows_calls_but_no_tools_has_them_described_in_its_own_form() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls %}CALL {{ c.function.name }} "
        "{{ c.function.arguments | tojson }}{% endfor %}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    call = {"function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "wet"}]
    text = template(source).render(messages, tools=cases.TOOLS)
    assert text.startswith("<system># Tools\n")
    assert '\nCALL NAME {"ARGUMENT": "VALUE"}\n' in text
    assert text.endswith('<user>Hello</><assistant>CALL weather {"city": "Bonn"}</><tool>wet</><assistant>')


def test_a_template_without_tools_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "_Probe", lambda *a: pytest.fail("tried"))
    assert template(BODY + "{# new #}").render(HELLO) == "user: Hello\n"


def test_tools_without_descriptions_get_empty_ones_where_the_template_asks_for_them() -> None:
    source = "{% for t in tools %}{{ t.function.name + t.function.description }};{% endfor %}" + BODY
    assert template(source).render(HELLO, tools=NAMED) == "weather;user: Hello\n"


def test_a_template_that_shows_neither_messages_nor_tools_is_an_error() -> None:
    with pytest.raises(TemplateError, match="no place for tools, nor for a text"):
        template("hello").render(HELLO, tools=cases.TOOLS)


def test_tools_choose_the_template_for_them() -> None:
    model = ChatTemplate({"default": BODY, "tool_use": "{{ tools|length }} tools", "rag": "{% broken"})
    assert model.problems == ()
    assert model.takes_tools
    assert model.render(HELLO) == "user: Hello\n"
    assert model.render(HELLO, tools=cases.TOOLS) == "1 tools"
