"""Answers with drafts on the CPU: equal to those without, to the bit of each probability."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import oracle
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import Shape, transformer

from pyllm import backends
from pyllm.backends.base import Executable
from pyllm.backends.cpu.linear import wide_supported
from pyllm.config import ExecutionOptions, SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.engine.sequence import Sequence as Tokens
from pyllm.engine.speculation import Drafter, DraftModel, Lookup, Offer, likely, speculation
from pyllm.engine.transformer import Plain
from pyllm.jit.target import host

SHAPES = {"grouped": Shape(), "window": Shape(window=40), "experts": Shape(n_experts=4)}
N_CTX = 160
WEIGHTS: dict[int, Any] = {}
"""Of executables."""
MODELS = [("grouped", "Q4_K"), ("window", "Q8_0"), ("experts", "Q4_0")]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def executable(request: pytest.FixtureRequest) -> Iterator[Executable]:
    shape, fmt = request.param
    oracle.need("cpu")
    options = ExecutionOptions(n_pages=40, page_size=16, max_tokens=64, max_seqs=4, max_drafts=16, n_threads=2)
    model = transformer(SHAPES[shape])
    exe = backends.get("cpu").compile(model.program, model.tensors(fmt), options)
    WEIGHTS[id(exe)] = model.tensors(fmt)
    yield exe
    exe.close()


class Kept(Executable):
    """An executable that outlives engines."""

    def __init__(self, inner: Executable) -> None:
        self._inner = inner
        self.program, self.options, self.n_candidates = inner.program, inner.options, inner.n_candidates
        self.side = inner.side
        self.run_stage, self.interrupt, self.memory = inner.run_stage, inner.interrupt, inner.memory  # type: ignore[method-assign]
        self.begin, self.proceed = inner.begin, inner.proceed  # type: ignore[method-assign]

    def run_stage(self, *given: Any) -> Any: ...
    def interrupt(self) -> None: ...
    def memory(self) -> dict[str, int]: ...  # type: ignore[empty-body]
    def close(self) -> None:
        pass


class Told(Drafter):
    """Knows the answers, and is wrong now and then."""

    priors = (0.9,)
    is_free = False

    def __init__(self, known: Sequence[list[int]], wrong_every: int) -> None:
        self._known, self._wrong_every, self._count = known, wrong_every, itertools.count(1)

    def offer(self, seq: Tokens) -> Offer:
        return Offer(0, 6)

    def draft(self, wanted: Sequence[tuple[Tokens, int]]) -> list[list[int]]:
        return [self._tell(seq.tokens[: seq.n_tokens].tolist(), n) for seq, n in wanted]

    def _tell(self, tokens: list[int], n: int) -> list[int]:
        known = next((k for k in self._known if k[: len(tokens)] == tokens), tokens)
        draft = (known[len(tokens) :] + [0] * n)[:n]
        return [t if next(self._count) % self._wrong_every else (t + 1) % 96 for t in draft]


@pytest.fixture(autouse=True)
def _all_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many drafts as there is room for: not by the clock."""

    def lengths(prospects: Sequence[Any], most: int, times: Any) -> list[int]:
        return [min(prospect.n, most // len(prospects)) for prospect in prospects]

    monkeypatch.setattr(speculation, "lengths", lengths)


def answers(exe: Executable, requests: Sequence[GenerationRequest], drafter: Drafter | None) -> list[Any]:
    engine = Engine(Kept(exe), n_ctx=N_CTX, n_vocab=Shape().n_vocab, drafters=[] if drafter is None else [drafter])
    try:
        generations = engine.submit_all([(request, Plain()) for request in requests])
        return [(list(generation), generation.finish_reason) for generation in generations]
    finally:
        engine.close()


SAMPLINGS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1, temperature=1.0),
    SamplingParams(seed=2, temperature=1.3, repeat_penalty=1.2, top_k=30),
]


@st.composite
def requests(draw: st.DrawFn) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            draw(st.lists(st.integers(0, 20), min_size=1, max_size=50)),
            draw(st.sampled_from(SAMPLINGS)),
            max_tokens=draw(st.integers(1, 60)),
            logprobs=draw(st.sampled_from([None, 1])),
            paced=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(asked=requests(), wrong_every=st.integers(2, 9), make=st.sampled_from(["told", "lookup"]))
def test_answers_and_their_probabilities_are_those_without(
    executable: Executable, asked: list[GenerationRequest], wrong_every: int, make: str
) -> None:
    plain = [answers(executable, [request], None)[0] for request in asked]
    known = [[*r.tokens, *(t.id for t in tokens)] for r, (tokens, _) in zip(asked, plain, strict=True)]
    makers: dict[str, Callable[[], Drafter]] = {"told": lambda: Told(known, wrong_every), "lookup": Lookup}
    assert answers(executable, asked, makers[make]()) == plain


@pytest.mark.skipif(wide_supported(host()), reason="with AMX, tokens that are read together are computed otherwise")
def test_a_model_that_drafts_for_itself_is_always_right(
    executable: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likely, "_LEAST_SURE", 0.0)
    asked = [GenerationRequest([i, 2, 3, 4], SAMPLINGS[0], max_tokens=50) for i in range(3)]
    plain = [tokens for tokens, _ in answers(executable, asked, None)]
    again = backends.get("cpu").compile(executable.program, WEIGHTS[id(executable)], executable.options)
    drafter = DraftModel(again, Shape().n_vocab, again.close)
    engine = Engine(Kept(executable), n_ctx=N_CTX, n_vocab=Shape().n_vocab, drafters=[drafter])
    generations = engine.submit_all([(request, Plain()) for request in asked])
    assert [list(generation) for generation in generations] == plain
    assert all(g.n_drafted == g.n_accepted > 25 for g in generations)
    engine.close()
