"""Renders conversations through a chat template to see how it writes a model's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any

from pyllm.chat.template import ChatTemplate
from pyllm.errors import TemplateError
from pyllm.records import dataclass

TEXT = "Qztext"
REASON = "Qzreason"
USER = "Qzuser"
_CUT_TAG = re.compile(r"[<\[][^<>\[\]\n]*$")
_LISTED = re.compile("""['"]thinking['"]:""")
_REASON_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Said:
    """What an assistant said: words, thoughts, calls as (name, arguments)."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    ids: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@dataclass
class Probe:
    """A template and how to talk to it; what works is found by trying.

    `prompt` is the prompt for an answer to a message of the user, `start` where in it the answer begins: what stands
    there before the answer's end is what the prompt says of the answer already. Raises TemplateError where the template
    renders no plain conversation.
    """

    template: ChatTemplate
    tools: list[dict[str, Any]]
    prompt: str = field(init=False)
    start: int = field(init=False)
    as_text: bool = field(default=False, init=False)
    reason_field: str = field(default="reasoning_content", init=False)

    def __post_init__(self) -> None:
        self._variables: dict[str, Any] = (
            {} if self.template.tokenizer is not None else {"bos_token": "", "eos_token": ""}
        )
        self._offered: list[dict[str, Any]] | None = self.tools
        self.prompt = self._first_prompt()
        answered = self._render([{"role": "assistant", "content": TEXT}], False)
        pairs = zip(self.prompt, answered, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.prompt), len(answered)))
        self.start = len(_CUT_TAG.sub("", self.prompt[:shared]))

    def _first_prompt(self) -> str:
        """With tools if the template takes them, or under a name of its own."""
        for offered in (self.tools, None):
            self._offered = offered
            with suppress(TemplateError):
                return self._render([], True)
        self._offered = self.tools
        self._variables |= {"functions": json.dumps(self.tools), "datetime": ""}
        return self._render([], True)

    @property
    def header(self) -> str:
        """What the prompt writes to begin an answer: all that comes after what the user says, if nothing else."""
        try:
            before = self._render([], False)
        except TemplateError:
            before = ""
        begun = self.prompt[: self.start]
        if begun.startswith(before) and len(before) < self.start and before:
            return begun[len(before) :]
        return begun.rpartition(USER)[2]

    @property
    def prefix(self) -> str:
        """What the prompt says of the answer already."""
        return self.prompt[self.start :]

    def body(self, said: Said) -> str | None:
        """The answer as the template writes it, to the end of all; None where it refuses."""
        try:
            text = self._render([self._message(said)], False)
        except TemplateError:
            return None
        return text[self.start :] if text.startswith(self.prompt[: self.start]) else None

    def takes_id(self, call_id: str) -> bool:
        """Whether calls may have this id."""
        name = self.tools[0]["function"]["name"]
        return self.body(Said(calls=[(name, {})], ids=[call_id])) is not None

    def _message(self, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if said.reasoning and self.reason_field == "parts":
            message["content"] = [{"type": "thinking", "thinking": said.reasoning}]
            message["content"] += [{"type": "text", "text": said.text}] if said.text else []
        elif said.reasoning:
            message[self.reason_field] = said.reasoning
        ids = said.ids or [f"qzid0000{i}" for i in range(len(said.calls))]
        if said.calls:
            message["tool_calls"] = [
                {"id": i, "type": "function", "function": {"name": name, "arguments": self._arguments(arguments)}}
                for i, (name, arguments) in zip(ids, said.calls, strict=True)
            ]
        return message

    def _arguments(self, arguments: Mapping[str, Any]) -> Any:
        return json.dumps(arguments, ensure_ascii=False) if self.as_text else dict(arguments)

    def find_reasoning(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
        """An answer with reasoning as the template writes it, by whatever field it takes it from; None if none."""
        for name in (*_REASON_FIELDS, "parts"):
            self.reason_field = name
            for said in (Said(TEXT, REASON), Said("", REASON, calls)):
                body = self.body(said)
                # A template that knows no parts may write the list of them as it is.
                if body is not None and body.count(REASON) == 1 and not _LISTED.search(body):
                    return body
        self.reason_field = _REASON_FIELDS[0]
        return None

    def _render(self, answer: list[dict[str, Any]], generation: bool) -> str:
        messages = [{"role": "user", "content": USER}, *answer]
        return self.template.render_unfitted(messages, generation, self._offered, **self._variables)
