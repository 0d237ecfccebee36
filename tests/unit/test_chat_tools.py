"""Tools: they reach the model, or it is said that they cannot."""

from __future__ import annotations

from typing import Any

import chat_cases as cases
import pytest

from pyllm.chat import ChatTemplate, variants
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
def test_tools_that_would_not_reach_the_model_are_an_error(source: str, tools: list[dict[str, Any]]) -> None:
    model = template(source)
    assert not model.takes_tools
    with pytest.raises(TemplateError, match="no place for tools"):
        model.render(HELLO, tools=tools)
    assert model.render(HELLO) == model.render(HELLO, tools=[]) == model.render(HELLO, tools=None)


def test_a_message_that_names_the_tool_does_not_hide_that() -> None:
    with pytest.raises(TemplateError, match="no place for tools"):
        template(BODY).render([{"role": "user", "content": "What is the weather?"}], tools=cases.TOOLS)


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


def test_variables_of_its_own_for_tools_are_named() -> None:
    source = "{% if xml_tools %}{{ xml_tools|tojson }}{% endif %}{% if python_tools %}{% endif %}" + BODY
    with pytest.raises(TemplateError, match=r"variables of its own: python_tools, xml_tools$"):
        template(source).render(HELLO, tools=cases.TOOLS)
    assert "weather" in template(source).render(HELLO, xml_tools=cases.TOOLS)


def test_a_template_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    probe = variants.Variant._probe
    monkeypatch.setattr(variants.Variant, "_probe", lambda self, *a: tried.append(1) or probe(self, *a))
    model = template(BODY)
    for _ in range(3):
        with pytest.raises(TemplateError, match="no place for tools"):
            model.render(HELLO, tools=cases.TOOLS)
    n = len(tried)
    assert n > 0
    model.render(HELLO)
    with pytest.raises(TemplateError):
        model.render(HELLO, tools=cases.TOOLS)
    assert len(tried) == n


def test_a_template_without_tools_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants.Variant, "_probe", lambda *a: pytest.fail("tried"))
    assert template(BODY).render(HELLO) == "user: Hello\n"


def test_tools_choose_the_template_for_them() -> None:
    model = ChatTemplate({"default": BODY, "tool_use": "{{ tools|length }} tools", "rag": "{% broken"})
    assert model.problems == ()
    assert model.takes_tools
    assert model.render(HELLO) == "user: Hello\n"
    assert model.render(HELLO, tools=cases.TOOLS) == "1 tools"
