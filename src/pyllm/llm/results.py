"""The result of a generation: text, reasoning, tool calls, log probabilities, usage."""

from __future__ import annotations

import json
from typing import Any, Literal

from pyllm.chat.events import ToolCall
from pyllm.records import dataclass

FinishReason = Literal["stop", "length", "tool_calls", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time of one generation."""

    n_prompt: int
    n_cached: int
    """Tokens of the prompt read from the prefix cache, not computed."""
    n_generated: int
    prompt_seconds: float
    """From the first step of the prompt to the first token."""
    seconds: float
    """From there to the last token."""
    n_matched: int = 0
    """Tokens of the prompt that the prefix cache knows: more than `n_cached` where a model's recurrent state was not
    kept behind them, so that some were computed again."""
    n_drafted: int = 0
    """Guesses of tokens that were verified, with `spec`."""
    n_accepted: int = 0
    """Those that were right: tokens of the answer that needed no step of their own."""

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt that were computed, per second."""
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Generated tokens per second, after the first, which comes with the prompt."""
        return (self.n_generated - 1) / self.seconds if self.seconds > 0 and self.n_generated > 1 else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability, before sampling options changed it."""

    id: int
    text: str
    """The token's text; a replacement character where it holds only part of one."""
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    """The most likely tokens: id, text, logprob."""
    bytes: bytes = b""
    """The token's bytes, which joined are the text's."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation."""

    text: str
    """Empty where the model has no usable tokenizer."""
    tokens: tuple[int, ...]
    """All generated tokens, those of a stop string included; the token that ends a text is not."""
    finish_reason: FinishReason
    """stop: the model ended the text, or a stop string came; length: max_tokens reached or the context full;
    tool_calls: the model called tools; timeout: the request's time was over; cancelled: the reader ended it."""
    usage: Usage
    stop_string: str | None = None
    """The stop string that ended it."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    n_dropped: int = 0
    """Messages that `truncate` left out of a chat: the oldest, except the system's."""
    reasoning: str = ""
    """What the model wrote before its answer, where its dialect marks that."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of the tools that the model was given."""
    parsed: Any = None
    """The answer as data, where a schema was given: JSON's value, or an object of the class that was given. None where
    the answer was cut."""
    warnings: tuple[str, ...] = ()
    """What of a schema or of tools could not be held."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """Those of the prompt's tokens from the second on."""
    prompt_tokens: tuple[int, ...] = ()
    """The prompt as token ids."""
    others: tuple[Completion, ...] = ()
    """Further answers, where `n` asked for several."""

    @property
    def choices(self) -> tuple[Completion, ...]:
        """All answers, this one first."""
        return (self, *self.others)

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of the generated tokens; -inf without any, or without `logprobs`."""
        if not self.logprobs:
            return float("-inf")
        return sum(token.logprob for token in self.logprobs) / len(self.logprobs)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message for a chat's history, in OpenAI's form; reasoning is part of it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in self.tool_calls
            ]
        return message
