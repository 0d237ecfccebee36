"""Heads that guess further tokens: their logits beside llama.cpp's, on each backend, whole and piece by piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arch_models import FOLDER, N_TOKENS, ArchModel
from cuda_devices import unavailable
from pyllm import archs, backends
from pyllm.archs import heads
from pyllm.backends.base import Batch, Executable
from pyllm.config import ExecutionOptions

PATHS = sorted((FOLDER.parent / "heads").glob("*.json"))
MOST_ERROR = {"reference": 1e-6, "cpu": 1e-5, "mlx": 1e-5, "cuda": 1e-5}
PIECES = {"whole": [N_TOKENS], "pieces": [1, 30, 2, 1, N_TOKENS - 34]}


def compiled(model: ArchModel, backend: str) -> tuple[Executable, Executable]:
    """The trunk and the head."""
    options = ExecutionOptions(n_pages=4, max_tokens=N_TOKENS, max_seqs=1, max_rows=N_TOKENS, n_slots=2, n_threads=2)
    trunk = archs.load(model.all_metadata, model.tensors, features=True)
    program, tensors = heads.head(model.all_metadata, model.tensors)
    main = backends.get(backend).compile(trunk.program, trunk.tensors, options)
    options = replace(options, n_slots=0)
    head = main.beside(program, tensors, options)
    return main, head or backends.get(backend).compile(program, tensors, options)


def logits(model: ArchModel, backend: str, pieces: list[int]) -> NDArray[np.float32]:
    """The head's, given the trunk's features of the tokens before."""
    main, head = compiled(model, backend)
    batch, at, last, found = Batch(main.options), 0, np.zeros((1, main.program.n_embd), np.float32), []
    for i, n in enumerate(pieces):
        batch.clear()
        batch.add(
            model.tokens[at : at + n], at, range(4), "all", state_in=(i % 2 if at else -1), saves=[(n, (i + 1) % 2)]
        )
        rows, features = main.run_all(batch, ["row_features", "features"])
        np.testing.assert_allclose(rows, features, rtol=1e-4, atol=1e-4)
        before = np.concatenate([last, features[:-1]])
        last = features[-1:].copy()
        batch.n_slots = 0
        found.append(head.run_all(batch, ["logits"], [before])[0].copy())
        batch.n_slots = main.options.n_slots
        at += n
    head.close()
    main.close()
    return np.concatenate(found)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("backend", MOST_ERROR)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_logits_are_those_of_llama_cpp(path: Path, backend: str, pieces: str, cuda_devices: None) -> None:
    if (reason := unavailable(backend)) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    model = ArchModel.read(path)
    assert model.nmse(logits(model, backend, PIECES[pieces])) <= MOST_ERROR[backend]


def test_the_output_matrix_is_packed_once() -> None:
    model = next(ArchModel.read(path) for path in PATHS if path.stem == "qwen35-dense")
    main, head = compiled(model, "cpu")
    program, tensors = heads.head(model.all_metadata, model.tensors)
    trunk = archs.load(model.all_metadata, model.tensors, features=True)
    backend, n_bytes = backends.get("cpu"), 4 * model.weights["output.weight"].size
    assert head.memory() == backend.memory_beside(program, tensors, head.options, main.program, trunk.tensors)
    assert head.memory()["weights"] + n_bytes == backend.memory_needed(program, tensors, head.options)["weights"]
    head.close()
    main.close()
