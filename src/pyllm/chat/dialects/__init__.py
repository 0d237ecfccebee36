"""Dialects: how a model writes reasoning and tool calls, found out from its chat template. `dialect_of(template)`."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import Any

from pyllm.chat.dialects import check, derive
from pyllm.chat.dialects.bare import BareCalls
from pyllm.chat.dialects.known import of_vocabulary, recognised
from pyllm.chat.dialects.parser import Parser
from pyllm.chat.dialects.probing import Probe
from pyllm.chat.dialects.spec import TEXT_ONLY, Calls, DialectSpec, ObjectBody
from pyllm.chat.dialects.typed import schemas_of
from pyllm.chat.template import ChatTemplate
from pyllm.errors import PyllmWarning, TemplateError

__all__ = ["FALLBACK", "Dialect", "DialectSpec", "Parser", "dialect_of"]

FALLBACK = Calls(ObjectBody(), start=("<tool_call>",), end=("</tool_call>",))
"""Calls where a template knows none, and a system text asks for it in this form."""


class Dialect:
    """How a model writes its answers. Found out, and checked, when it is first used.

    A dialect that doesn't read what the template itself writes is not used: a PyllmWarning says so once, and what the
    model writes is text.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._finding = Lock()
        self._spec: DialectSpec | None = None

    @property
    def spec(self) -> DialectSpec:
        """The dialect as data."""
        with self._finding:
            if self._spec is None:
                self._spec = self._checked()
            return self._spec

    def _checked(self) -> DialectSpec:
        try:
            probe = Probe(self._template, derive.tools())
        except TemplateError:
            return replace(TEXT_ONLY, source="fallback", calls=FALLBACK)
        found = _found(probe, self._has_token)
        trouble = next(check.problems(probe, found), None)
        if trouble is None:
            return found
        without = replace(found, calls=None)
        usable = TEXT_ONLY if next(check.problems(probe, without), None) else without
        what = "tool calls" if usable.reasoning else "tool calls and reasoning"
        warnings.warn(
            f"{what} in this model's answers stay text: its chat template isn't understood ({trouble})",
            PyllmWarning,
            stacklevel=4,
        )
        return usable

    def parser(
        self, tools: Sequence[Mapping[str, Any]] | None = None, *, prompt: str | None = None
    ) -> Parser | BareCalls:
        """A parser for one answer. Calls are looked for where there are `tools`; their schemas give types to raw text.

        `prompt` is the rendered prompt, whose end may say something of the answer already ("<think>"); without it what
        the template adds by default counts.
        """
        prefix = self.spec.prefix if prompt is None else _prefix(prompt, self.spec)
        parser = Parser(self.spec, tools, prefix=prefix, control=self._control)
        calls = self.spec.calls
        if not tools or calls is None or calls.bare or not isinstance(calls.body, ObjectBody) or not calls.body.name:
            return parser
        return BareCalls(parser, calls.body, list(schemas_of(tools)), self.spec.ids)

    def open_reasoning(self, prompt: str) -> str | None:
        """What ends the reasoning in which answers to a rendered prompt begin; None where they don't begin in one."""
        reasoning = self.spec.reasoning
        if reasoning is None or not reasoning.start:
            return None
        _, start, begun = _prefix(prompt, self.spec).rpartition(reasoning.start)
        return reasoning.end if start and reasoning.end not in begun else None

    @cached_property
    def _control(self) -> Mapping[int, str]:
        """Control tokens whose texts are, or are part of, the dialect's literals."""
        tokenizer = self._template.tokenizer
        if tokenizer is None:
            return {}
        return {
            i: text for text, i in tokenizer.vocab.special_ids.items() if any(text in m for m in self.spec.literals)
        }

    def _has_token(self, text: str) -> bool:
        tokenizer = self._template.tokenizer
        return tokenizer is not None and tokenizer.vocab.find(text) is not None


def _found(probe: Probe, vocabulary: Callable[[str], bool]) -> DialectSpec:
    """Hand-written where its marks are there, else derived, else by the vocabulary, else the fallback's calls."""
    known = recognised("\n".join(probe.template.sources.values()))
    around = derive.frame(probe, vocabulary, known.spec.reasoning if known else None)
    derived = derive.derive(probe, around) if known is None else None
    if known is None and derived is None:
        known = of_vocabulary(vocabulary)
    spec = known.spec if known else derived or replace(TEXT_ONLY, source="fallback", calls=FALLBACK)
    reasoning = spec.reasoning or (None if spec.channels else around.reasoning)
    hexadecimal, nine = probe.takes_id("call_0123456789abcdef01234567"), probe.takes_id("a1B2c3D4e")
    return replace(
        spec,
        reasoning=reasoning,
        silent=spec.silent if known else around.silent,
        header=probe.header,
        prefix=probe.prefix,
        turn_ends=spec.turn_ends or (around.after,),
        trim=around.trim,
        ids="nine" if nine and not hexadecimal else "hex",
    )


def _prefix(prompt: str, spec: DialectSpec) -> str:
    """What a prompt says of the answer already: what comes after the last beginning of an answer."""
    _, header, rest = prompt.rpartition(spec.header) if spec.header else ("", "", "")
    if header and not any(end and end in rest for end in spec.turn_ends):
        return rest
    # Some templates let a turn go on after the results of tools.
    begins = "" if spec.reasoning is None else spec.reasoning.start
    return begins if prompt.rstrip().endswith(begins) else ""


_lock = Lock()
_dialects: OrderedDict[str, Dialect] = OrderedDict()
_KEPT = 64


def dialect_of(template: ChatTemplate) -> Dialect:
    """The dialect of a template: the same one for equal templates with the same tokenizer."""
    known = repr((sorted(template.sources.items()), id(template.tokenizer)))
    key = sha256(known.encode("utf-8", "replace")).hexdigest()
    with _lock:
        dialect = _dialects.pop(key, None)
        if dialect is None:
            dialect = Dialect(template)
        _dialects[key] = dialect
        while len(_dialects) > _KEPT:
            _dialects.popitem(last=False)
    return dialect
