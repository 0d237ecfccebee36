"""What the routes of llama-server's own API share: errors, prompts of mixed parts, log probabilities, timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllm.llm.results import TokenLogprob, Usage
from pyllm.server.api import Api
from pyllm.server.logprobs import finite
from pyllm.server.problems import Problem, refuse
from pyllm.tokenizers import Tokenizer

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error(problem: Problem) -> dict[str, Any]:
    """llama-server's form of an error."""
    kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    if problem.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": problem.status, "message": problem.message, "type": kind}}


API = Api("native", error)


def unsupported(message: str, param: str | None = None) -> Exception:
    """The error of what llama-server may do, and this server does not."""
    return refuse(message, param, status=501, code="not_supported")


def is_mixed(value: Any) -> bool:
    """Whether a list is one text of token ids and strings, ids among them."""
    return (
        isinstance(value, list)
        and any(type(entry) is int for entry in value)
        and all(isinstance(entry, str) or type(entry) is int for entry in value)
    )


def mixed_tokens(
    tokenizer: Tokenizer, parts: Sequence[str | int], *, add_special: bool, parse_special: bool
) -> list[int]:
    """Token ids of a text of token ids and strings. Only a string that comes first may bring BOS with it."""
    found: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, int):
            found.append(part)
        else:
            found += tokenizer.encode(part, add_special=add_special and i == 0, parse_special=parse_special)
    return found


def probabilities(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log probabilities of tokens, and of the most likely ones in their places."""
    return [
        {
            **_probability(token.id, token.text, token.bytes, token.logprob),
            "top_logprobs": [
                _probability(number, text, tokenizer.token_bytes(number), logprob)
                for number, text, logprob in token.top
            ],
        }
        for token in tokens
    ]


def _probability(number: int, text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"id": number, "token": text, "bytes": list(data), "logprob": finite(logprob)}


def timings(usage: Usage) -> dict[str, float]:
    """Tokens and times; the prompt's are of what was computed of it."""
    n_computed, n = usage.n_prompt - usage.n_cached, usage.n_generated
    prompt_ms, predicted_ms = usage.prompt_seconds * 1000, usage.seconds * 1000
    drafts = {"draft_n": usage.n_drafted, "draft_n_accepted": usage.n_accepted} if usage.n_drafted else {}
    return {
        "cache_n": usage.n_cached,
        "prompt_n": n_computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_computed if n_computed else 0.0,
        "prompt_per_second": usage.prompt_rate,
        "predicted_n": n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / n if n else 0.0,
        "predicted_per_second": usage.rate,
        **drafts,
    }
