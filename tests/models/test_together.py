"""Requests that share steps, on a real model: each gets token for token what it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pyllm

pytest.importorskip("llvmlite")

COMMON = "Answer the following as well as you can, please, and be brief and honest about it all the time. " * 3
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three primary colours are",
    "My favourite recipe for soup begins with",
    "In 1969, the first humans",
    "Explain the theory of relativity in simple words:",
]


@pytest.mark.parametrize("common", ["", COMMON], ids=["apart", "common-prefix"])
def test_eight_requests_at_once_are_eight_alone(model_path: Callable[[str], Path], common: str) -> None:
    prompts = [common + p for p in PROMPTS]
    with pyllm.load(model_path("smollm2"), n_ctx=512, max_seqs=8) as llm:
        alone = [llm.complete(p, max_tokens=32, temperature=0).tokens for p in prompts]
    with pyllm.load(model_path("smollm2"), n_ctx=512, max_seqs=8) as llm:
        together = llm.generate(prompts, max_tokens=32, temperature=0)
    assert [c.tokens for c in together] == alone
