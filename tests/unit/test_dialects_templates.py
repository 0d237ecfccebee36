"""Templates of models in use: what a template writes for an answer is read back, however it arrives."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dialect_cases import TOOLS, Gathered, read

from pyllm.chat import ChatTemplate
from pyllm.chat.dialects import Dialect
from pyllm.errors import TemplateError

Call = tuple[str, dict[str, Any]]
IM = "<|im_start|>assistant\n"
IM_END = ("<|im_end|>\n",)
HERMES = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
COHERE = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
LLAMA = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Case:
    """Where an answer stands in a rendered conversation, and where the template is known to have no place for things.

    `written` is how models write a call, by their documentation, where the template shows none.
    """

    name: str
    source: str
    start: str
    ends: Sequence[str] = ("",)
    written: str = ""
    two: bool = True
    beside: bool = True
    """Whether the template writes two calls; text beside a call."""


CASES = [
    Case(
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        "derived",
        COHERE,
        (f"<|END_OF_TURN_TOKEN|>{COHERE}<|START_THINKING|><|END_THINKING|>",),
        beside=False,
    ),
    Case("GLM-4.6", "derived", "<|assistant|>"),
    Case("HuggingFaceTB-SmolLM3-3B", "fallback", IM, IM_END, HERMES),
    Case("Kimi-K2-Instruct", "hand-written", "<|im_assistant|>assistant<|im_middle|>", ("<|im_end|>",)),
    Case("LFM2.5-Instruct", "hand-written", IM, IM_END, "<|tool_call_start|>[{name}({python})]<|tool_call_end|>"),
    Case("MiniMax-M2", "derived", "]~b]ai\n", ("[e~[\n",)),
    Case("Mistral-Small-3.2-24B-Instruct-2506", "derived", "[/INST]", ("</s>",), beside=False),
    Case("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "derived", IM, IM_END),
    Case("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "derived", IM, IM_END, beside=False),
    Case("Qwen-Qwen2.5-7B-Instruct", "derived", IM, IM_END),
    Case("Qwen-Qwen3-0.6B", "derived", IM, IM_END),
    Case("Qwen3-Coder", "derived", IM, IM_END),
    Case("Qwen3.5-4B", "derived", IM, IM_END),
    Case("deepseek-ai-DeepSeek-V3.1", "derived", "<｜Assistant｜>", ("<｜end▁of▁sentence｜>",)),
    Case("deepseek-ai-DeepSeek-V3.2", "derived", "<｜Assistant｜>", ("<｜end▁of▁sentence｜>",)),
    Case("google-gemma-2-2b-it", "fallback", "<start_of_turn>model\n", ("<end_of_turn>\n",), HERMES),
    Case("google-gemma-4-31B-it", "hand-written", "<|turn>model\n", ("<turn|>\n", "<|tool_response>")),
    Case("ibm-granite-granite-4.0", "derived", "<|start_of_role|>assistant<|end_of_role|>", ("<|end_of_text|>\n",)),
    Case("meetkai-functionary-medium-v3.2", "hand-written", f"{LLAMA}>>>", ("<|eot_id|>",)),
    Case("meta-llama-Llama-3.1-8B-Instruct", "hand-written", LLAMA, ("<|eot_id|>",), two=False, beside=False),
    Case("meta-llama-Llama-3.2-3B-Instruct", "hand-written", LLAMA, ("<|eot_id|>",), two=False, beside=False),
    Case("microsoft-Phi-3.5-mini-instruct", "fallback", "<|assistant|>\n", ("<|end|>\n</s>",), HERMES),
    Case("mistralai-Ministral-3-14B-Reasoning-2512", "derived", "[/INST]", ("</s>",)),
    Case("mistralai-Mistral-Nemo-Instruct-2407", "derived", "[/INST]", ("</s>",), beside=False),
    Case("openai-gpt-oss-120b", "hand-written", "<|start|>assistant", ("<|return|>",), two=False, beside=False),
]
WITH_REASONING = {
    *("GLM-4.6", "MiniMax-M2", "Qwen-Qwen3-0.6B", "Qwen3.5-4B", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    *("mistralai-Ministral-3-14B-Reasoning-2512", "CohereForAI-c4ai-command-r7b-12-2024-tool_use"),
    *("google-gemma-4-31B-it", "openai-gpt-oss-120b"),
}
"""Templates that write the reasoning of an answer, or at least of one that calls tools."""

WEATHER: Call = ("get_weather", {"city": "Paris", "days": 3})
CITY: Call = ("get_weather", {"city": "Paris"})
SEARCH: Call = ("search_files", {"pattern": "*.py", "code": 'if a < b and "x":\n    print(1)\n'})
NESTED: Call = (
    "get_weather",
    {"options": {"a": [1, {"b": None}], "c": {"d": "</x> }{ ]"}}, "places": ["a", "b\n"], "metric": False},
)
UNICODE: Call = ("get_weather", {"city": "Zürich 東京 🙂🏽", "options": {"ключ": "é"}})
NOTHING: Call = ("search_files", {})


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def template(case: Case, shared_data: Path) -> ChatTemplate:
    source = (shared_data / "templates" / f"{case.name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate({"default": source})


@pytest.fixture(scope="module")
def dialect(template: ChatTemplate) -> Dialect:
    dialect = Dialect(template)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dialect.spec
    return dialect


def answer(case: Case, template: ChatTemplate, text: str = "", reasoning: str = "", calls: Sequence[Call] = ()) -> str:
    """What a model writes for this answer, by its template."""
    if calls and case.written:
        return "\n".join([*([text] if text else []), *(written(case.written, *call) for call in calls)])
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    if reasoning and "Ministral" in case.name:
        message["content"] = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": text}]
    elif reasoning:
        message["thinking" if "gpt-oss" in case.name else "reasoning_content"] = reasoning
    rendered = render(template, [{"role": "user", "content": "Hello"}, message])
    end = next((end for end in case.ends if rendered.endswith(end)), "")
    return rendered.removesuffix(end).rpartition("Hello")[2].partition(case.start)[2]


def render(template: ChatTemplate, messages: list[dict[str, Any]], generation: bool = False, **variables: Any) -> str:
    """Rendered with tools if the template takes them, arguments as a mapping or as text as it wants them."""
    texts = json.loads(json.dumps(messages))
    for call in [call for message in texts for call in message.get("tool_calls", ())]:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    for given in (messages, texts):
        for tools in (TOOLS, None):
            try:
                return template.render_unfitted(
                    given, generation, tools, bos_token="<s>", eos_token="</s>", **variables
                )
            except TemplateError as error:
                problem = error
    raise problem


def written(form: str, name: str, arguments: dict[str, Any]) -> str:
    python = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return form.format(name=name, arguments=json.dumps(arguments, ensure_ascii=False), python=python)


def every_way(dialect: Dialect, answer: str, **expected: Any) -> Gathered:
    """The answer in one piece, cut in two anywhere, and by characters: always the same."""
    whole = read(dialect.parser(TOOLS, prompt=""), [answer])
    for name, value in expected.items():
        assert getattr(whole, name) == value, answer
    for at in range(1, len(answer)):
        assert said(read(dialect.parser(TOOLS, prompt=""), [answer[:at], answer[at:]])) == said(whole), answer[:at]
    assert said(read(dialect.parser(TOOLS, prompt=""), list(answer))) == said(whole)
    return whole


def said(found: Gathered) -> Any:
    return found.text, found.reasoning, found.calls, found.reasons


def test_where_the_dialect_comes_from(case: Case, dialect: Dialect) -> None:
    assert dialect.spec.source == case.source


@pytest.mark.parametrize("text", ["A plain answer.", "Ünïcode 東京 🙂🏽\n\n- `{x}`\n- [y](z) <b>bold</b> a < b > c"])
def test_text(case: Case, template: ChatTemplate, dialect: Dialect, text: str) -> None:
    every_way(dialect, answer(case, template, text), text=text, reasoning="", calls=[], reasons=[])


def test_reasoning(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    thought = "Let me see.\n\nTwo paragraphs, 🙂."
    found = answer(case, template, "Done.", thought)
    if case.name in WITH_REASONING and thought not in found:
        found = answer(case, template, "", thought, [CITY])
    assert (thought in found) == (case.name in WITH_REASONING)
    if thought in found:
        called = CITY[0] in found
        every_way(dialect, found, text="" if called else "Done.", reasoning=thought, calls=[CITY] if called else [])


@pytest.mark.parametrize("call", [WEATHER, SEARCH, NESTED, UNICODE, NOTHING], ids=lambda c: ",".join(c[1]) or "none")
def test_one_call(case: Case, template: ChatTemplate, dialect: Dialect, call: Call) -> None:
    every_way(dialect, answer(case, template, calls=[call]), text="", reasoning="", calls=[call], reasons=[])


def test_two_calls(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    if not case.two:
        pytest.skip("the template writes no second call")
    found = every_way(dialect, answer(case, template, calls=[WEATHER, SEARCH]), text="", calls=[WEATHER, SEARCH])
    assert len(set(found.ids)) == 2


def test_text_before_a_call(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    if not case.beside:
        pytest.skip("the template writes no text beside a call")
    every_way(dialect, answer(case, template, "I look.", calls=[CITY]), text="I look.", calls=[CITY], reasons=[])


def test_text_that_looks_like_a_marker(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    pieces = sorted(text[:-1] for text in dialect.spec.literals if len(text) > 4)
    text = "Text " + " and ".join([*pieces, "{", "<", "[x]"]) + " as they are."
    full = answer(case, template, text)
    if text not in full:  # templates may cut what looks like reasoning
        full = text
    every_way(dialect, full, text=text, calls=[], reasons=[])


def test_a_call_that_is_cut_off(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    full = answer(case, template, calls=[WEATHER])
    starts = [full.find(text) for text in (*begins(dialect), "get_weather") if text in full]
    start = min(starts)
    for at in range(start, len(full)):
        found = read(dialect.parser(TOOLS, prompt=""), list(full[:at]), cut_off=True)
        if found.calls:
            assert found.calls == [WEATHER]
            assert json.dumps(3) in full[start:at]
        else:
            assert full[start:at].strip() in found.text
            assert full[:at].strip().endswith(found.text.strip())
            assert not found.reasons or found.reasons == ["the answer was cut off inside the call"]


def begins(dialect: Dialect) -> list[str]:
    calls = dialect.spec.calls
    return [] if calls is None else [*calls.opening[:1], *(["{"] if calls.bare else [])]


def test_an_empty_answer(case: Case, dialect: Dialect) -> None:
    found = read(dialect.parser(TOOLS), [])
    assert said(found) == ("", "", [], [])
    assert said(read(dialect.parser(TOOLS), ["", ""])) == said(found)


def test_without_tools_there_are_no_calls(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    full = answer(case, template, calls=[CITY])
    found = read(dialect.parser(None, prompt=""), list(full))
    assert not found.calls
    assert not found.reasons
    assert "Paris" in found.text


def test_the_end_of_a_prompt_says_how_the_answer_begins(case: Case, template: ChatTemplate, dialect: Dialect) -> None:
    """With a history of calls and results, and with reasoning turned on and off."""
    user = {"role": "user", "content": "Hello"}
    called = {
        "id": "abcdefgh0",
        "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
    }
    result = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefgh0", "content": "sunny"}
    histories = [[user], [user, {"role": "assistant", "content": "Hi."}, user]]
    if not case.written:
        histories.append([user, {"role": "assistant", "content": "", "tool_calls": [called]}, result])
    for history in histories:
        for thinking in (True, False):
            prompt = render(template, history, True, enable_thinking=thinking, thinking=thinking)
            parser = dialect.parser(TOOLS, prompt=prompt)
            reasoning = dialect.spec.reasoning
            if reasoning is not None and prompt.rstrip().endswith(reasoning.start):
                found = read(parser, [f"R{reasoning.end}Done."])
                assert (found.text, found.reasoning) == ("Done.", "R")
            elif dialect.spec.channels is None:
                assert said(read(parser, ["Done."])) == ("Done.", "", [], [])
