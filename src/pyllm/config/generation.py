"""Settings of a generation: what `LLM.complete`, `LLM.chat` and `LLM.generate` take beside those of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pyllm.config.sampling import SamplingParams
from pyllm.config.setting import complete, refuse_unknown, setting
from pyllm.errors import RequestError
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """How an answer is generated, complete and validated. Calls take the fields, and those of `SamplingParams`, as
    keywords, `GenerateOptions`."""

    sampling: SamplingParams = setting(
        None,
        "Base of the sampling options; single options override it. Default: what the model's file advises.",
        factory=SamplingParams,
    )
    max_tokens: int | None = setting(
        None,
        "Most tokens to generate; None or -1: until the model ends the text. A full context ends the answer too, with "
        'finish_reason "length".',
        help="Most tokens to generate [default, and -1: until the model is done].",
        low=0,
        must="0 or more, or None",
        minus_one=None,
        flags=("-n", "--max-tokens"),
    )
    stop: tuple[str, ...] = setting(
        (),
        "Texts that end the generation; they are not part of the result.",
        help="End before this text.",
        options_type="str | Sequence[str]",
        flags=("--stop",),
    )
    logprobs: int | None = setting(
        None,
        "Report each token's log probability, and those of the `logprobs` most likely tokens (0: its own only).",
        low=0,
        must="0 or more, or None",
    )
    prompt_logprobs: int | None = setting(
        None,
        "The same for the prompt's tokens; the prompt is then computed anew, not read from the prefix cache.",
        low=0,
        must="0 or more, or None",
    )
    n: int = setting(
        1,
        "Number of answers; those after the first are the result's `others`. They share the prompt's state. With a "
        "seed, each has the next one.",
        low=1,
    )
    best_of: int | None = setting(
        None, "Generate so many answers and return the `n` of the highest mean log probability."
    )
    response_format: Any = setting(
        None,
        "What the answer must be: a JSON schema, OpenAI's `response_format`, or a class (pydantic model, dataclass, "
        "TypedDict), of which the result's `parsed` is one.",
    )
    regex: str | None = setting(
        None, "A regular expression that the whole answer matches (Rust's syntax: no look-around, no back-references)."
    )
    choice: tuple[str, ...] = setting((), "Texts of which the answer is one.")
    grammar: str | None = setting(
        None, "A grammar of the answer: llguidance's Lark with a rule `start`, or llama.cpp's GBNF with a rule `root`."
    )
    tool_choice: str | Mapping[str, Any] = setting(
        "auto",
        'In a chat with tools: "auto"; "required" (calls and nothing else); "none"; the name of the tool to call, or '
        "OpenAI's object with it. Held by a grammar of the model's own dialect.",
    )
    parallel_tool_calls: bool = setting(True, "False: `tool_choice` and strict tools allow one call.")
    echo: bool = setting(False, "Begin the text with the prompt's (not in `chat`).")
    priority: int = setting(0, "Requests of a higher priority go first; those of the same in order of arrival.")
    timeout: float | None = setting(
        None,
        'Seconds after which the answer ends with what there is, finish_reason "timeout".',
        low=0,
        above_low=True,
        must="a positive number of seconds",
    )
    ignore_eos: bool = setting(False, "Continue past the model's end of text.", flags=("--ignore-eos",))
    context_shift: bool = setting(
        False,
        "When the context is full, drop its older half instead of ending.",
        flags=("--context-shift",),
    )
    n_keep: int = setting(0, "Number of first tokens that a context shift keeps.", low=0, flags=("--keep",))

    def __post_init__(self) -> None:
        complete(self)
        if not all(self.stop):
            raise RequestError("stop must be a text that is not empty, or several")
        if self.best_of is not None and self.best_of < self.n:
            raise RequestError(f"best_of is {self.best_of}; it must be {self.n} or more, the n answers to return")
        forms = [name for name in ("response_format", "regex", "choice", "grammar") if getattr(self, name)]
        if len(forms) > 1:
            raise RequestError(f"{forms[0]} and {forms[1]} cannot both be given: an answer has one form")

    @property
    def is_held(self) -> bool:
        """Whether the answer has a form to be held to."""
        return self.response_format is not None or bool(self.regex or self.choice or self.grammar)

    @classmethod
    def of(
        cls, caller: str, max_tokens: int | None, options: Mapping[str, Any], sampling: SamplingParams | None = None
    ) -> GenerateSettings:
        """Settings from a call's keywords. `max_tokens`, `sampling`: where they name none. Raises RequestError."""
        refuse_unknown(caller, options, (*_SAMPLING, *_OWN))
        own = {name: value for name, value in options.items() if name in _OWN}
        if own.get("sampling") is None:
            own["sampling"] = sampling
        settings = cls(**{"max_tokens": max_tokens, **own})
        steps = {name: value for name, value in options.items() if name in _SAMPLING}
        given = {name: value for name, value in steps.items() if value is not None or name == "seed"}
        return replace(settings, sampling=replace(settings.sampling, **given)) if given else settings


_SAMPLING = tuple(f.name for f in fields(SamplingParams))
_OWN = tuple(f.name for f in fields(GenerateSettings))
