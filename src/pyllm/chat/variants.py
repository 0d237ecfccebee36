"""One of a model's chat templates, parsed, and whether it has a place for tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyllm.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

_MARK = "pyllmprobe"
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _MARK,
        "description": _MARK,
        "parameters": {
            "type": "object",
            "properties": {_MARK: {"type": "string", "description": _MARK}},
            "required": [_MARK],
        },
    },
}
_USER = {"role": "user", "content": "Hello"}
_PROBES: tuple[list[dict[str, Any]], ...] = (
    [_USER],
    [{"role": "system", "content": "Hello"}, _USER],
    [_USER, {"role": "assistant", "content": "Hello"}, _USER],
    [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
)
"""Conversations for probing: a template with a place for tools accepts one of them and shows the tools."""


class Variant:
    """A template by its name. `error`: why it does not parse; rendering then raises it.

    `tokens` are the texts of tokens that templates know by name ("bos_token").
    """

    def __init__(self, name: str, source: str, tokens: Mapping[str, str]) -> None:
        from pyllm.chat import sandbox

        self.name = name
        self._source = source
        self._tokens = tokens
        self.error: TemplateError | None = None
        self._template: jinja2.Template | None = None
        try:
            self._template = sandbox.compile_template(source)
        except TemplateError as error:
            what = "the chat template" if name == "default" else f"the chat template {name!r}"
            self.error = TemplateError(str(error).replace("the chat template", what, 1))

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which the template may change. Raises TemplateError."""
        from pyllm.chat import sandbox

        if self._template is None:
            raise TemplateError(str(self.error))
        return sandbox.render(self._template, {**self._tokens, **variables})

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template's output shows a tool; probed once, on short conversations.

        A template that refuses all of them, with and without tools, is assumed to have a place for tools, and so is the
        variant for tools.
        """
        if self.name == "tool_use":
            return True
        rendered = False
        for messages in _PROBES:
            try:
                text = self._probe(messages, [_TOOL])
            except TemplateError:
                # Refused because of the tool: the template knows tools, and its own message says what it wants.
                if self._accepts(messages):
                    return True
                continue
            rendered = True
            if _MARK in text:
                return True
        return not rendered

    @property
    def other_tool_variables(self) -> list[str]:
        """Variables of the template whose names suggest tools ("xml_tools")."""
        from pyllm.chat import sandbox

        return sorted(v for v in sandbox.variables_of(self._source) if v.endswith("_tools"))

    def _accepts(self, messages: list[dict[str, Any]]) -> bool:
        try:
            self._probe(messages, None)
        except TemplateError:
            return False
        return True

    def _probe(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        from pyllm.chat.plain import plain

        return self.render({"messages": plain(messages), "tools": plain(tools), "add_generation_prompt": True})


def names_of(tools: Sequence[Any]) -> list[str]:
    """Names of tools, in OpenAI's form ({"function": {"name": …}}) or alone ({"name": …})."""
    inner = [t.get("function", t) if isinstance(t, Mapping) else None for t in tools]
    return [t["name"] for t in inner if isinstance(t, Mapping) and isinstance(t.get("name"), str)]
