"""The engine on models whose encoder reads the prompt: an answer is that of its prompt, whatever the company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from arch_models import ArchModel
from cuda_devices import unavailable
from pyllm import archs, backends
from pyllm.archs import Architecture
from pyllm.backends.base import Backend, Batch
from pyllm.config import ExecutionOptions, SamplingParams
from pyllm.engine import Engine, GeneratedToken, Generation, GenerationRequest
from pyllm.engine.encoding import Encoder
from pyllm.errors import BackendError, ContextFullError, RequestError

GREEDY = SamplingParams(temperature=0)
N_CTX = 96
OPTIONS = ExecutionOptions(
    n_pages=24, page_size=16, max_tokens=32, max_seqs=8, max_rows=20, kv_dtype="f32", n_threads=2
)
FOR_ENCODER = replace(OPTIONS, n_pages=6, max_tokens=N_CTX, max_seqs=1, max_rows=1)
LENGTHS = (5, 48, 20, 33, 1, 96, 40, 41, 2, 3)
"""Of prompts, which hold all of the pages and more."""


@pytest.fixture(params=["reference", "cpu", "mlx"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if (reason := unavailable(request.param)) is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return backends.get(request.param)


@pytest.fixture(params=["t5", "t5.ungated"])
def arch(request: pytest.FixtureRequest) -> Architecture:
    model = ArchModel.load(request.param)
    return archs.load(model.all_metadata, model.tensors, N_CTX)


@pytest.fixture
def engine(backend: Backend, arch: Architecture) -> Iterator[Engine]:
    decoder = backend.compile(arch.program, arch.tensors, OPTIONS)
    assert arch.program.encoder is not None
    encoder = decoder.beside(arch.program.encoder, arch.tensors, FOR_ENCODER)
    encoder = encoder or backend.compile(arch.program.encoder, arch.tensors, FOR_ENCODER)
    made = Engine(decoder, n_ctx=N_CTX, n_vocab=arch.n_vocab, encoder=Encoder(encoder, decoder, arch.start))
    yield made
    made.close()


def prompt(engine: Engine, n: int) -> list[int]:
    return np.random.default_rng(n).integers(1, engine.n_vocab, n).tolist()


def ask(engine: Engine, n: int, max_tokens: int = 20) -> Generation[GeneratedToken]:
    return engine.submit(GenerationRequest(prompt(engine, n), GREEDY, max_tokens=max_tokens))


def test_answers_are_the_most_likely_tokens(engine: Engine, arch: Architecture) -> None:
    """By the logits of the start token and the answer in one step of executables of their own."""
    answer = [token.id for token in ask(engine, 40)]
    both = [backends.get("reference").compile(p, arch.tensors, replace(OPTIONS, max_tokens=N_CTX, max_rows=N_CTX))
            for p in (arch.program, arch.program.encoder) if p is not None]  # fmt: skip
    reader = Encoder(both[1], both[0], arch.start)
    reader.read(np.array(prompt(engine, 40), np.int32), [7, 2, 5])
    batch = Batch(both[0].options)
    batch.add([arch.start, *answer[:-1]], 0, [7, 2, 5], "all", source=40)
    logits = both[0].run(batch)
    assert len(answer) == 20
    assert logits.argmax(axis=1).tolist() == answer
    reader.close()
    both[0].close()


def test_many_at_once_give_what_each_gives_alone(engine: Engine) -> None:
    together = [ask(engine, n) for n in LENGTHS]
    answers = [[token.id for token in generation] for generation in together]
    assert [generation.n_prompt for generation in together] == list(LENGTHS)
    assert answers == [[token.id for token in ask(engine, n)] for n in LENGTHS]
    assert len({tuple(answer) for answer in answers}) > 5
    engine.check()


def test_answers_that_lose_their_pages_are_the_same(engine: Engine) -> None:
    """Long answers fill the cache: the youngest begins anew, and its prompt is read again."""
    together = [ask(engine, n, 90) for n in (3, 4, 5, 6)]
    answers = [[token.id for token in generation] for generation in together]
    assert answers == [[token.id for token in ask(engine, n, 90)] for n in (3, 4, 5, 6)]


def test_a_prompt_that_fails_to_be_read_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [token.id for token in ask(engine, 20)]
    running = ask(engine, 33, 90)
    next(running)
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "read", _fail)
        with pytest.raises(BackendError, match="lost"):
            list(ask(engine, 20))
    running.cancel()
    assert [token.id for token in ask(engine, 20)] == wanted
    engine.check()


def _fail(*_: object) -> None:
    raise BackendError("the device was lost")


def test_what_an_encoder_does_not_give_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="encoder reads"):
        engine.logits([1, 2])
    with pytest.raises(RequestError, match="encoder reads"):
        engine.hidden([1, 2])
    with pytest.raises(RequestError, match="prompt_logprobs"):
        engine.submit(GenerationRequest([1, 2], GREEDY, prompt_logprobs=0))
    with pytest.raises(ContextFullError, match="97 tokens"):
        ask(engine, N_CTX + 1)
