"""The CUDA backend on a real card: ops, formats, whole models, splits, graphs, candidates, memory. Nothing is timed.

Kernels by themselves run on a card in the tests of their own files, which are marked likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray
from oracle import OPTIONS, Shape, Step, nmse, transformer

import arch_models
from arch_models import ArchModel
from pyllm import archs, backends
from pyllm.backends.base import Batch, DeviceInfo
from pyllm.backends.split import compile_placed
from pyllm.config import ExecutionOptions, PlacementOptions, SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import BackendError, OutOfMemoryError
from pyllm.gguf import open_gguf
from pyllm.testing import conformance

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> DeviceInfo:
    """The first card, not an emulated one."""
    monkeypatch.delenv("PYLLM_CUDA_EMULATOR", raising=False)
    probe = backends.get("cuda").probe()
    if not probe.available:
        pytest.skip(probe.reason)
    return backends.get("cuda").devices()[0]


# --- the table of ops and formats


@pytest.mark.parametrize("check", conformance.checks(""))
def test_conforms(check: str) -> None:
    conformance.checks("cuda")[check]()


@pytest.mark.parametrize("check", conformance.checks("", cross=True))
def test_every_format(check: str) -> None:
    conformance.checks("cuda", cross=True)[check]()


# --- whole models


def logits(model: ArchModel, options: ExecutionOptions, cuts: list[int]) -> NDArray[np.float32]:
    arch = archs.load(model.all_metadata, model.tensors, 256)
    exe = backends.get("cuda").compile(arch.program, arch.tensors, options)
    got, position = [], 0
    for n in cuts:
        got.append(oracle.run(exe, [Step(model.tokens[position : position + n], position, [3, 11, 0, 5, 8, 1, 2])]))
        position += n
    exe.close()
    return np.concatenate(got)


@pytest.mark.parametrize("name", arch_models.names())
@pytest.mark.parametrize("cuts", [[96], [1, 31, 7, 40, 3, 14], [1] * 96], ids=["whole", "chunks", "single"])
def test_golden_logits(name: str, cuts: list[int]) -> None:
    """As llama.cpp's, with weights and cache of F32."""
    model = ArchModel.load(name)
    assert model.nmse(logits(model, replace(OPTIONS, n_pages=12), cuts)) <= 1e-5


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
def test_narrow_caches(kv_dtype: str) -> None:
    model = ArchModel.load("llama-dense")
    options = replace(OPTIONS, kv_dtype=kv_dtype)  # type: ignore[arg-type]
    assert model.nmse(logits(model, options, [96])) <= (1e-5 if kv_dtype == "f16" else 1e-3)


# --- splits

# Quantized activations make experts of a random model choose otherwise: those are compared in float32.
SPLIT = {"F32": Shape(n_layers=4, n_experts=5, n_used=2), "Q4_K": Shape(n_layers=4)}


@pytest.mark.parametrize(
    "placement",
    [
        PlacementOptions(n_gpu_layers=0),
        PlacementOptions(n_gpu_layers=1),
        PlacementOptions(n_gpu_layers=2),
        PlacementOptions(n_gpu_layers="all"),
        PlacementOptions(n_gpu_layers="all", n_cpu_moe=3),
        PlacementOptions(n_gpu_layers="all", kv_offload=False),
        PlacementOptions(n_gpu_layers="all", override_tensors=((r"blk\.1\.ffn", "cpu"),)),
    ],
    ids=["none", "head", "half", "all", "experts on the cpu", "kv on the cpu", "pattern"],
)
@pytest.mark.parametrize("fmt", SPLIT)
def test_a_split_gives_the_cpus_logits(card: DeviceInfo, placement: PlacementOptions, fmt: str) -> None:
    oracle.need("cpu")
    model = transformer(SPLIT[fmt])
    tensors = model.tensors(fmt)
    devices = [*backends.get("cpu").devices(), card]
    batches = oracle.ragged_batches(SPLIT[fmt].n_vocab)
    cpu = oracle.compiled("cpu", model, tensors)
    wanted = [oracle.run(cpu, batch) for batch in batches]
    cpu.close()
    exe, _ = compile_placed(model.program, tensors, placement, devices, OPTIONS)
    got = [oracle.run(exe, batch) for batch in batches]
    exe.close()
    for a, b in zip(got, wanted, strict=True):
        assert nmse(a, b) <= (1e-7 if fmt == "F32" else 1e-3)


# --- graphs, candidates, the engine


@pytest.mark.parametrize("fmt", ["Q8_0", "Q4_K", "F16"])
def test_a_graph_computes_what_its_launches_did(fmt: str) -> None:
    """A step's first use of a shape launches, the second captures, the others replay."""
    model = transformer()
    exe = oracle.compiled("cuda", model, model.tensors(fmt))
    first, tokens = [4, 2, 7], oracle.random_tokens(20, 160)
    results = []
    for _ in range(4):
        oracle.run(exe, [Step(tokens, 0, first, "none")])
        results.append(oracle.run(exe, [Step([5], 20, first), Step([9], 0, [1])]))
    exe.close()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_candidates_are_the_largest_logits() -> None:
    model = transformer(Shape(n_vocab=5000))
    exe = oracle.compiled("cuda", model, model.tensors("Q8_0"))
    assert exe.n_candidates == 128
    for n in (1, 3):
        batch = Batch(exe.options)
        batch.add(oracle.random_tokens(40, 5000), 0, [4, 2, 7], [39, 11, 7][:n][::-1])
        logits = exe.run(batch).astype(np.float64)
        for _ in range(3):  # by launches, and by a graph
            found = exe.run(batch, "candidates")
            ids = np.argsort(-logits, axis=1, kind="stable")[:, :128]
            np.testing.assert_array_equal(found.ids, ids)
            np.testing.assert_array_equal(found.logits, np.take_along_axis(logits, ids, axis=1))
            np.testing.assert_allclose(found.log_sum, np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)
    exe.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    model = ArchModel.load("llama-dense")
    architecture = archs.load(model.all_metadata, model.tensors, 96)
    options = ExecutionOptions(n_pages=24, page_size=16, max_tokens=32, max_seqs=8, max_rows=20, kv_dtype="f32")
    executable = backends.get("cuda").compile(architecture.program, architecture.tensors, options)
    engine = Engine(executable, n_ctx=96, n_vocab=architecture.n_vocab)
    yield engine
    engine.close()


def test_sampled_tokens_are_those_of_all_logits(engine: Engine) -> None:
    """With the same seed: from candidates, and from the vocabulary where a positive bias asks for that."""
    sampling = SamplingParams(seed=7, temperature=1.3, repeat_penalty=1.1)
    few = [t.id for t in engine.submit(GenerationRequest([1, 5, 9], sampling, max_tokens=40))]
    unlikely = replace(sampling, logit_bias={0: 1e-30})
    assert [t.id for t in engine.submit(GenerationRequest([1, 5, 9], unlikely, max_tokens=40))] == few


def test_eight_at_once(engine: Engine) -> None:
    """Answers of all lengths side by side: each is a likely one by the logits that it gets alone."""
    prompts = [oracle.random_tokens(3 + 4 * i, engine.n_vocab, i) for i in range(8)]
    requests = [GenerationRequest(p, SamplingParams(temperature=0), max_tokens=24) for p in prompts]
    answers = [[t.id for t in g] for g in [engine.submit(r) for r in requests]]
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = engine.logits([*prompt, *answer])[len(prompt) - 1 : -1]
        chosen = rows[np.arange(len(answer)), answer]
        assert (chosen >= rows.max(axis=1) - 1e-3 * np.abs(rows).max()).all()
    engine.check()


# --- memory and failure


def free_memory() -> int:
    free = backends.get("cuda").devices()[0].memory_free
    assert free is not None
    return free


def test_memory_is_given_back() -> None:
    model = transformer(Shape(n_vocab=1000))
    tensors = model.tensors("F16")
    options = replace(OPTIONS, n_pages=4096)  # 64 MB and more

    def use() -> int:
        exe = oracle.compiled("cuda", model, tensors, options)
        oracle.run(exe, [Step([1, 2, 3], 0, [1])])
        held, predicted = exe.memory(), backends.get("cuda").memory_needed(model.program, tensors, options)
        for what in ("weights", "kv", "work"):
            assert held[what] == predicted[what]
        total = sum(held.values())
        exe.close()
        return total

    held = use()  # the first also loads what stays: context, modules
    before = free_memory()
    use()
    assert before - free_memory() < held / 4


def test_too_little_memory_is_said_before_it_is_taken() -> None:
    model = transformer()
    tensors = model.tensors("F16")
    oracle.compiled("cuda", model, tensors).close()  # what the process itself takes is there
    before = free_memory()
    with pytest.raises(OutOfMemoryError, match="GiB"):
        oracle.compiled("cuda", model, tensors, replace(OPTIONS, n_pages=1 << 30))
    assert abs(before - free_memory()) < 64 << 20
    exe = oracle.compiled("cuda", model, tensors)
    assert np.isfinite(oracle.run(exe, [Step([1, 2, 3], 0, [1])])).all()
    exe.close()


def test_a_card_that_is_not_there() -> None:
    model, n = transformer(), len(backends.get("cuda").devices())
    with pytest.raises(BackendError):
        oracle.compiled("cuda", model, model.tensors("F16"), replace(OPTIONS, device=n))


# --- a real file


def test_smollm2(model_path: Callable[[str], Path]) -> None:
    """transformers (torch, float32) finds these most likely tokens."""
    tokens = [504, 3575, 282, 4649, 314]
    with open_gguf(model_path("smollm2")) as file:
        program = archs.load(file.metadata, file.tensors, 512).program
        exe = backends.get("cuda").compile(program, file.tensors, replace(OPTIONS, n_pages=32, kv_dtype="f16"))
        row = oracle.run(exe, [Step(tokens, 0, [3], "last")])[0]
        batch = Batch(exe.options)
        batch.add(tokens, 0, [3])
        found = exe.run(batch, "candidates")
        exe.close()
    best: NDArray[np.intp] = np.argsort(-row)[:3]
    assert row[best] == pytest.approx([17.37, 14.89, 13.25], abs=0.5)
    assert found.ids[0, :3].tolist() == best.tolist()
