"""The border before a chat's last turn: on the templates of models, against their prompts' text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pyllm
from pyllm import gguf
from pyllm.chat import CHATML as TEMPLATE
from pyllm.chat import ChatTemplate
from pyllm.chat.border import n_before_last_turn
from pyllm.tokenizers import Tokenizer, from_gguf
from tiny_gguf import write_tiny_gguf

CONTROL = 3
# Control tokens as the models' tokenizer_config.json files have them.
CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
GEMMA = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
MISTRAL = ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]"]
MISTRAL += ["[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]

SYSTEM = {"role": "system", "content": "Be brief, and say nothing twice."}
HISTORY = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {"role": "assistant", "content": "It rains."},
]
SAID = "And what of Rome?"
LAST = {"role": "user", "content": SAID}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}},
    },
}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "abcDEF123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "abcDEF123", "name": "weather", "content": "sun"}


def tokenizer(shared_data: Path, control: Sequence[str]) -> Tokenizer:
    with gguf.open_gguf(shared_data / "vocabs" / "ggml-vocab-gpt-2.gguf") as file:
        metadata = dict(file.metadata)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *control]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *(CONTROL for _ in control)]
    metadata["tokenizer.ggml.bos_token_id"] = len(metadata["tokenizer.ggml.tokens"]) - len(control)
    return from_gguf(metadata)


def model(shared_data: Path, name: str, control: Sequence[str]) -> ChatTemplate:
    source = (shared_data / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate({"default": source}, tokenizer(shared_data, control))


MODELS = {
    "Qwen-Qwen2.5-7B-Instruct": (CHATML, "<|im_start|>"),
    "Qwen-Qwen3-0.6B": (CHATML, "<|im_start|>"),
    "meta-llama-Llama-3.1-8B-Instruct": (LLAMA, "<|end_header_id|>"),
    "mistralai-Mistral-Nemo-Instruct-2407": (MISTRAL, "[INST]"),
    "Mistral-Small-3.2-24B-Instruct-2506": (MISTRAL, "[INST]"),
    "google-gemma-2-2b-it": (GEMMA, "<start_of_turn>"),
}
"""Control tokens, and the one before a text of the user."""


@pytest.mark.parametrize("chat", ["plain", "system", "tools", "a call answered", "parts"])
@pytest.mark.parametrize("name", MODELS)
def test_the_border_is_the_last_control_token_before_the_text(shared_data: Path, name: str, chat: str) -> None:
    control, opening = MODELS[name]
    template = model(shared_data, name, control)
    last: dict[str, Any] = {**LAST, "content": [{"type": "text", "text": SAID}]} if chat == "parts" else LAST
    messages = [*([] if chat == "plain" else [SYSTEM]), *HISTORY, last]
    messages += [CALL, RESULT] if "call" in chat else []
    tokens = template.encode(messages, tools=[TOOL] if "call" in chat or chat == "tools" else None)
    words = template.tokenizer
    assert words is not None
    text = words.decode(tokens, skip_special=False)
    n = n_before_last_turn(words, tokens, messages)
    assert n is not None
    before = words.decode(tokens[:n], skip_special=False)
    assert "It rains." in before
    assert before == text[: text.rindex(opening, 0, text.index(SAID))]


@pytest.mark.parametrize(
    ("said", "later"),
    [("", []), ("  ", []), (SAID, [{"role": "assistant", "content": f"You ask: {SAID}"}, {**RESULT, "content": SAID}])],
)
def test_no_border_where_the_text_is_not_to_be_found(shared_data: Path, said: str, later: list[dict[str, Any]]) -> None:
    words = tokenizer(shared_data, CHATML)
    messages = [*HISTORY, {"role": "user", "content": said}, *later]
    tokens = ChatTemplate({"default": TEMPLATE}, words).encode(messages)
    assert n_before_last_turn(words, tokens, messages) is None
    assert n_before_last_turn(words, tokens, [SYSTEM]) is None


def test_no_border_without_control_tokens(shared_data: Path) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    for control in ([], ["<bos>"]):
        words = tokenizer(shared_data, control)
        messages = [*HISTORY, LAST]
        tokens = ChatTemplate({"default": source}, words).encode(messages)
        assert n_before_last_turn(words, tokens, messages) is None


def test_a_short_text_is_not_taken_for_a_part_of_a_word(shared_data: Path) -> None:
    words = tokenizer(shared_data, CHATML)
    template = ChatTemplate({"default": TEMPLATE}, words)
    for said in ("a", "t", "assist"):
        for before in ([], HISTORY, [*HISTORY, {"role": "user", "content": said}, HISTORY[1]]):
            messages = [*before, {"role": "user", "content": said}]
            tokens = template.encode(messages)
            history = template.encode(before, add_generation_prompt=False) if before else []
            assert n_before_last_turn(words, tokens, messages) == (len(history) or None)


TINY = """\
{% for m in messages %}<eos>{{ m.role }}:{{ m.content }}{% endfor %}<eos>assistant:"""


def test_the_next_turn_of_a_chat_finds_all_before_the_border(tmp_path: Path) -> None:
    """Whole pages of 32 tokens are shared."""
    messages: list[dict[str, Any]] = [SYSTEM]
    borders, cached = [], []
    with pyllm.load(write_tiny_gguf(tmp_path / "tiny.gguf", TINY), backend="reference") as llm:
        for i in range(3):
            before = "".join(f"<eos>{m['role']}:{m['content']}" for m in messages)
            messages.append({"role": "user", "content": f"This is the question number {i} of several."})
            call = llm.chatting(messages, None, None, None, {})
            # Bytes are this model's tokens, and BOS comes first.
            assert call.n_prefix == 1 + len(before.replace("<eos>", "\0"))
            borders.append(call.n_prefix)
            cached.append(llm.chat(messages, max_tokens=4).usage.n_cached)
            messages.append({"role": "assistant", "content": "An answer that the model is said to have given."})
    assert cached[0] == 0
    assert all(n >= border // 32 * 32 > 0 for n, border in zip(cached[1:], borders, strict=False))
