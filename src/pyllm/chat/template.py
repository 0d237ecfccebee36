"""A model's chat template: messages to the text, or the tokens, that the model was trained to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllm.arguments import checked, refusal
from pyllm.chat.caps import TemplateCaps
from pyllm.chat.messages import Messages, Tools
from pyllm.chat.plain import mapped, plain, texts_in, variables_of
from pyllm.chat.prompt import Prompt
from pyllm.chat.variants import Variant
from pyllm.chat.wire import unified, unified_tools
from pyllm.errors import TemplateError

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Noncharacters of Unicode: one that no text of the chat holds marks control tokens that came with a message.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_HOLDING = (list, tuple, Mapping)


class ChatTemplate:
    """A jinja2 template with its tokenizer. Safe to use from several threads.

    `sources` maps names of variants to templates; "default" is the usual one, "tool_use" is for tools. Templates run in
    a sandbox with bounded time and size (`pyllm.chat.sandbox`). A caller's values are copied: no template changes them,
    and nothing is kept between renderings.

    Raises TemplateError where there is no default template, or it does not parse. Another variant that does not parse
    is listed in `problems`, and the default one still works.
    """

    @checked
    def __init__(self, sources: Mapping[str, str], tokenizer: Tokenizer | None = None) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "vocab"):
            raise refusal("tokenizer", tokenizer, "a Tokenizer, such as load_tokenizer() gives")
        if "default" not in sources:
            raise TemplateError("the model has named chat templates but no default one")
        self.sources = dict(sources)
        self._tokenizer = tokenizer
        tokens = {} if tokenizer is None else _special_tokens(tokenizer)
        self._variants = {
            name: Variant(name, self.sources[name], tokens) for name in ("default", "tool_use") if name in self.sources
        }
        if (error := self._variants["default"].error) is not None:
            raise TemplateError(str(error))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the template was written for, if it is here."""
        return self._tokenizer

    @property
    def problems(self) -> tuple[str, ...]:
        """Errors of variants that do not parse, one text each."""
        return tuple(str(v.error) for v in self._variants.values() if v.error is not None)

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools; where not, a system text of pyllm's own describes them."""
        return self._variants.get("tool_use", self._variants["default"]).takes_tools

    def caps(self, tools: bool = False) -> TemplateCaps:
        """What the template that is rendered, with tools or without, can show. Raises TemplateError."""
        return self._variant(tools).caps

    @checked
    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt as text.

        `messages` are those of OpenAI's interface, and whatever else the template knows; a text alone is one message of
        the user. `tools` are functions as JSON schemas. `variables` reach the template as they are
        ("enable_thinking"). With `add_generation_prompt` the text ends where the assistant begins to answer, with
        `continue_final_message` where the last message, the assistant's own, ends: it is to be continued.

        What the template has no place for is said in a way that it has (`pyllm.chat.fitting`). Raises TemplateError
        with the reason where the template refuses its input or fails, or leaves out a message all the same;
        RequestError where a message holds what a text model cannot read.
        """
        assert isinstance(messages, list)
        return self._prompt(messages, tools, add_generation_prompt, continue_final_message, variables).text()

    def render_unfitted(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """What the template itself makes of messages in its own form, whatever it leaves out of them.

        Raises TemplateError where it refuses them.
        """
        own = [plain(message) for message in messages]
        variant = self._variant(bool(tools))
        return Prompt(variant, own, list(map(plain, tools or ())), variables, add_generation_prompt, False).unfitted()

    def _variant(self, tools: bool) -> Variant:
        default = self._variants["default"]
        return self._variants.get("tool_use", default) if tools else default

    def _prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
        mark: str = "",
    ) -> Prompt:
        """What is to be rendered, of copies of what the caller gave; `mark` breaks control tokens in it."""
        variant = self._variant(bool(tools))
        calls = any(message.get("tool_calls") or message.get("function_call") for message in messages)
        as_text = calls and variant.caps.arguments == "text"
        own: Any = unified([plain(message) for message in messages], as_text)
        own_tools: Any = unified_tools([plain(tool) for tool in tools or ()])
        if mark:
            own, own_tools = self._marked(own, mark), self._marked(own_tools, mark)
            variables = {k: self._marked(v, mark) if isinstance(v, _HOLDING) else v for k, v in variables.items()}
        return Prompt(variant, own, own_tools, variables_of(variables), add_generation_prompt, continue_final_message)

    @checked
    def encode(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        tools: Tools | None = None,
        *,
        continue_final_message: bool = False,
        special_in_messages: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids. BOS comes first, once, if the model wants it, whether the template or the tokenizer
        adds it.

        Only the template itself writes control tokens. The text of one in a message ("<|im_end|>") is read as plain
        text, so that a user's or tool's words cannot pose as another role: each such text in the messages, the tools,
        and lists and dictionaries among the variables (documents) is marked before rendering and the mark removed
        before tokenizing. Without such text the ids are those of the rendered text. Not prevented: a template that
        builds a control token from parts of a message, control tokens of one character, and user-defined tokens
        ("<tool_call>" in some vocabularies), which are text to a model. `special_in_messages` allows control tokens in
        messages, as llama.cpp does.

        Raises TemplateError as `render`, or where there is no tokenizer.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise TemplateError("this chat template has no tokenizer; render() gives its text")
        mark = "" if special_in_messages else _free_mark([[plain(message) for message in messages], tools, variables])
        assert isinstance(messages, list)
        text = self._prompt(messages, tools, add_generation_prompt, continue_final_message, variables, mark).text()
        return encode_prompt(tokenizer, text, mark)

    def _marked(self, value: Any, mark: str) -> Any:
        """A copy of `value` with `mark` after the first character of each control token's text."""
        tokenizer = self._tokenizer
        return value if tokenizer is None else mapped(value, lambda text: tokenizer.broken(text, mark))


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


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    vocab = tokenizer.vocab
    roles = {"bos_token": vocab.bos_id, "eos_token": vocab.eos_id, "unk_token": vocab.unk_id, "pad_token": vocab.pad_id}
    # A missing one stays undefined: templates ask for that.
    return {name: vocab.texts[i] for name, i in roles.items() if i is not None}


def _free_mark(values: Any) -> str:
    """A character that is not in the texts of `values`."""
    texts = list(texts_in(values))
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    raise TemplateError("the messages hold every one of Unicode's noncharacters; they are no text")
