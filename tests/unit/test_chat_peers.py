"""Chat templates of 25 models against what transformers renders (tests/golden/make_chat.py wrote it)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import chat_conversations as conversations
import pytest

from pyllm.chat import ChatTemplate
from pyllm.errors import TemplateError

GOLDEN: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "chat.json").read_text("utf-8")
)
WITHOUT_TOOLS = {
    "HuggingFaceTB-SmolLM3-3B.jinja",
    "deepseek-ai-DeepSeek-V3.1.jinja",
    "google-gemma-2-2b-it.jinja",
    "microsoft-Phi-3.5-mini-instruct.jinja",
}
"""Templates whose source does not read `tools`."""
MORE = {
    ("Kimi-K2-Instruct.jinja", "SecurityError"): "append",
    ("deepseek-ai-DeepSeek-V3.2.jinja", "TemplateRuntimeError"): "from_json",
}
"""What templates do that transformers has not and llama.cpp has."""


def source_of(shared_data: Path, name: str) -> str:
    return (shared_data / "templates" / name).read_text("utf-8")


def rendered(template: ChatTemplate, case: str) -> str:
    given = conversations.variables(case)
    messages, tools, generate = given.pop("messages"), given.pop("tools"), given.pop("add_generation_prompt")
    return template.render(messages, generate, tools, **given)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_conversation_is_rendered_as_by_transformers(shared_data: Path, name: str) -> None:
    template = ChatTemplate({"default": source_of(shared_data, name)})
    for case, wanted in GOLDEN[name].items():
        refused = not all(c in "0123456789abcdef" for c in wanted)
        if conversations.CASES[case][1] and name in WITHOUT_TOOLS:
            with pytest.raises(TemplateError, match=None if refused else "no place for tools"):
                rendered(template, case)
        elif (name, wanted) in MORE:
            assert MORE[name, wanted] in source_of(shared_data, name)
            assert "Köln" in rendered(template, case)
        elif refused:
            with pytest.raises(TemplateError):
                rendered(template, case)
        else:
            assert hashlib.sha256(rendered(template, case).encode()).hexdigest()[:16] == wanted, case


def test_templates_without_a_place_for_tools_are_those_that_do_not_read_them(shared_data: Path) -> None:
    takes: dict[str, Any] = {n: ChatTemplate({"default": source_of(shared_data, n)}).takes_tools for n in GOLDEN}
    assert {name for name, value in takes.items() if not value} == WITHOUT_TOOLS
