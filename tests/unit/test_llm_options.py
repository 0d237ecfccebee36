"""Keyword options: defaults, overriding, and clear words for what does not exist."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from pyllm.config import SamplingParams
from pyllm.errors import RequestError
from pyllm.llm.settings import GenerateOptions, GenerateSettings, SamplingOptions


def test_options_are_the_fields_of_sampling_params() -> None:
    assert set(SamplingOptions.__annotations__) == {f.name for f in fields(SamplingParams)}


def test_options_are_the_fields_of_settings() -> None:
    own = {f.name for f in fields(GenerateSettings)} - {"usual"}
    assert set(GenerateOptions.__annotations__) == own | set(SamplingOptions.__annotations__)


def test_defaults() -> None:
    assert GenerateSettings.of("chat", None, {}) == GenerateSettings(SamplingParams())


@pytest.mark.parametrize(
    ("usual", "options", "limit"),
    [
        (256, {}, 100),
        (50, {}, 50),
        (256, {"context_shift": True}, 256),
        (None, {}, None),
        (256, {"max_tokens": None}, None),
        (256, {"max_tokens": 300}, 300),
    ],
)
def test_only_the_usual_limit_gives_way_to_the_context(usual: int | None, options: Any, limit: int | None) -> None:
    assert GenerateSettings.of("complete", usual, options).limit(room=100) == limit


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
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"logprobs": -1}, "logprobs"),
        ({"n_keep": -1}, "n_keep"),
        ({"sampling": {"top_k": 1}}, "SamplingParams"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        GenerateSettings.of("chat", None, options)
