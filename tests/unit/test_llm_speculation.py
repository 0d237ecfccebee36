"""Speculation by `load`: answers and counts, draft models and the vocabularies that they need, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import pyllm
from pyllm.config import LoadSettings
from pyllm.engine.speculation import speculation
from pyllm.llm import fit as fitting
from pyllm.llm.loading import execution_options
from pyllm.llm.speculating import beside
from tiny_gguf import write_tiny_gguf

OPTIONS: dict[str, Any] = {"backend": "cpu", "n_ctx": 128, "max_seqs": 2, "n_threads": 2}
PROMPT = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("spec") / "tiny.gguf")


def answers(path: Path, spec: str) -> tuple[list[Any], list[pyllm.Usage]]:
    with pyllm.load(path, spec=spec, **OPTIONS) as llm:
        found = [
            llm.complete(PROMPT, max_tokens=60, temperature=0),
            llm.complete(PROMPT, max_tokens=60, temperature=0.8, seed=3, repeat_penalty=1.2),
            *llm.complete(PROMPT, max_tokens=40, temperature=1.0, seed=4, n=2, logprobs=1).choices,
        ]
        return [(c.tokens, c.finish_reason, c.logprobs) for c in found], [c.usage for c in found]


@pytest.mark.parametrize("spec", ["ngram", "auto", "draft"])
def test_answers_are_those_without(path: Path, spec: str) -> None:
    plain, usages = answers(path, "off")
    assert all(u.n_drafted == u.n_accepted == 0 for u in usages)
    found, usages = answers(path, f"draft={path}" if spec == "draft" else spec)
    assert found == plain
    assert all(0 <= u.n_accepted <= u.n_drafted for u in usages)


def test_memory_counts_the_draft_model(path: Path) -> None:
    with pyllm.load(path, spec=f"draft={path}", **OPTIONS) as llm, pyllm.load(path, **OPTIONS) as alone:
        assert llm.memory()["weights"] == 2 * alone.memory()["weights"]


def test_what_spec_may_be() -> None:
    with pytest.raises(pyllm.RequestError, match="spec must be off, ngram, mtp, auto or draft=MODEL, not 'draft='"):
        LoadSettings(spec="draft=")
    assert LoadSettings(spec="draft=a=b").draft_model == "a=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is gpt2, not llama"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre is .*, not qwen2"),
        ({"tokenizer.ggml.tokens": ["a"]}, "its vocabulary has .* tokens, not 1"),
        ({"tokenizer.ggml.tokens": None}, "a vocabulary is missing"),
    ],
)
def test_another_vocabulary_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    from pyllm.gguf import open_gguf

    with open_gguf(path) as file:
        metadata = {**dict(file.metadata), **change}
        other = cast(Any, SimpleNamespace(metadata=metadata))
        with pytest.raises(pyllm.ModelError, match=message), beside(LoadSettings(spec=f"draft={path}"), other, 64):
            pass
        tokens = list(file.metadata["tokenizer.ggml.tokens"])
        metadata["tokenizer.ggml.tokens"] = [*tokens[:-1], "another"]
        metadata |= {key: file.metadata.get(key) for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")}
        with pytest.raises(pyllm.ModelError, match=f"its token {len(tokens) - 1} is .*, not 'another'; take one of"):
            beside(LoadSettings(spec=f"draft={path}"), other, 64).__enter__()


def test_fit_counts_the_draft_model(path: Path) -> None:
    from pyllm.gguf import open_gguf

    settings = LoadSettings(spec=f"draft={path}", **OPTIONS)
    with open_gguf(path) as file, beside(settings, file, 128) as draft:
        options = execution_options(128, settings)
        (alone,) = fitting.parts(file, 128, options, "cpu")
        (both,) = fitting.parts(file, 128, options, "cpu", draft=draft)
    assert both.weights == 2 * alone.weights
    assert both.kv == 2 * alone.kv
    assert alone.work < both.work <= 2 * alone.work


def test_a_model_with_recurrent_states_answers_as_without(
    arch_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is guessed is verified whatever that costs here and now."""
    monkeypatch.setattr(speculation, "lengths", lambda prospects, most, times: [min(p.n, 3, most) for p in prospects])
    path = arch_file("qwen35-dense")
    assert answers(path, "ngram")[0] == answers(path, "off")[0]
