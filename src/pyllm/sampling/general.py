"""Settings of sampling that are of no step: what goes before all of them, and what is about all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyllm.config import SamplingParams
from pyllm.config.setting import Setting
from pyllm.errors import RequestError
from pyllm.sampling.steps import all_steps, ordered

FIRST = (
    Setting(
        "logit_bias",
        "Mapping[int, float]",
        {},
        'Added to the logits of these tokens; -inf forbids one. Ids may be texts ("260"), as JSON has them.',
        options_type="Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int, float]]",
    ),
    Setting(
        "banned_tokens",
        "Sequence[int]",
        (),
        "Tokens that are never chosen.",
        flags=("--banned-token",),
    ),
    Setting(
        "banned_strings",
        "Sequence[str]",
        (),
        "Texts that never are in the answer: a token that would complete one is not chosen.",
        flags=("--banned-string",),
    ),
    Setting(
        "min_tokens",
        "int",
        0,
        "Least number of tokens before the answer may end.",
        low=0,
    ),
)
"""They change logits before any step does."""
LAST = (
    Setting(
        "seed",
        "int | None",
        None,
        "Seed of random numbers, to repeat an answer; None or -1: a new one each time.",
        help="Seed of random numbers, to repeat an answer [default: a new one each time].",
        low=0,
        must="0 or more, or None for a fresh one",
        flags=("-s", "--seed"),
        minus_one=None,
    ),
    Setting(
        "samplers",
        "Sequence[str] | None",
        None,
        "The steps that run, in this order; None: all that are on, in the usual order.",
        help="The steps that run, in this order [default: all that are on, in the usual order].",
        key="sequence",
    ),
    Setting(
        "logits_processors",
        "Sequence[Callable[[Any, Any], Any]]",
        (),
        "Functions of (ids of prompt and answer so far, int32; logits, float32 [n_vocab]), called before each token. "
        "They change the logits, or return others.",
        flags=(),
    ),
)


def all_settings() -> list[Setting]:
    """The fields of `SamplingParams`, in order."""
    return [*FIRST, *(setting for step in all_steps() for setting in step.settings), *LAST]


def advised(metadata: Mapping[str, Any]) -> SamplingParams:
    """The settings that a file advises, `general.sampling.*`; defaults where it names none, or one out of bounds."""
    found: dict[str, Any] = {}
    for setting in all_settings():
        value = metadata.get(f"general.sampling.{setting.key}") if setting.key else None
        if value is None:
            continue
        try:
            if isinstance(value, str):
                ordered(names := tuple(value.split(";")))
                value = names
            given: dict[str, Any] = {setting.name: value}
            params = SamplingParams(**given)
            setting.check(getattr(params, setting.name))
        except RequestError:
            continue  # advice; a model without it is whole
        found[setting.name] = getattr(params, setting.name)
    return SamplingParams(**found)


def check(params: SamplingParams, n_vocab: int) -> None:
    """Raise RequestError for invalid settings."""
    for setting in all_settings():
        setting.check(getattr(params, setting.name))
    _check_bias(params.logit_bias, n_vocab)
    for token in params.banned_tokens:
        if not 0 <= token < n_vocab:
            raise RequestError(f"banned_tokens names token {token}; the vocabulary has 0 to {n_vocab - 1}")
    for name in ("banned_strings", "dry_sequence_breakers"):
        if not all(getattr(params, name)):
            raise RequestError(f"{name} must be texts that are not empty")
    ordered(params.samplers)
    if sum(step.kind == "last" and step.is_on(params) for step in all_steps()) > 1:
        raise RequestError("mirostat and adaptive_target both choose the token; give one of them")


def _check_bias(logit_bias: Mapping[int, float], n_vocab: int) -> None:
    for token, bias in logit_bias.items():
        if not 0 <= token < n_vocab:
            raise RequestError(f"logit_bias names token {token}; the vocabulary has 0 to {n_vocab - 1}")
        if not bias < math.inf:
            raise RequestError(f"logit_bias of token {token} must be a number or -inf, not {bias}")
