"""Calls of a model, made ready: prompts to tokens, settings above the model's own, what an answer is held to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllm.chat.border import n_before_last_turn
from pyllm.chat.dialects import dialect_of
from pyllm.chat.messages import Messages, Tools
from pyllm.config import GenerateSettings
from pyllm.errors import RequestError
from pyllm.llm.calls import Call
from pyllm.llm.constraining import of_chat, of_settings
from pyllm.llm.history import Truncate, room_for_answer, shortened
from pyllm.llm.prompts import Prompt

if TYPE_CHECKING:
    from pyllm.chat import ChatTemplate
    from pyllm.llm.model import LLM

_OF_TEMPLATES = ("self", "messages", "tools", "continue_final_message", "special_in_messages")
"""Names that cannot be variables of a chat template, because they are arguments of its rendering."""
_END_OF_PROMPT = 256
"""So many tokens at a prompt's end tell what it says of the answer already, such as an opened reasoning."""


def prompt_tokens(llm: LLM, prompt: Prompt, parse_special: bool) -> list[int]:
    if isinstance(prompt, str):
        return llm.tokenizer.encode(prompt, add_special=True, parse_special=parse_special)
    return list(prompt)


def with_recipe(llm: LLM, messages: Messages) -> list[Any]:
    """Checked messages, below those of the model's recipe."""
    assert isinstance(messages, list)
    return messages if llm.recipe is None else llm.recipe.messages(messages)


def chat_tokens(
    llm: LLM,
    messages: Messages,
    tools: Tools | None,
    variables: Mapping[str, Any] | None,
    continue_final_message: bool,
    chat_template: ChatTemplate | None,
) -> list[int]:
    template = chat_template or llm.chat_template
    if template is None:
        raise RequestError(f"{llm.path.name} has no chat template; use complete()")
    if not messages:
        raise RequestError("messages must hold one message at least, which is to be answered")
    if taken := [name for name in variables or () if name in _OF_TEMPLATES]:
        raise RequestError(f"variables must not hold {taken[0]!r}, which is an argument of its own")
    return template.encode(messages, tools=tools, continue_final_message=continue_final_message, **(variables or {}))


def completion(llm: LLM, caller: str, prompt: Prompt, parse_special: bool, options: Mapping[str, Any]) -> Call:
    """A call that continues a text. `caller`: the method that errors name."""
    settings = _settings(llm, caller, 256, options)
    tokens = prompt_tokens(llm, prompt, parse_special)
    tokenizer = llm.tokenizer if llm.has_tokenizer else None
    echo = ""
    if settings.echo:
        echo = prompt if isinstance(prompt, str) else tokenizer.decode(tokens) if tokenizer is not None else ""
    if settings.tool_choice != "auto":
        raise RequestError("tool_choice is for chats; complete() knows no tools")
    held = of_settings(settings, tokenizer, continues=bool(prompt))
    continues = bool(prompt) and llm.architecture.program.encoder is None
    return Call(tokens, settings, tokenizer, llm.vocabulary, continues=continues, echo=echo, held=held)


def chat(
    llm: LLM,
    caller: str,
    messages: Messages,
    tools: Tools | None,
    variables: Mapping[str, Any] | None,
    truncate: Truncate | None,
    options: Mapping[str, Any],
    continue_final_message: bool = False,
    chat_template: ChatTemplate | None = None,
) -> Call:
    """A call that answers messages. `caller`: the method that errors name."""
    settings = _settings(llm, caller, None, options)
    messages = with_recipe(llm, messages)
    template = chat_template or llm.chat_template
    encode = partial(
        chat_tokens,
        llm,
        tools=tools,
        variables=variables,
        continue_final_message=continue_final_message,
        chat_template=template,
    )
    n_dropped = 0
    if truncate is None:
        tokens = encode(messages)
    else:
        room = room_for_answer(llm.engine.n_ctx, settings.max_tokens)
        tokens, n_dropped = shortened(messages, llm.engine.n_ctx - room, encode)
    assert template is not None
    dialect = dialect_of(template)
    end = llm.tokenizer.decode(tokens[-_END_OF_PROMPT:], skip_special=False)
    return Call(
        tokens,
        settings,
        llm.tokenizer,
        llm.vocabulary,
        continues=continue_final_message,
        n_dropped=n_dropped,
        n_prefix=n_before_last_turn(llm.tokenizer, tokens, messages),
        held=of_chat(
            settings,
            tools,
            llm.tokenizer,
            dialect.spec,
            continues=continue_final_message,
            reasoning_end=dialect.open_reasoning(end) if settings.is_held or tools else None,
        ),
        parser=partial(dialect.parser, None if settings.tool_choice == "none" else tools, prompt=end),
    )


def _settings(llm: LLM, caller: str, max_tokens: int | None, options: Mapping[str, Any]) -> GenerateSettings:
    """A call's settings, above those of the model."""
    own = options if llm.recipe is None else llm.recipe.options(options)
    return GenerateSettings.of(caller, max_tokens, own, llm.sampling)
