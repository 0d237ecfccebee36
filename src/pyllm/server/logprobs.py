"""Log probabilities on the wire, as OpenAI's and Ollama's APIs have them."""

from __future__ import annotations

from typing import Any

from pyllm.llm.results import TokenLogprob
from pyllm.server.problems import refuse
from pyllm.tokenizers import Tokenizer

MAX_TOP_LOGPROBS = 20
"""Of a token."""
_LEAST_LOGPROB = -9999.0
"""What OpenAI says of a token that is impossible; JSON has no infinity."""


def top_of(value: int | None, param: str) -> int | None:
    """A checked number of most likely tokens."""
    if value is not None and not 0 <= value <= MAX_TOP_LOGPROBS:
        raise refuse(f"{param} must be from 0 to {MAX_TOP_LOGPROBS}, not {value}", param)
    return value


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it."""
    return max(logprob, _LEAST_LOGPROB)


def described(token: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token with its log probability, and those of the most likely tokens."""
    return {
        "token": token.text,
        "logprob": finite(token.logprob),
        "bytes": list(token.bytes),
        "top_logprobs": [
            {"token": text, "logprob": finite(logprob), "bytes": list(tokenizer.token_bytes(number))}
            for number, text, logprob in token.top
        ],
    }
