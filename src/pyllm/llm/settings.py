"""Keyword options of a generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pyllm.arguments import settle
from pyllm.config import SamplingOptions, SamplingParams
from pyllm.errors import RequestError


class GenerateOptions(SamplingOptions, total=False):
    """Keyword options of `LLM.complete`, `LLM.chat` and `LLM.generate`."""

    sampling: SamplingParams | None
    """Base of the sampling options; single options override it. Default: what the model's file advises."""
    max_tokens: int | None
    """Most tokens to generate; None or -1: until the model ends the text. A full context ends the answer too, with
    finish_reason "length"."""
    stop: str | Sequence[str] | None
    """Texts that end the generation; they are not part of the result."""
    logprobs: int | None
    """Report each token's log probability, and those of the `logprobs` most likely tokens (0: its own only)."""
    prompt_logprobs: int | None
    """The same for the prompt's tokens; the prompt is then computed anew, not read from the prefix cache."""
    n: int | None
    """Number of answers; those after the first are the result's `others`. They share the prompt's state. With a seed,
    each has the next one."""
    best_of: int | None
    """Generate so many answers and return the `n` of the highest mean log probability."""
    response_format: Any
    """What the answer must be: a JSON schema, OpenAI's `response_format`, or a class (pydantic model, dataclass,
    TypedDict), of which the result's `parsed` is one."""
    regex: str | None
    """A regular expression that the whole answer matches (Rust's syntax: no look-around, no back-references)."""
    choice: Sequence[str] | None
    """Texts of which the answer is one."""
    grammar: str | None
    """A grammar of the answer: llguidance's Lark with a rule `start`, or llama.cpp's GBNF with a rule `root`."""
    tool_choice: str | Mapping[str, Any] | None
    """In a chat with tools: "auto"; "required" (calls and nothing else); "none"; the name of the tool to call, or
    OpenAI's object with it. Held by a grammar of the model's own dialect."""
    parallel_tool_calls: bool | None
    """False: `tool_choice` and strict tools allow one call."""
    echo: bool | None
    """Begin the text with the prompt's (not in `chat`)."""
    priority: int | None
    """Requests of a higher priority go first; those of the same in order of arrival."""
    timeout: float | None
    """Seconds after which the answer ends with what there is, finish_reason "timeout"."""
    ignore_eos: bool | None
    """Continue past the model's end of text."""
    context_shift: bool | None
    """When the context is full, drop its older half instead of ending."""
    n_keep: int | None
    """Number of first tokens that a context shift keeps."""


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """`GenerateOptions`, complete and validated; the engine checks bounds."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    response_format: Any = None
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    echo: bool = False
    priority: int = 0
    timeout: float | None = None
    ignore_eos: bool = False
    context_shift: bool = False
    n_keep: int = 0

    def __post_init__(self) -> None:
        settle(self)
        if self.max_tokens == -1:
            object.__setattr__(self, "max_tokens", None)
        if not all(self.stop):
            raise RequestError("stop must be a text that is not empty, or several")
        if self.n < 1:
            raise RequestError(f"n must be 1 or more, not {self.n}")
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of is {self.best_of}; it must be {self.n} or more, the n answers to return")
        forms = [name for name in ("response_format", "regex", "choice", "grammar") if getattr(self, name)]
        if len(forms) > 1:
            raise RequestError(f"{forms[0]} and {forms[1]} cannot both be given: an answer has one form")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise RequestError(f"timeout must be a positive number of seconds, not {self.timeout}")

    @property
    def is_held(self) -> bool:
        """Whether the answer has a form to be held to."""
        return self.response_format is not None or bool(self.regex or self.choice or self.grammar)

    @classmethod
    def of(
        cls, caller: str, max_tokens: int | None, options: Mapping[str, Any], sampling: SamplingParams | None = None
    ) -> GenerateSettings:
        """Settings from a call's keywords. `max_tokens`, `sampling`: where they name none. Raises RequestError."""
        if unknown := [name for name in options if name not in _SAMPLING and name not in _OWN]:
            raise RequestError(_unknown(caller, unknown[0]))
        own = {name: value for name, value in options.items() if name in _OWN}
        if own.get("sampling") is None:
            own["sampling"] = sampling
        settings = cls(**{"max_tokens": max_tokens, **own})
        steps = {name: value for name, value in options.items() if name in _SAMPLING}
        given = {name: value for name, value in steps.items() if value is not None or name == "seed"}
        return replace(settings, sampling=replace(settings.sampling, **given)) if given else settings


_SAMPLING = tuple(f.name for f in fields(SamplingParams))
_OWN = tuple(f.name for f in fields(GenerateSettings))


def _unknown(caller: str, name: str) -> str:
    from difflib import get_close_matches

    known = sorted({*_SAMPLING, *_OWN})
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{caller}() has no option {name}; {hint}"
