"""A model's chat template: messages to the text, or the tokens, that the model was trained to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllm.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

    from pyllm.tokenizers import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Noncharacters of Unicode: one that no text of the chat holds marks control tokens that came with a message.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ChatTemplate:
    """A jinja2 template with the tokenizer that it was written for. Safe to use from several threads.

    `sources` maps names of variants to templates; "default" is what is rendered, "tool_use" where there are tools.
    Templates run in a sandbox with bounded time and size (`pyllm.chat.sandbox`).

    Raises TemplateError where a template does not parse.
    """

    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer | None = None) -> None:
        from pyllm.chat import sandbox

        self.sources = dict(sources)
        self._tokenizer = tokenizer
        self._compiled: dict[str, jinja2.Template] = {
            name: sandbox.compile_template(source)
            for name, source in self.sources.items()
            if name in ("default", "tool_use")
        }
        if "default" not in self._compiled:
            raise TemplateError("The model has named chat templates but no default one.")
        self._tokens = {} if tokenizer is None else _special_tokens(tokenizer)

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt as text.

        `messages` are {"role": …, "content": …} and whatever else the template knows. `tools` are functions as JSON
        schemas. `variables` reach the template as they are ("enable_thinking"). With `add_generation_prompt` the text
        ends where the assistant begins to answer.

        Raises TemplateError with the reason where the template refuses its input or fails.
        """
        from pyllm.chat import sandbox

        template = self._compiled["default"]
        if tools:
            template = self._compiled.get("tool_use", template)
        return sandbox.render(
            template,
            {
                **self._tokens,
                **variables,
                "messages": _checked(messages),
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def encode(
        self,
        messages: Iterable[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        special_in_messages: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids. BOS stands at the beginning once, if the model wants it, whoever wrote it.

        Control tokens are those that the template itself writes. Where a message holds the text of one ("<|im_end|>"),
        it is read as plain text, so that what a user or a tool says cannot pose as another role: each such text in
        the messages and tools is marked before rendering and the mark removed before tokenizing. Without such text
        the ids are those of the rendered text. What cannot be held: a template that builds a control token out of
        parts of a message, and user-defined tokens ("<tool_call>" in some vocabularies), which are text to a model.
        `special_in_messages` lets control tokens in messages be control tokens, as llama.cpp does.

        Raises TemplateError as `render`, or where there is no tokenizer.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise TemplateError("This chat template has no tokenizer; render() gives its text.")
        messages = _checked(messages)
        mark = ""
        if not special_in_messages:
            mark = _free_mark([messages, tools, variables])
            texts = sorted((t for t in tokenizer.vocab.special_ids if t), key=len, reverse=True)
            messages, tools = _marked(messages, texts, mark), _marked(tools, texts, mark)
        text = self.render(messages, add_generation_prompt, tools, **variables)
        return encode_prompt(tokenizer, text, mark)


def encode_prompt(tokenizer: Tokenizer, text: str, mark: str = "") -> list[int]:
    """Token ids of a rendered prompt: control tokens parsed, BOS first, once, if the model wants it, and no EOS.

    `mark`, a character, is removed from the plain text between control tokens.
    """
    pieces = tokenizer.partition(text, parse_special=True)
    if mark:
        pieces = [p.replace(mark, "") if isinstance(p, str) else p for p in pieces]
    if tokenizer.add_bos and tokenizer.bos_id is not None and pieces[:1] != [tokenizer.bos_id]:
        pieces.insert(0, tokenizer.bos_id)
    return tokenizer.encode_pieces(pieces)


def _checked(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TemplateError("A message must be a dictionary with a 'role' and a 'content'.")
        checked.append(dict(message))
    return checked


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    vocab = tokenizer.vocab
    roles = {"bos_token": vocab.bos_id, "eos_token": vocab.eos_id, "unk_token": vocab.unk_id, "pad_token": vocab.pad_id}
    # A missing one stays undefined: templates ask for that.
    return {name: vocab.texts[i] for name, i in roles.items() if i is not None}


def _free_mark(values: Any) -> str:
    """A character that occurs nowhere in the texts of `values`."""
    texts = list(_texts(values))
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    raise TemplateError("The messages hold every one of Unicode's noncharacters; they are no text.")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _marked(value: Any, specials: list[str], mark: str) -> Any:
    """A copy of `value` in which the texts of control tokens are broken by `mark` after their first character."""
    if isinstance(value, str):
        for special in specials:
            if special in value:
                value = value.replace(special, special[0] + mark + special[1:])
        return value
    if isinstance(value, Mapping):
        return {key: _marked(entry, specials, mark) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(entry, specials, mark) for entry in value]
    return value
