"""The library over tiny models whose logits llama.cpp computed, on the reference backend; and how a model is found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm
from arch_models import N_TOKENS, ArchModel
from pyllm.evaluation.perplexity import perplexity
from pyllm.jit import processors
from pyllm.llm import loading

MODEL = ArchModel.load("llama-dense")


@pytest.fixture(scope="module")
def path(arch_file: Callable[[str], Path]) -> Path:
    return arch_file("llama-dense")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyllm.LLM]:
    with pyllm.load(path, backend="reference", n_ctx=128, kv_dtype="f32", max_seqs=4) as llm:
        yield llm


def greedy(llm: pyllm.LLM, prompt: list[int], n: int) -> tuple[int, ...]:
    """By definition: the most likely token after everything so far, again and again."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(llm.logits(tokens)[-1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_logits_are_llama_cpps(llm: pyllm.LLM) -> None:
    logits = llm.logits(MODEL.tokens)
    assert logits.shape == (N_TOKENS, MODEL.n_vocab)
    assert logits.dtype == np.float32
    assert MODEL.nmse(logits) <= 1e-6


def test_complete_continues_greedily(llm: pyllm.LLM) -> None:
    prompt = MODEL.tokens[:10]
    result = llm.complete(prompt, max_tokens=6, temperature=0)
    assert result.tokens == greedy(llm, prompt, 6)
    assert (result.text, result.finish_reason) == ("", "length")
    assert (result.usage.n_prompt, result.usage.n_generated) == (10, 6)


def test_logprobs_are_the_models(llm: pyllm.LLM) -> None:
    prompt = MODEL.tokens[:10]
    result = llm.complete(prompt, max_tokens=1, temperature=0, logprobs=3)
    row = llm.logits(prompt)[-1].astype(np.float64)
    truth = row - np.log(np.exp(row - row.max()).sum()) - row.max()
    assert result.logprobs is not None
    (token,) = result.logprobs
    assert token.logprob == pytest.approx(truth[token.id], abs=1e-4)
    assert [i for i, _, _ in token.top] == list(np.argsort(-truth)[:3])
    assert [p for _, _, p in token.top] == pytest.approx(sorted(truth, reverse=True)[:3], abs=1e-4)


def test_generate_gives_what_each_prompt_gives_alone(llm: pyllm.LLM) -> None:
    tokens = MODEL.tokens
    prompts = [tokens[: 3 + 5 * i] for i in range(7)]  # more than max_seqs
    alone = [llm.complete(p, max_tokens=4, temperature=0).tokens for p in prompts]
    together = llm.generate(prompts, max_tokens=4, temperature=0)
    assert [r.tokens for r in together] == alone
    assert llm.generate([]) == []


def test_generate_refuses_all_when_one_is_wrong(llm: pyllm.LLM) -> None:
    with pytest.raises(pyllm.ContextFullError):
        llm.generate([[1, 2, 3], [1] * 500], max_tokens=2)
    assert len(llm.complete([1, 2, 3], max_tokens=2).tokens) == 2


def test_threads_share_a_model(llm: pyllm.LLM) -> None:
    tokens = MODEL.tokens
    prompts = [tokens[: 4 + 3 * i] for i in range(6)]
    alone = [llm.complete(p, max_tokens=5, temperature=0).tokens for p in prompts]
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        results[i] = (llm.complete(prompts[i], max_tokens=5, temperature=0).tokens, llm.logits(prompts[i])[-1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [results[i][0] for i in range(len(prompts))] == alone
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(results[i][1], llm.logits(prompt)[-1], atol=1e-4)


def test_seed_repeats_itself(llm: pyllm.LLM) -> None:
    once, again, other = (
        llm.complete([1, 2, 3], max_tokens=12, temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed).tokens
        for seed in (1, 1, 2)
    )
    assert once == again != other


def test_embed_is_the_mean_hidden_state(llm: pyllm.LLM) -> None:
    texts = [[1, 2, 3], [7, 8, 9, 10]]
    both = llm.embed(texts)
    assert both.shape == (2, llm.n_embd)
    assert both.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
    raw = llm.embed(texts[0], normalize=False)
    np.testing.assert_allclose(raw, llm.engine.hidden(texts[0]).mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(llm.embed(texts[0]), raw / np.linalg.norm(raw), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(both[0], llm.embed(texts[0]), rtol=1e-4, atol=1e-6)
    assert llm.embed([]).shape == (0, llm.n_embd)


def test_perplexity_is_that_of_the_logits(llm: pyllm.LLM) -> None:
    """One window; by definition of the negative log likelihood, from logits that are llama.cpp's."""
    tokens = MODEL.tokens
    (estimate,) = perplexity(llm, tokens, n_ctx=48, n_windows=1)
    rows = llm.logits(tokens)[24:47].astype(np.float64)
    nll = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(23), tokens[25:48]]
    assert estimate.n_scored == 23
    assert estimate.nll == pytest.approx(nll.mean(), rel=1e-4)


def test_text_needs_a_tokenizer(llm: pyllm.LLM) -> None:
    assert not llm.has_tokenizer
    with pytest.raises(pyllm.TokenizerError, match="ids"):
        llm.complete("Hello")
    with pytest.raises(pyllm.TokenizerError):
        llm.chat("Hello")
    with pytest.raises(pyllm.RequestError, match="tokenizer"):
        llm.complete([1, 2], stop="x")


@pytest.mark.parametrize("call", ["complete", "generate"])
def test_unknown_options_are_named(llm: pyllm.LLM, call: str) -> None:
    with pytest.raises(pyllm.RequestError, match=rf"{call}\(\) has no option topk; did you mean top_k"):
        getattr(llm, call)([[1]] if call == "generate" else [1], topk=3)


def test_prompts_that_do_not_fit(llm: pyllm.LLM) -> None:
    with pytest.raises(pyllm.ContextFullError):
        llm.complete([1] * 129)
    with pytest.raises(pyllm.RequestError):
        llm.complete([llm.n_vocab])


@pytest.mark.parametrize("options", [{}, {"max_tokens": None}, {"max_tokens": -1}, {"max_tokens": 50}])
def test_answers_end_where_the_context_is_full(llm: pyllm.LLM, options: dict[str, Any]) -> None:
    options = {**options, "temperature": 0}
    result = llm.complete([1] * 126, **options)
    assert (result.tokens, result.finish_reason) == (greedy(llm, [1] * 126, 3), "length")
    with llm.complete([1] * 126, stream=True, **options) as stream:
        assert (stream.result.tokens, stream.result.finish_reason) == (result.tokens, "length")
    both = llm.generate([[1] * 126, [1] * 127], **options)
    assert [(r.tokens, r.finish_reason) for r in both] == [
        (result.tokens, "length"),
        (greedy(llm, [1] * 127, 2), "length"),
    ]


def test_a_shifted_context_is_never_full(llm: pyllm.LLM) -> None:
    assert len(llm.complete([1] * 126, max_tokens=50, context_shift=True).tokens) == 50


def test_after_close_nothing_runs(path: Path) -> None:
    llm = pyllm.load(path, backend="reference", n_ctx=64)
    stream = llm.complete([1, 2, 3], stream=True)
    llm.close()
    llm.close()
    with pytest.raises(pyllm.ClosedError):
        llm.complete([1, 2, 3])
    with pytest.raises(pyllm.ClosedError):
        llm.logits([1, 2, 3])
    with pytest.raises(pyllm.ClosedError):
        list(stream)


def test_describes_itself(llm: pyllm.LLM, path: Path) -> None:
    assert llm.path == path
    assert llm.metadata["general.architecture"] == "llama"
    assert llm.n_ctx == 128
    assert set(llm.memory()) >= {"weights", "kv"}
    assert repr(llm) == "<LLM llama-dense.gguf: llama, 128 positions>"


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(pyllm.ModelError, match="there is no file"):
        pyllm.load(tmp_path / "none.gguf")
    with pytest.raises(pyllm.ModelError, match="folder"):
        pyllm.load(tmp_path)
    with pytest.raises(pyllm.HubError):
        pyllm.load("no-such-name")


@pytest.mark.parametrize(
    "wrong", [{"n_ctx": -1}, {"max_seqs": 0}, {"n_threads": -2}, {"kv_dtype": "q8"}, {"n_kv": 1 << 31}]
)
def test_settings_out_of_bounds(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(pyllm.RequestError):
        pyllm.load(path, backend="reference", **wrong)


def test_unknown_backend(path: Path) -> None:
    with pytest.raises(pyllm.BackendError, match="reference"):
        pyllm.load(path, backend="abacus")


@pytest.mark.parametrize(
    ("trained", "n_ctx"), [(2048, 2048), (32768, loading.DEFAULT_N_CTX), (0, loading.DEFAULT_N_CTX)]
)
def test_default_context(trained: int, n_ctx: int) -> None:
    metadata = {"general.architecture": "llama", "llama.context_length": trained}
    assert loading.default_n_ctx(metadata) == n_ctx
    assert loading.default_n_ctx(metadata, most=None) == (trained or loading.DEFAULT_N_CTX)
    assert loading.default_n_ctx({}) == loading.DEFAULT_N_CTX


@pytest.mark.parametrize(
    ("files", "n"),
    [
        ({}, 4),
        ({"topology": "0-1"}, 1),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_default_threads(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], n: int) -> None:
    """Four processors: cores count once, and a control group's quota counts."""
    monkeypatch.delenv("PYLLM_THREADS", raising=False)
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(processors, "_read", lambda path: next((text for f, text in files.items() if f in path), ""))
    assert processors.default_threads() == n
    monkeypatch.setenv("PYLLM_THREADS", "7")
    assert processors.default_threads() == 7
