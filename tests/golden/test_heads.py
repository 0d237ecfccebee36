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
from pyllm.archs import eagle3, heads
from pyllm.backends.base import Batch, Executable
from pyllm.config import ExecutionOptions

PATHS = [path for folder in ("heads", "eagle3") for path in sorted((FOLDER.parent / folder).glob("*.json"))]
MOST_ERROR = {"reference": 1e-6, "cpu": 1e-5, "mlx": 1e-5, "cuda": 1e-5}
PIECES = {"whole": [N_TOKENS], "pieces": [1, 30, 2, 1, N_TOKENS - 34]}


def found(path: Path) -> tuple[ArchModel, ArchModel, heads.HeadModel]:
    """The model, what has the head's logits, and the head."""
    held = ArchModel.read(path)
    if path.parent.name != "eagle3":
        own = heads.find(held.all_metadata, held.tensors)
        assert own is not None
        return held, held, own
    model = ArchModel.load(path.stem)
    return model, held, eagle3.head(held.all_metadata, held.tensors, model.all_metadata, model.tensors)


def compiled(model: ArchModel, head: heads.HeadModel, backend: str) -> tuple[Executable, Executable]:
    """The trunk and the head."""
    options = ExecutionOptions(n_pages=4, max_tokens=N_TOKENS, max_seqs=1, max_rows=N_TOKENS, n_slots=2, n_threads=2)
    trunk = archs.load(model.all_metadata, model.tensors, features=head.features)
    program, tensors = head.record(None)
    main = backends.get(backend).compile(trunk.program, trunk.tensors, options)
    options = replace(options, n_slots=0)
    beside = main.beside(program, tensors, options)
    return main, beside or backends.get(backend).compile(program, tensors, options)


def logits(model: ArchModel, head: heads.HeadModel, backend: str, pieces: list[int]) -> NDArray[np.float32]:
    """The head's, given the trunk's features of the tokens before."""
    main, beside = compiled(model, head, backend)
    assert main.program.features is not None
    width = main.program.features[0].width
    batch, at, last, parts = Batch(main.options), 0, np.zeros((1, width), np.float32), []
    for i, n in enumerate(pieces):
        batch.clear()
        tokens, state_in = model.tokens[at : at + n], i % 2 if at else -1
        batch.add(tokens, at, range(4), "all", state_in=state_in, saves=[(n, (i + 1) % 2)])
        rows, features = main.run_all(batch, ["row_features", "features"])
        np.testing.assert_allclose(rows, features, rtol=1e-4, atol=1e-4)
        before = np.concatenate([last, features[:-1]])
        last = features[-1:].copy()
        batch.n_slots = 0
        parts.append(beside.run_all(batch, ["logits"], [before])[0].copy())
        batch.n_slots = main.options.n_slots
        at += n
    beside.close()
    main.close()
    return np.concatenate(parts)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("backend", MOST_ERROR)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_logits_are_those_of_llama_cpp(path: Path, backend: str, pieces: str, cuda_devices: None) -> None:
    if (reason := unavailable(backend)) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    model, held, head = found(path)
    assert held.nmse(logits(model, head, backend, PIECES[pieces])) <= MOST_ERROR[backend]


def test_the_output_matrix_is_packed_once() -> None:
    model, _, head = next(found(path) for path in PATHS if path.stem == "qwen35-dense")
    main, beside = compiled(model, head, "cpu")
    program, tensors = head.record(None)
    trunk = archs.load(model.all_metadata, model.tensors, features=head.features)
    backend, n_bytes = backends.get("cpu"), 4 * model.weights["output.weight"].size
    assert beside.memory() == backend.memory_beside(program, tensors, beside.options, main.program, trunk.tensors)
    assert beside.memory()["weights"] + n_bytes == backend.memory_needed(program, tensors, beside.options)["weights"]
    beside.close()
    main.close()
