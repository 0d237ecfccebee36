"""Whole architectures against llama.cpp's logits (../shared/data/archs; its README says how they were made)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllm import archs, backends
from pyllm.backends.base import Backend, Batch, Executable
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf import open_gguf

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "archs"
MODELS = sorted(path.stem for path in FOLDER.glob("*.gguf")) or ["none"]

LIMITS = {"reference": 1e-6, "cpu": 1e-5, "mlx": 1e-5, "cuda": 1e-5}
"""NMSE against llama.cpp's logits, F32 weights and F32 cache."""

CUTS = {"whole": [96], "chunks": [1, 31, 7, 40, 3, 14], "single": [1] * 96}
PAGES = [3, 11, 0, 5, 8, 1, 2, 10]
OPTIONS = ExecutionOptions(
    n_pages=12, page_size=16, max_tokens=96, max_seqs=2, max_rows=96, kv_dtype="f32", n_threads=2
)


@pytest.fixture(scope="module", params=LIMITS)
def backend(request: pytest.FixtureRequest, cuda_devices: None) -> Backend:
    try:
        found = backends.get(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    if not (probe := found.probe()).available:
        pytest.skip(probe.reason)
    return found


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, shared_data: Path) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def executable(backend: Backend, model: str) -> Iterator[Executable]:
    with open_gguf(FOLDER / f"{model}.gguf") as file:
        arch = archs.load(file.metadata, file.tensors, 256)
        compiled = backend.compile(arch.program, file.tensors, OPTIONS)
    yield compiled
    compiled.close()


@pytest.mark.parametrize("cuts", CUTS)
def test_logits(backend: Backend, model: str, executable: Executable, cuts: str) -> None:
    wanted = np.load(FOLDER / f"{model}.logits.npy")
    n, n_vocab = wanted.shape
    tokens = [1 + (i * i * 31 + i * 17 + 5) % (n_vocab - 1) for i in range(n)]
    got = run(executable, tokens, CUTS[cuts])
    nmse = np.mean((got - wanted) ** 2, dtype=np.float64) / np.mean(wanted**2, dtype=np.float64)
    assert nmse <= LIMITS[backend.name]


def run(executable: Executable, tokens: list[int], cuts: list[int]) -> NDArray[np.float32]:
    """Logits of all tokens, sent in pieces of these sizes beside a second, unrelated sequence."""
    batch, parts, position = Batch(executable.options), [], 0
    for n in cuts:
        batch.clear()
        batch.add(tokens[position : position + n], position, PAGES, "all")
        if n < 90:  # another sequence at the same time must change nothing
            batch.add([1 + position % 7], position % 32, [4, 6], "none")
        parts.append(executable.run(batch).copy())
        position += n
    return np.concatenate(parts)
