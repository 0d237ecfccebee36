"""Whole architectures against llama.cpp's logits, or states of encoders: tiny models of which `archs/` holds all but
the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import arch_models
from arch_models import N_TOKENS, ArchModel
from cuda_devices import unavailable
from pyllm import archs, backends
from pyllm.backends.base import Backend, Batch, Executable
from pyllm.config import ExecutionOptions
from pyllm.engine.encoding import Encoder
from pyllm.errors import BackendError

LIMITS = {"reference": 1e-6, "cpu": 1e-5, "mlx": 1e-5, "cuda": 1e-5}
"""NMSE against llama.cpp's logits, F32 weights and F32 cache."""

CUTS = {"pieces": [1, 1, 30, 7, 40, 3, 1, 1, 1, 11], "whole": [96]}
EMULATED_CUTS = {"pieces": [1, 1, 12, 7, 15, 1, 1, 2], "whole": [40]}
"""How many tokens each step has. An emulated card is slow; 40 tokens are more than a window has."""

OTHER_SOURCE = 9
"""Tokens of the source of the sequence beside."""

PAGES = [3, 11, 0, 5, 8, 1, 2, 10]
OPTIONS = ExecutionOptions(
    n_pages=12, page_size=16, max_tokens=96, max_seqs=2, max_rows=96, n_slots=3, kv_dtype="f32", n_threads=2
)


@pytest.fixture(scope="module", params=LIMITS)
def backend(request: pytest.FixtureRequest, cuda_devices: None) -> Backend:
    if (reason := unavailable(request.param)) is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return backends.get(request.param)


@pytest.fixture(scope="module", params=arch_models.names())
def model(request: pytest.FixtureRequest) -> ArchModel:
    return ArchModel.load(request.param)


@pytest.fixture(scope="module")
def executable(backend: Backend, model: ArchModel) -> Iterator[Executable | BackendError]:
    """The refusal of a model with an encoder, where the backend has no attention to a source."""
    arch = archs.load(model.all_metadata, model.tensors, 256)
    encoder = arch.program.encoder
    if encoder is not None and not backend.reads_sources:
        with pytest.raises(BackendError, match="attention to a source") as refusal:
            backend.compile(arch.program, arch.tensors, OPTIONS)
        yield refusal.value
        return
    compiled = backend.compile(arch.program, arch.tensors, OPTIONS)
    if encoder is not None:
        read_source(backend.compile(encoder, arch.tensors, OPTIONS), compiled, model.source)
    yield compiled
    compiled.close()


def read_source(encoder: Executable, decoder: Executable, source: list[int]) -> None:
    """Have the decoder's pages hold what the encoder leaves of a source, and of another one for the sequence beside."""
    both = Encoder(encoder, decoder, 0)
    both.read(np.array(source[:OTHER_SOURCE], np.int32), [4])
    both.read(np.array(source, np.int32), PAGES)
    both.close()


def test_logits(backend: Backend, model: ArchModel, executable: Executable | BackendError) -> None:
    """A variant (NAME.VARIANT) has other sizes and metadata, for which one way of cutting is enough."""
    if isinstance(executable, BackendError):
        return
    whole = executable.program.whole
    cuts = EMULATED_CUTS if backend.name == "cuda" and not whole else CUTS
    for name in ["whole"] if whole else ["pieces"] if "." in model.name else cuts:
        got = run(executable, model.tokens[: sum(cuts[name])], cuts[name])
        assert model.nmse(got) <= LIMITS[backend.name], name


def run(executable: Executable, tokens: list[int], cuts: list[int]) -> NDArray[np.float32]:
    """Logits of all tokens, or final states without a head, sent in pieces beside a second, unrelated sequence."""
    batch, parts, position, state = Batch(executable.options), [], 0, -1
    want: Literal["logits", "hidden"] = "logits" if executable.program.logits else "hidden"
    for i, n in enumerate(cuts):
        batch.clear()
        saves = [(n, i % 2)] if executable.program.slots else []
        step = tokens[position : position + n]
        batch.add(step, position, PAGES, "all", state_in=state, saves=saves, source=N_TOKENS // 2)
        if n < 90:  # another sequence at the same time must change nothing
            other = [(1, 2)] if saves else []
            batch.add([1 + position % 7], position % 32, [4, 6], "none", saves=other, source=OTHER_SOURCE)
        parts.append(executable.run(batch, want).copy())
        position, state = position + n, i % 2 if saves else -1
    return np.concatenate(parts)
