"""One of a model's chat templates, parsed, and what it can show."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyllm.chat.caps import TemplateCaps, probed
from pyllm.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

    from pyllm.chat.dialects.written import Write


_NO_TOKENS = {"bos_token": "", "eos_token": ""}
"""For templates that write these tokens, while they are tried without a tokenizer."""


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
    def caps(self) -> TemplateCaps:
        """What the template can show; tried once for each source. One called after its use has a place for tools.

        Raises TemplateError where the template does not parse.
        """
        if self._template is None:
            raise TemplateError(str(self.error))
        key = hashlib.sha256(repr((self._source, sorted(self._tokens.items()))).encode()).digest()
        caps = probed(
            lambda given: self.render({**_NO_TOKENS, **self._tokens, **given}), key, self.other_tool_variables
        )
        return replace(caps, tools=True) if self.name == "tool_use" and not caps.known else caps

    @cached_property
    def write_calls(self) -> Write | None:
        """How the model writes calls, where only a hand-written dialect knows it."""
        from pyllm.chat.dialects.written import writer_of

        return writer_of(self._source)

    @property
    def takes_tools(self) -> bool:
        """Whether a tool can be seen in what the template writes."""
        return self.error is None and (self.name == "tool_use" or self.caps.tools)

    @property
    def other_tool_variables(self) -> list[str]:
        """Variables that the template reads and whose names speak of tools ("xml_tools"), those for Python last."""
        from pyllm.chat import sandbox

        names = {name for name in sandbox.variables_of(self._source) if name.endswith("_tools")}
        return sorted(names, key=lambda name: ("python" in name, name))


def names_of(tools: Sequence[Any]) -> list[str]:
    """Names of tools, in OpenAI's form ({"function": {"name": …}}) or alone ({"name": …})."""
    inner = [t.get("function", t) if isinstance(t, Mapping) else None for t in tools]
    return [t["name"] for t in inner if isinstance(t, Mapping) and isinstance(t.get("name"), str)]
