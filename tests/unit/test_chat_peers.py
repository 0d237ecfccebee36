"""Chat templates of 25 models against what transformers renders (tests/golden/make_chat.py wrote it)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import chat_conversations as conversations
import pytest

from pyllm.chat import ChatTemplate

GOLDEN: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "chat.json").read_text("utf-8")
)
CONTINUED: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "chat_continued.json").read_text("utf-8")
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
CALLS = {case for case, (messages, tools, _) in conversations.CASES.items() if any("tool_calls" in m for m in messages)}
TOOLS = {case for case, (_, tools, _) in conversations.CASES.items() if tools}
BESIDE = {"two results", "calls, turns"}
"""Text in a message that has calls, and two calls in one."""
THOUGHT = {"reasoning last"}
REASONED = {("openai-gpt-oss-120b.jinja", "I look.")}
"""Text beside a call that is reasoning to the template, which leaves it out once the answer is there."""
OTHERWISE = {
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja": BESIDE,
    "HuggingFaceTB-SmolLM3-3B.jinja": CALLS | TOOLS | THOUGHT,
    "Kimi-K2-Instruct.jinja": THOUGHT,
    "LFM2.5-Instruct.jinja": CALLS | THOUGHT,
    "Mistral-Small-3.2-24B-Instruct-2506.jinja": BESIDE | THOUGHT,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": BESIDE,
    "Qwen-Qwen2.5-7B-Instruct.jinja": THOUGHT,
    "Qwen3-Coder.jinja": THOUGHT,
    "deepseek-ai-DeepSeek-V3.1.jinja": TOOLS,
    "google-gemma-2-2b-it.jinja": {"tools"} | THOUGHT,
    "ibm-granite-granite-4.0.jinja": THOUGHT,
    "meetkai-functionary-medium-v3.2.jinja": THOUGHT,
    "meta-llama-Llama-3.1-8B-Instruct.jinja": THOUGHT,
    "meta-llama-Llama-3.2-3B-Instruct.jinja": THOUGHT,
    "microsoft-Phi-3.5-mini-instruct.jinja": CALLS | TOOLS | THOUGHT,
    "mistralai-Ministral-3-14B-Reasoning-2512.jinja": {"reasoning", "to think, tools"} | THOUGHT,
    "mistralai-Mistral-Nemo-Instruct-2407.jinja": {"call", "result", "to think, tools"} | BESIDE | THOUGHT,
    "openai-gpt-oss-120b.jinja": BESIDE,
}
"""What transformers would leave out of the prompt in silence."""


def source_of(shared_data: Path, name: str) -> str:
    return (shared_data / "templates" / name).read_text("utf-8")


def rendered(template: ChatTemplate, case: str) -> str:
    given = conversations.variables(case)
    messages, tools, generate = given.pop("messages"), given.pop("tools"), given.pop("add_generation_prompt")
    return template.render(messages, generate, tools, **given)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_conversation_is_rendered_as_by_transformers(shared_data: Path, name: str) -> None:
    """Also one that must be made fit: it is that of the case that says the same in the template's own form."""
    template = ChatTemplate({"default": source_of(shared_data, name)})
    for case, wanted in GOLDEN[name].items():
        digests = {wanted, GOLDEN[name].get(conversations.FITTED.get(case, ""), wanted)}
        rendering = {digest for digest in digests if all(sign in "0123456789abcdef" for sign in digest)}
        if (name, wanted) in MORE:
            assert MORE[name, wanted] in source_of(shared_data, name)
        if not conversations.CASES[case][0] and not rendering:
            continue
        text = rendered(template, case)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if case in OTHERWISE.get(name, ()):
            assert digest not in rendering, case
        elif rendering:
            assert digest in rendering, case
        for words in conversations.words(case):
            if (name, words) not in REASONED:
                assert words in text or words.replace('"', '\\"') in text, case


@pytest.mark.parametrize("name", CONTINUED)
def test_a_begun_answer_is_continued_as_by_transformers(shared_data: Path, name: str) -> None:
    template = ChatTemplate({"default": source_of(shared_data, name)})
    day = {"strftime_now": conversations.DAY.strftime}
    for begun, wanted in CONTINUED[name].items():
        text = template.render(conversations.begun(begun), continue_final_message=True, **day, **conversations.TOKENS)
        if all(sign in "0123456789abcdef" for sign in wanted):
            assert hashlib.sha256(text.encode()).hexdigest()[:16] == wanted, begun
        else:
            assert text.rstrip().endswith(begun.strip()), begun


def test_templates_without_a_place_for_tools_are_those_that_do_not_read_them(shared_data: Path) -> None:
    takes: dict[str, Any] = {n: ChatTemplate({"default": source_of(shared_data, n)}).takes_tools for n in GOLDEN}
    assert {name for name, value in takes.items() if not value} == WITHOUT_TOOLS
