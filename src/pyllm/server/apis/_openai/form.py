"""What OpenAI's routes share: errors, framing, usage, log probabilities, prompts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from pyllm.llm.results import TokenLogprob, Usage
from pyllm.server.api import Api, Exchange
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing, data_frame
from pyllm.server.logprobs import described
from pyllm.server.problems import Problem, refuse
from pyllm.tokenizers import Tokenizer

DONE = b"data: [DONE]\n\n"


def error(problem: Problem) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}}


API = Api("openai", error)
FRAMING = Framing(EVENT_STREAM, lambda: COMMENT, lambda problem: data_frame(error(problem)))


@cache
def fingerprint() -> str:
    """`system_fingerprint`: what the answers of a seed depend on, apart from the model."""
    from pyllm import __version__

    return f"pyllm-{__version__}"


def head(exchange: Exchange, prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that answers and their chunks begin with."""
    return {
        "id": exchange.id.replace("req_", prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint(),
    }


def usage_of(usages: Iterable[Sequence[Usage]], n_reasoned: int = 0) -> dict[str, Any]:
    """The tokens of a request: of each prompt, the usages of its answers; those of reasoning among them."""
    n_prompt = n_cached = n_generated = n_drafted = n_accepted = 0
    for answers in usages:
        n_prompt += answers[0].n_prompt
        n_cached += answers[0].n_cached
        n_generated += sum(answer.n_generated for answer in answers)
        n_drafted += sum(answer.n_drafted for answer in answers)
        n_accepted += sum(answer.n_accepted for answer in answers)
    details = {"reasoning_tokens": min(n_reasoned, n_generated)}
    if n_drafted:
        details["accepted_prediction_tokens"] = n_accepted
        details["rejected_prediction_tokens"] = n_drafted - n_accepted
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": details,
    }


def n_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """The number of tokens of texts that a model wrote; about, as it may have written them otherwise."""
    return sum(len(tokenizer.encode_within(text)) for text in texts if text)


def reason_of(reason: str) -> str:
    """A finish reason in OpenAI's words."""
    return reason if reason in ("stop", "length", "tool_calls") else "length"


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """Log probabilities of a chat's answer."""
    return {"content": [described(token, tokenizer) for token in tokens], "refusal": None}


def prompts_of(value: Any, param: str) -> list[str | list[int]]:
    """A text, texts, token ids, or lists of those, as several. Raises ProblemError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(entry) is int for entry in value):
            return [value]
        if all(isinstance(entry, str) or _is_ids(entry) for entry in value):
            return value
    raise refuse(f"{param} must be a text, a list of texts, a list of token ids, or a list of such lists", param)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)
