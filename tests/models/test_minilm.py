"""all-MiniLM-L6-v2, converted: its embeddings are transformers' (make_minilm.py wrote them)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_minilm import N_COLUMNS, TARGET, TEXTS

import pyllm
from pyllm_convert import convert

WANTED = np.array(json.loads(TARGET.read_text("utf-8")))


@pytest.mark.parametrize(
    ("recipe", "least"), [(None, 0.99999), ("F16", 0.99999), ("Q8_0", 0.999)], ids=["F32", "F16", "Q8_0"]
)
def test_embeddings(model_path: Callable[[str], Path], tmp_path: Path, recipe: str | None, least: float) -> None:
    convert(model_path("minilm"), tmp_path / "model.gguf", recipe)
    with pyllm.load(tmp_path / "model.gguf") as llm:
        got = llm.embed(TEXTS)[:, :N_COLUMNS]
    cosines = np.sum(got * WANTED, 1) / np.linalg.norm(got, axis=1) / np.linalg.norm(WANTED, axis=1)
    assert cosines.min() >= least
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.linalg.norm(WANTED, axis=1), rtol=0.02)
