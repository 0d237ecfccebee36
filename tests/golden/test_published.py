"""Models in published sizes, cut to a few layers, against llama.cpp's logits; `published/` holds all but weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arch_models import N_TOKENS, ArchModel
from pyllm import archs, backends
from pyllm.backends.base import Batch
from pyllm.config import ExecutionOptions
from pyllm.gguf import open_gguf

MODELS = sorted((Path(__file__).parent / "published").glob("*.json"))
LIMITS = {"reference": 1e-6, "cpu": 1e-5}
"""NMSE, F32 weights and F32 cache."""
CUTS = ([N_TOKENS], [1, 30, 7, 40, 1, 1, 16])
OPTIONS = ExecutionOptions(
    n_pages=6, page_size=16, max_tokens=N_TOKENS, max_seqs=1, max_rows=N_TOKENS, n_slots=2, kv_dtype="f32", n_threads=2
)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_logits(path: Path, tmp_path: Path) -> None:
    """Up to 7 GB on disk and once more in memory."""
    model = ArchModel.read(path)
    with open_gguf(model.write(tmp_path / "model.gguf")) as file:
        arch = archs.load(file.metadata, file.tensors, 256)
        for name, limit in LIMITS.items():
            executable = backends.get(name).compile(arch.program, arch.tensors, OPTIONS)
            for cuts in CUTS:
                batch, rows, at = Batch(OPTIONS), [], 0
                for i, n in enumerate(cuts):
                    batch.clear()
                    states = (1 - i % 2 if i else -1, [(n, i % 2)]) if arch.program.slots else ()
                    batch.add(model.tokens[at : at + n], at, [4, 0, 2, 5, 1, 3], "all", False, *states)
                    rows.append(executable.run(batch).copy())
                    at += n
                assert model.nmse(np.concatenate(rows)) <= limit, f"{name}, in {len(cuts)} pieces"
            executable.close()
