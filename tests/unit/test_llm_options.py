"""Keyword options: defaults, overriding, and clear words for what does not exist."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm.config import GenerateSettings, SamplingParams
from pyllm.errors import RequestError


def test_defaults() -> None:
    assert GenerateSettings.of("chat", None, {}) == GenerateSettings(SamplingParams())


@pytest.mark.parametrize(
    ("options", "max_tokens"),
    [({}, 256), ({"max_tokens": None}, None), ({"max_tokens": -1}, None), ({"max_tokens": 0}, 0), ({"seed": 1}, 256)],
)
def test_max_tokens_of_a_call_go_before_its_default(options: Any, max_tokens: int | None) -> None:
    assert GenerateSettings.of("complete", 256, options).max_tokens == max_tokens


def test_none_is_as_if_an_option_were_not_given() -> None:
    base = SamplingParams(temperature=0.2, seed=3, logit_bias={1: 2.0})
    given = {"sampling": base, "temperature": None, "logit_bias": None, "stop": None, "n_keep": None}
    assert GenerateSettings.of("chat", None, given) == GenerateSettings(base)
    assert GenerateSettings.of("chat", None, {"sampling": base, "seed": None}).sampling.seed is None


def test_single_options_override_sampling() -> None:
    base = SamplingParams(temperature=0.2, top_k=5)
    settings = GenerateSettings.of("chat", None, {"sampling": base, "top_k": 7, "seed": 3, "max_tokens": 9})
    assert settings.sampling == SamplingParams(temperature=0.2, top_k=7, seed=3)
    assert settings.max_tokens == 9


@pytest.mark.parametrize("stop", ["end", ["end"], ("end",)])
def test_stop_is_one_or_several(stop: Any) -> None:
    assert GenerateSettings.of("chat", None, {"stop": stop}).stop == ("end",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 1.0}, r"chat\(\) has no option temprature; did you mean temperature\?"),
        ({"xyzzy": 1}, "there are .*max_tokens.*top_p"),
        ({"stop": [""]}, "stop"),
        ({"sampling": {"top_k": 1}}, "SamplingParams"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        GenerateSettings.of("chat", None, options)
