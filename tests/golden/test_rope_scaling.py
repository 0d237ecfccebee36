"""Rope scaling against llama.cpp: `rope_scaling.json` holds its logits at the last of the 96 tokens.

They were made with llama-cpp-python 0.3.36 (F32 cache, n_ctx 96) from the models in ../shared/data/archs, changed as
`variants.py` says and written with the gguf package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import variants
from numpy.typing import NDArray

from pyllm import archs, backends
from pyllm.backends.base import Batch
from pyllm.config import ExecutionOptions
from pyllm.gguf import open_gguf

PINS = json.loads((Path(__file__).parent / "rope_scaling.json").read_text())
OPTIONS = ExecutionOptions(n_pages=3, page_size=32, max_tokens=96, max_seqs=1, max_rows=1, kv_dtype="f32")


def logits(folder: Path, model: str, changes: dict[str, Any]) -> NDArray[np.float32]:
    with open_gguf(folder / "archs" / f"{model}.gguf") as file:
        metadata, tensors = variants.changed(file.metadata, file.tensors, changes)
    arch = archs.load(metadata, tensors, 96)
    executable = backends.get("reference").compile(arch.program, tensors, OPTIONS)
    batch = Batch(OPTIONS)
    batch.add([1 + (i * i * 31 + i * 17 + 5) % 127 for i in range(96)], 0, [0, 1, 2])
    return executable.run(batch)[0]


@pytest.mark.parametrize("case", variants.CASES)
def test_rope_scaling(shared_data: Path, case: str) -> None:
    model, changes = variants.CASES[case]
    wanted = np.array(PINS[case], np.float32)
    error = np.mean((logits(shared_data, model, changes) - wanted) ** 2) / np.mean(wanted**2)
    assert error <= 1e-6
    if "none" not in case:  # the test is sharp enough: without the scaling, the error is far larger
        unscaled = logits(shared_data, model, {"rope.scaling.type": "none"})
        assert np.mean((unscaled - wanted) ** 2) / np.mean(wanted**2) > 100 * max(error, 1e-8)
