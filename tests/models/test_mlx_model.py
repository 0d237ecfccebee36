"""A real file on mlx: what it says, and its logits beside those of the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import archs, backends
from pyllm.backends.base import Batch
from pyllm.config import ExecutionOptions
from pyllm.gguf import open_gguf

pytest.importorskip("mlx.core")

TOKENS = [504, 3575, 282, 4649, 314]
"""The capital of France is"""


def test_smollm2_on_mlx(model_path: Callable[[str], Path]) -> None:
    with pyllm.load(model_path("smollm2"), n_ctx=256, backend="mlx") as llm:
        assert llm.complete("The capital of France is", max_tokens=4, temperature=0).text.startswith(" Paris")
        texts = [
            r.text for r in llm.generate(["The capital of Italy is", "One, two, three,"], max_tokens=4, temperature=0)
        ]
    assert texts[0].startswith(" Rome")
    assert "four" in texts[1]


def test_smollm2_logits(model_path: Callable[[str], Path]) -> None:
    options = ExecutionOptions(n_pages=2, max_tokens=8, max_seqs=1, max_rows=8, kv_dtype="f32", n_threads=2)
    logits = {}
    with open_gguf(model_path("smollm2")) as file:
        program = archs.load(file.metadata, file.tensors, 64).program
        for name in ("mlx", "reference"):
            executable = backends.get(name).compile(program, file.tensors, options)
            batch = Batch(options)
            batch.add(TOKENS, 0, [1], "all")
            logits[name] = executable.run(batch).copy()
            executable.close()
    got, wanted = logits["mlx"], logits["reference"]
    assert np.mean((got - wanted) ** 2) / np.mean(wanted**2) < (
        1e-3 if backends.get("mlx").devices()[0].is_gpu else 1e-9
    )
