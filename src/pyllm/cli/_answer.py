"""An answer as the command line shows it: text, reasoning and tool calls as they come."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCallEnd
from pyllm.cli import _live, _streams
from pyllm.cli._output import neutralize, write

if TYPE_CHECKING:
    from pyllm.chat import ChatTemplate
    from pyllm.llm.events import Event

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Printer:
    """Prints events: text as it is, or as Markdown on a terminal, reasoning in a paragraph of its own (dim on a
    terminal), a tool call as JSON."""

    def __init__(self, reasoning: str | None, markdown: bool) -> None:
        """`reasoning`: "show", "hide" or "off"; None: shown on a terminal, hidden elsewhere."""
        self._on_terminal = sys.stdout.isatty()
        self._document = _live.document() if markdown else None
        self._shows = reasoning == "show" or (reasoning is None and self._on_terminal)
        self._reasons = False
        self._last = "\n"

    def show(self, event: Event) -> None:
        if isinstance(event, ReasoningDelta):
            if self._shows:
                self._begin_reasoning()
                self._write(event.text)
        elif isinstance(event, TextDelta):
            self._end_reasoning()
            if self._document is not None:
                self._document.add(neutralize(event.text))
            else:
                self._write(event.text)
        elif isinstance(event, ToolCallEnd) and event.call is not None:
            self.end()
            self._write(json.dumps(asdict(event.call), ensure_ascii=False) + "\n")
        elif self._document is not None:
            self._document.flush()

    def end(self) -> None:
        """End the line that the answer is in."""
        self._end_reasoning()
        self._end_document()
        if not self._last.endswith("\n"):
            self._write("\n")

    def interrupted(self) -> None:
        """The terminal shows ^C after the answer."""
        self._end_document()
        self._last = "^C"

    def _end_document(self) -> None:
        if self._document is not None and self._document.end():
            self._last = ""

    def _begin_reasoning(self) -> None:
        if not self._reasons:
            self.end()
            self._reasons = True
            if self._on_terminal:
                _streams.write(_DIM)

    def _end_reasoning(self) -> None:
        if self._reasons:
            self._reasons = False
            if self._on_terminal:
                _streams.write(_PLAIN)
            self._write("\n" if self._last.endswith("\n") else "\n\n")

    def _write(self, text: str) -> None:
        write(text)
        self._last = text or self._last


def variables(template: ChatTemplate, reasoning: str | None, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Variables of the template, with those that turn reasoning off where that is asked for.

    Raises click.UsageError where the template has no switch, though the model reasons.
    """
    if reasoning != "off":
        return given
    from pyllm.chat.dialects import dialect_of
    from pyllm.chat.reasoning import off

    asked = {**off(), **(given or {})}
    messages = [{"role": "user", "content": "hello"}]
    same = template.render(messages, **(given or {})) == template.render(messages, **asked)
    if same and dialect_of(template).spec.reasoning is not None:
        raise click.UsageError("the model's chat template cannot turn reasoning off; --reasoning hide leaves it out")
    return asked
