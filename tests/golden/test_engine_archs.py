"""The engine on real architectures: whatever the company and the cuts, logits and tokens are those of one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arch_models import N_TOKENS, ArchModel
from cuda_devices import unavailable
from pyllm import archs, backends
from pyllm.config import ExecutionOptions, SamplingParams
from pyllm.engine import Engine, GeneratedToken, Generation, GenerationRequest
from pyllm.errors import RequestError

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(params=["llama-dense", "gemma3-dense", "qwen35-dense", "rwkv7", "mamba2", "falcon-h1"])
def model(request: pytest.FixtureRequest) -> ArchModel:
    return ArchModel.load(request.param)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def engine(request: pytest.FixtureRequest, model: ArchModel, cuda_devices: None) -> Iterator[Engine]:
    if (reason := unavailable(request.param)) is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    backend = backends.get(request.param)
    architecture = archs.load(model.all_metadata, model.tensors, 96)
    options = ExecutionOptions(
        n_pages=24, page_size=16, max_tokens=32, max_seqs=8, max_rows=20, kv_dtype="f32", n_slots=20
    )
    executable = backend.compile(architecture.program, architecture.tensors, options)
    engine = Engine(executable, n_ctx=96, n_vocab=architecture.n_vocab)
    yield engine
    engine.close()


def test_logits_are_llama_cpps(engine: Engine, model: ArchModel) -> None:
    running = engine.submit(GenerationRequest([1, 2, 3], GREEDY, max_tokens=90))
    next(running)
    logits = engine.logits(model.tokens)
    assert logits.shape == (N_TOKENS, model.n_vocab)
    assert model.nmse(logits) <= 1e-5
    assert engine.hidden(model.tokens).shape[0] == N_TOKENS


def test_eight_at_once_give_what_each_gives_alone(engine: Engine) -> None:
    random = np.random.default_rng(0)
    common = random.integers(1, engine.n_vocab, 20).tolist()
    prompts = [[*common, *random.integers(1, engine.n_vocab, i + 1).tolist()] for i in range(8)]

    def ask(prompt: list[int]) -> GenerationRequest:
        return GenerationRequest(prompt, GREEDY, max_tokens=24)

    together = [engine.submit(ask(p)) for p in prompts]
    answers = [[t.id for t in g] for g in together]
    assert [g.n_cached for g in together] == [0] + [16] * 7
    for prompt, answer in zip(prompts, answers, strict=True):
        engine.between_steps(engine.scheduler.clear)
        alone = engine.submit(ask(prompt))
        assert [t.id for t in alone] == answer
        assert alone.n_cached == 0
    engine.check()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_gives_the_same_to_the_bit(engine: Engine, data: st.DataObject) -> None:
    """Of prompts that share their beginnings: cut, in company, cancelled, preempted, gone on with at any checkpoint."""
    if engine.executable.side is None:
        pytest.skip("products round by the number of rows, so a cut shows")
    beginning = np.random.default_rng(1).integers(1, engine.n_vocab, 60).tolist()

    def ask() -> GenerationRequest:
        n = data.draw(st.integers(1, 60))
        prompt = [*beginning[:n], *data.draw(st.lists(st.integers(1, 3), max_size=9))]
        n_prefix, n_tokens = data.draw(st.sampled_from([None, n])), data.draw(st.integers(1, 95 - len(prompt)))
        return GenerationRequest(prompt, GREEDY, max_tokens=n_tokens, n_prefix=n_prefix, logprobs=0)

    def finished(generation: Generation[GeneratedToken]) -> list[tuple[int, float | None]]:
        return [(token.id, token.logprob) for token in generation]

    running = []
    for _ in range(data.draw(st.integers(1, 4))):
        requests = [ask() for _ in range(data.draw(st.integers(1, 4)))]
        generations = [engine.submit(request) for request in requests]
        for request, generation in zip(requests, generations, strict=True):
            if data.draw(st.booleans()):
                running.append((request, finished(generation)))
            else:
                generation.cancel()
        engine.check()
    for request, got in running:
        engine.between_steps(engine.scheduler.clear)
        assert finished(engine.submit(request)) == got


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_whole_sequences(backend: str) -> None:
    """A model whose tokens see later ones: each sequence is in one step, beside others, and keeps no pages."""
    if (reason := unavailable(backend)) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    model = ArchModel.load("llada-moe-moe.regrouped")
    architecture = archs.load(model.all_metadata, model.tensors, N_TOKENS)
    options = ExecutionOptions(n_pages=12, page_size=16, max_tokens=100, max_seqs=4, max_rows=100, kv_dtype="f32")
    executable = backends.get(backend).compile(architecture.program, architecture.tensors, options)
    engine = Engine(executable, n_ctx=192, n_vocab=architecture.n_vocab)
    prompts = [model.tokens[:n] for n in (96, 50, 31, 1, 70)]
    rows: dict[int, np.ndarray] = {}

    def take(i: int) -> Callable[[int, np.ndarray], None]:
        def keep(first: int, block: np.ndarray) -> None:
            assert first == 0, "a sequence was cut"
            rows[i] = block.copy()

        return keep

    assert list(engine.score([(prompt, take(i)) for i, prompt in enumerate(prompts)])) == list(range(5))
    assert model.nmse(rows[0]) <= 1e-5
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(rows[i], engine.logits(prompt))
    assert engine.pool.n_available == 12
    with pytest.raises(RequestError, match="one step of 100 tokens"):
        engine.logits([1] * 101)
    with pytest.raises(RequestError, match="does not generate"):
        engine.submit(GenerationRequest([1, 2], GREEDY))
    engine.check()
    engine.close()
