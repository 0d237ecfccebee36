"""Converted checkpoints against transformers' logits (make_convert.py wrote both)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pyllm
from cuda_devices import unavailable
from pyllm import archs, backends
from pyllm.backends.base import Backend, Batch
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats
from pyllm_convert import Conversion, convert

FOLDER = Path(__file__).parent / "convert"
CASES = sorted(path.parent.name for path in FOLDER.glob("*/logits.npy"))
LIMIT = 1e-5
"""NMSE against transformers, everything in float32."""
OPTIONS = ExecutionOptions(
    n_pages=2, page_size=16, max_tokens=32, max_seqs=1, max_rows=32, n_slots=1, kv_dtype="f32", n_threads=1
)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if (reason := unavailable(request.param)) is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return backends.get(request.param)


@pytest.mark.parametrize("case", CASES)
def test_logits(backend: Backend, case: str) -> None:
    wanted = np.load(FOLDER / case / "logits.npy")
    got = logits(backend, FOLDER / case, len(wanted))
    error = np.mean((got - wanted) ** 2, dtype=np.float64) / np.mean(wanted**2, dtype=np.float64)
    assert error <= LIMIT


def test_bias_of_experts_as_a_matrix_of_one_row(backend: Backend) -> None:
    """As llama.cpp's converter writes ERNIE's."""

    def as_there(t: TensorInfo) -> TensorInfo:
        return replace(t, shape=(1, *t.shape)) if t.name.endswith("exp_probs_b.bias") else t

    case = FOLDER / "ernie4_5-moe"
    assert np.array_equal(logits(backend, case, 24, as_there), logits(backend, case, 24))


@pytest.mark.parametrize("case", sorted(path.parent.name for path in FOLDER.glob("*/scores.npy")))
def test_scores(backend: Backend, case: str, tmp_path: Path) -> None:
    """A classifier's, before they become shares."""
    path, wanted = tmp_path / "model.gguf", np.load(FOLDER / case / "scores.npy")
    convert(FOLDER / case, path, tokenizer=False)
    with pyllm.load(path, backend=backend.name, kv_dtype="f32") as llm:
        shares = llm.classify(tokens(24))
    assert isinstance(shares, dict)
    likely = np.exp(wanted - wanted.max())
    likely = 1 / (1 + np.exp(-wanted)) if len(wanted) == 1 else likely / likely.sum()
    assert list(shares.values()) == pytest.approx(likely.tolist(), abs=1e-3)


def tokens(n: int) -> list[int]:
    """Those of make_convert.py."""
    return [1 + (i * i * 31 + i * 17 + 5) % 95 for i in range(n)]


def logits(
    backend: Backend, folder: Path, n: int, change: Callable[[TensorInfo], TensorInfo] = lambda t: t
) -> NDArray[np.float32]:
    """Logits of all tokens, float32 [n, vocabulary], or an encoder's states [n, n_embd], for a context that just holds
    them, after a change of tensors."""
    with Conversion(folder, tokenizer=False) as model:
        infos = {t.name: change(t) for t in in_float32(model)}
        metadata = {key: value.value for key, value in model.metadata.items()}
    arch = archs.load(metadata, infos, -(-n // 16) * 16)
    executable = backend.compile(arch.program, arch.tensors, OPTIONS)
    try:
        batch = Batch(executable.options)
        batch.add(tokens(n), 0, [1, 0], "all", saves=[(n, 0)] if arch.program.slots else [])
        return executable.run(batch, "logits" if arch.program.logits else "hidden").copy()
    finally:
        executable.close()


def in_float32(model: Conversion) -> Iterator[TensorInfo]:
    """The tensors as a file in F32 has them."""
    for t in model.tensors.values():
        rows = t.read(0, t.values.n_rows)
        values = formats.get(t.format).decode(rows)
        yield TensorInfo(t.name, t.shape, "F32", values.view(np.uint8).reshape(-1))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fresh_weights(case: str, tmp_path: Path) -> None:
    """The same with other random weights, where transformers is installed."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import make_convert

    made = make_convert.CASES[case]
    make_convert.make(tmp_path / case, made, seed=1000 + CASES.index(case))
    wanted = np.load(tmp_path / case / "logits.npy")
    got = logits(backends.get("reference"), tmp_path / case, len(wanted))
    assert np.mean((got - wanted) ** 2, dtype=np.float64) <= LIMIT * np.mean(wanted**2, dtype=np.float64)
