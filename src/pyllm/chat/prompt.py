"""One prompt: messages fitted to a template, rendered, and looked at: what they say must be in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyllm.chat.caps import NEEDLE, TOOL, TemplateCaps, functions_of
from pyllm.chat.fitting import fitted
from pyllm.chat.plain import plain, texts_in, variables_of
from pyllm.chat.shown import left_out
from pyllm.chat.variants import Variant, names_of
from pyllm.chat.wire import REASONING
from pyllm.errors import RequestError, TemplateError
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.chat.dialects.written import Write

_ATTEMPTS = 5
_END = "pyllmendofmessage"
_AS_GIVEN = TemplateCaps(known=False)


@dataclass(frozen=True)
class Prompt:
    """Messages and tools in one form (`pyllm.chat.wire`), to be rendered by a template."""

    variant: Variant
    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    variables: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool

    def text(self) -> str:
        """The text. Raises TemplateError where the template refuses or leaves out what the messages say."""
        from pyllm.chat.budget import new_budget

        with new_budget(shared=True):
            if self.continue_final_message:
                self._check_continues()
            text, caps = self._as_given() or self._fitting()
            return self._continued(text, caps) if self.continue_final_message else text

    def unfitted(self) -> str:
        """The text for messages that have the template's own form already; nothing is looked for in it."""
        return self._render(self.messages, self.tools, self.variant.caps)

    def _as_given(self) -> tuple[str, TemplateCaps] | None:
        """Plain messages, rendered as they are, so that a template which shows them need not be tried."""
        if self.tools or not all(_is_plain(message) for message in self.messages):
            return None
        try:
            text = self._render(self.messages, None, _AS_GIVEN)
        except TemplateError:
            return None
        return None if self._missing(self.messages, None, text, _AS_GIVEN) else (text, _AS_GIVEN)

    def _fitting(self) -> tuple[str, TemplateCaps]:
        """The text, and the caps with which the template shows all of it; what it leaves out is said otherwise."""
        caps: TemplateCaps | None = self.variant.caps
        if caps is not None and self.tools and not caps.tools and self._variables_ask_for_tools(caps):
            caps = replace(caps, tools=True)
        refusal: TemplateError | None = None
        for _ in range(_ATTEMPTS):
            if caps is None:
                break
            messages, tools = fitted(self.messages, self.tools, caps, self._write(caps))
            try:
                text = self._render(messages, tools, caps)
                missing = self._missing(messages, tools, text, caps)
            except TemplateError as error:
                refusal, caps = refusal or error, self._without_refused(caps)
                continue
            if not missing:
                return text, caps
            refusal, caps = refusal or _leaves_out(missing[0]), _without(caps, missing)
        raise refusal or TemplateError("the chat template does not show these messages")

    def _write(self, caps: TemplateCaps) -> Write | None:
        return self.variant.write_calls if caps.tools and not caps.calls else None

    def _variables_ask_for_tools(self, caps: TemplateCaps) -> bool:
        """Whether the template, which shows no tools by itself, does with the caller's variables."""
        if not self.variables or not caps.known:
            return False
        messages, _ = fitted(self.messages, None, caps)
        try:
            return NEEDLE in self._render(messages, [TOOL], caps)
        except TemplateError:
            return False

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        caps: TemplateCaps,
    ) -> str:
        given: dict[str, Any] = {"tools": None} if caps.tools_none else {}
        if caps.tools_variable == "functions":
            given |= functions_of(tools)
        elif tools:
            given[caps.tools_variable] = plain(tools)
        return self.variant.render(
            {
                **given,
                **variables_of(self.variables),
                "messages": plain(messages),
                "add_generation_prompt": self.add_generation_prompt and not self.continue_final_message,
            }
        )

    # --- what is missing

    def _missing(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        text: str,
        caps: TemplateCaps,
    ) -> list[str]:
        """Roles of messages that the text leaves out, and "tools"."""
        names = [n for n in names_of(tools or ()) if not any(n in said for said in texts_in(messages))]
        if names and not any(name in text for name in names) and (caps.known or not caps.tools):
            return ["tools"]
        if not caps.known and caps is not _AS_GIVEN:
            return []
        render: Callable[[list[dict[str, Any]]], str] = lambda changed: self._render(changed, tools, caps)  # noqa: E731
        return [message["role"] for message in left_out(messages, text, render)]

    def _without_refused(self, caps: TemplateCaps) -> TemplateCaps | None:
        """Tools with descriptions, then calls as text, where the template refused a chat that has some."""
        if not caps.known:
            return None
        if self.tools and caps.tools and caps.bare_tools:
            return replace(caps, bare_tools=False)
        has_calls = any("tool_calls" in message or message["role"] == "tool" for message in self.messages)
        return _without(caps, ["tool"]) if has_calls else None

    # --- the last message, to be continued

    def _check_continues(self) -> None:
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant":
            raise RequestError("continue_final_message needs a last message with the role 'assistant'")
        if "tool_calls" in last:
            raise RequestError("continue_final_message goes on with text; the last message has tool calls")
        parts = last["content"] if isinstance(last["content"], list) else []
        if not isinstance(last["content"], str | list) or not all(isinstance(p, dict) and "text" in p for p in parts):
            raise RequestError("continue_final_message goes on with text; the content of the last message is none")

    def _continued(self, text: str, caps: TemplateCaps) -> str:
        """The text up to the end of the last message's words. Blanks there stay if the template leaves them."""
        mark = _END
        while any(mark in said for said in texts_in([*self.messages, *self.tools])):
            mark += "x"
        messages, tools = fitted(
            [*self.messages[:-1], _with_end(self.messages[-1], mark)], self.tools, caps, self._write(caps)
        )
        before, end, _ = self._render(messages, tools, caps).partition(mark)
        if not end:
            raise TemplateError(
                "the chat template does not show the end of the last message, so it cannot be continued"
            )
        return before if text.startswith(before) else before.rstrip()


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Whether a message is one that nearly all templates show."""
    return (
        message["role"] in ("system", "user", "assistant")
        and isinstance(message["content"], str)
        and not any(name in message for name in ("tool_calls", *REASONING))
    )


def _without(caps: TemplateCaps, missing: Sequence[str]) -> TemplateCaps | None:
    """What is left of the caps where a template left these out; None where nothing else can be tried."""
    if not caps.known:
        return None
    if "tools" in missing:
        less = replace(caps, tools=False)
    elif "tool" in missing:
        less = replace(caps, calls=False, results=False)
    elif "system" in missing or "developer" in missing:
        less = replace(caps, system=False, systems=False, late_system=False, developer=False)
    else:
        less = caps
    return None if less == caps else less


def _leaves_out(what: str) -> TemplateError:
    if what == "tools":
        return TemplateError("the model's chat template has no place for tools, nor for a text that describes them")
    return TemplateError(
        f"the chat template leaves out messages with the role {what[:60]!r}; use system, user, assistant and tool"
    )


def _with_end(message: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """The assistant's message with a mark at its end; without a content it is the reasoning that goes on."""
    content = message["content"]
    if not content and (names := [name for name in REASONING if isinstance(message.get(name), str)]):
        return {**message, **{name: message[name] + mark for name in names}}
    if isinstance(content, list) and content:
        return {**message, "content": [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]}
    return {**message, "content": (content or "") + mark}
