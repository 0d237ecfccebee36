"""Requests to the engine, and the tokens that come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.config import GenerateSettings, SamplingParams
from pyllm.config.setting import settings_of
from pyllm.errors import ContextFullError, RequestError
from pyllm.records import dataclass
from pyllm.sampling import Vocabulary

if TYPE_CHECKING:
    from pyllm.constraints.constraint import Constraint

FinishReason = Literal["stop", "length", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt, and how to continue it."""

    tokens: Sequence[int] | NDArray[np.integer]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """Most tokens to generate; None: until a stop token. A full context ends the answer too, unless it is shifted."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer; they are not part of it."""
    logprobs: int | None = None
    """Report each token's log probability, and those of the `logprobs` most likely tokens (0: its own only)."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens from the second on; the prompt is then not read from the prefix cache."""
    context_shift: bool = False
    """When the context is full, drop its older half and go on."""
    unread: int | None = 512
    """Most items computed ahead of the reader; None: no limit, for a reader that waits for the whole answer."""
    paced: bool = False
    """Whether a reader follows the tokens as they come: prompts of others then may not hold them up for long."""
    priority: int = 0
    """Requests of a higher priority go first; those of the same in order of arrival."""
    timeout: float | None = None
    """Seconds from now after which the answer ends with what there is."""
    n_prefix: int | None = None
    """Tokens that later prompts are expected to begin with; a hint, which changes no answer."""
    n_keep: int = 0
    """Number of first tokens that a context shift keeps."""
    constrain: Callable[[], Constraint] | None = None
    """Makes what holds the answer to a grammar; its end tokens must be among `stop_ids`."""
    vocabulary: Vocabulary | None = None
    """What tokens stand for; settings of sampling that are texts need it."""


class GeneratedToken(NamedTuple):
    """One token of an answer. Log probabilities are natural logarithms, of the model's own distribution."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


_SETTINGS = [s for s in settings_of(GenerateSettings) if s.name in GenerationRequest.__dataclass_fields__]
"""Those settings of a generation that the engine keeps to."""


def check_request(request: GenerationRequest, n_ctx: int) -> None:
    """Raise RequestError for contradictory settings; tokens and sampling are checked elsewhere."""
    for setting in _SETTINGS:
        setting.check(getattr(request, setting.name))
    if request.unread is not None and request.unread < 1:
        raise RequestError(f"unread must be 1 or more, or None, not {request.unread}")
    if request.n_prefix is not None and not 0 <= request.n_prefix <= len(request.tokens):
        raise RequestError(f"n_prefix is {request.n_prefix}; the prompt has {len(request.tokens)} tokens")
    if request.context_shift and request.n_keep >= n_ctx:
        raise RequestError(f"n_keep is {request.n_keep}; a context of {n_ctx} tokens would have no room for new ones")


def check_tokens(tokens: Sequence[int] | NDArray[np.integer], n_ctx: int, n_vocab: int) -> NDArray[np.int32]:
    """Tokens as int32. Raises RequestError (no token, or an id outside the vocabulary), ContextFullError."""
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not len(ids):
        raise RequestError("the prompt is empty; it takes one token at least, such as BOS")
    if ids.dtype.kind not in "iu":
        raise RequestError(f"tokens must be whole numbers from 0 to {n_vocab - 1}, not {ids.dtype}")
    wrong = ids[(ids < 0) | (ids >= n_vocab)]
    if len(wrong):
        raise RequestError(f"token {wrong[0]} is not in the vocabulary, which has 0 to {n_vocab - 1}")
    if len(ids) > n_ctx:
        raise ContextFullError(
            f"the prompt has {len(ids)} tokens and the context holds {n_ctx}; shorten it or load with a larger n_ctx",
            len(ids),
            n_ctx,
        )
    return ids.astype(np.int32)
