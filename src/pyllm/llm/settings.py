"""What can be asked of a generation by keyword, and the checks on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from pyllm.config import SamplingParams
from pyllm.errors import RequestError


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, where they and their defaults are described."""

    logit_bias: Mapping[int, float]
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    temperature: float
    seed: int | None


class GenerateOptions(SamplingOptions, total=False):
    """Keyword options of `LLM.complete`, `LLM.chat` and `LLM.generate`."""

    sampling: SamplingParams
    """Where the sampling options start from; single ones override it."""
    max_tokens: int | None
    """Most tokens to generate; None: until the model ends or the context is full. Where the context is full before a
    number given here is reached, ContextFullError is raised."""
    stop: str | Sequence[str]
    """Texts that end the generation; they are not part of the result."""
    logprobs: int | None
    """Report each token's log probability, and those of so many most likely tokens (0: its own only)."""
    ignore_eos: bool
    """Go on when the model says that it is done."""
    context_shift: bool
    """When the context is full, forget its older half instead of ending."""
    n_keep: int
    """How many of the first tokens a context shift never forgets."""


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """`GenerateOptions`, complete and checked."""

    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    context_shift: bool = False
    n_keep: int = 0
    usual: int | None = None
    """Limit where `max_tokens` was not given; it gives way to the context's."""

    @classmethod
    def of(cls, caller: str, usual: int | None, options: Mapping[str, Any]) -> GenerateSettings:
        """Settings from a call's keywords. Raises RequestError for what does not exist."""
        rest = dict(options)
        sampling = rest.pop("sampling", None) or SamplingParams()
        if not isinstance(sampling, SamplingParams):
            raise RequestError(f"sampling must be a SamplingParams, not a {type(sampling).__name__}")
        steps = {name: rest.pop(name) for name in _SAMPLING if name in rest}
        if unknown := [name for name in rest if name not in _OWN]:
            raise RequestError(_unknown(caller, unknown[0]))
        stop = rest.pop("stop", None) or ()
        settings = cls(
            sampling=replace(sampling, **steps),
            usual=None if "max_tokens" in rest else usual,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            **rest,
        )
        settings._check()
        return settings

    def limit(self, room: int) -> int | None:
        """Most tokens to generate, where the context has `room` for so many."""
        if self.usual is None:
            return self.max_tokens
        return self.usual if self.context_shift else min(self.usual, room)

    def _check(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise RequestError(f"max_tokens must be 0 or more, or None, not {self.max_tokens}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise RequestError("stop must be a text that is not empty, or several")
        if self.logprobs is not None and self.logprobs < 0:
            raise RequestError(f"logprobs must be 0 or more, or None, not {self.logprobs}")
        if self.n_keep < 0:
            raise RequestError(f"n_keep must be 0 or more, not {self.n_keep}")


_SAMPLING = tuple(f.name for f in fields(SamplingParams))
_OWN = tuple(f.name for f in fields(GenerateSettings) if f.name != "usual")


def _unknown(caller: str, name: str) -> str:
    from difflib import get_close_matches

    known = sorted({*_SAMPLING, *_OWN})
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{caller}() has no option {name}; {hint}"
