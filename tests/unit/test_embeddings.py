"""Embeddings, ranks and classes: llama.cpp's values, any company, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, PoolingType

import pyllm
from arch_models import ArchModel
from pooling_cases import CASES, N_TOKENS, RESULTS, Case
from pyllm.errors import ContextFullError, RequestError
from pyllm.tokenizers import from_gguf
from tiny_gguf import write_tiny_gguf

WANTED: dict[str, list[float]] = json.loads(RESULTS.read_text("utf-8"))
Load = Callable[..., pyllm.LLM]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    opened: list[pyllm.LLM] = []

    def one(case: Case | ArchModel, **options: Any) -> pyllm.LLM:
        model = case.made() if isinstance(case, Case) else case
        path = model.write(tmp_path / f"{len(opened)}.gguf")
        opened.append(pyllm.load(path, **{"backend": "reference", "n_ctx": 128, "kv_dtype": "f32", **options}))
        return opened[-1]

    yield one
    for llm in opened:
        llm.close()


def tokens_of(case: str, n: int = N_TOKENS) -> list[int]:
    return CASES[case].made().tokens[:n]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_pooled_as_in_llama_cpp(load: Load, case: str, backend: str) -> None:
    llm, wanted = load(CASES[case], backend=backend), np.array(WANTED[case])
    tokens = tokens_of(case)
    if "rank" not in case:
        got = llm.embed(tokens, normalize=False)
        assert np.mean((got - wanted) ** 2) / np.mean(wanted**2) < 1e-5
        np.testing.assert_allclose(llm.embed(tokens), got / np.linalg.norm(got), atol=1e-6)
        return
    if case == "qwen3-rank":  # its scores are probabilities already
        np.testing.assert_allclose([*llm._scores([tokens], None)], [wanted], rtol=1e-3)
        return
    found = llm.classify(tokens)
    assert isinstance(found, dict)
    assert list(found) == ["no", "yes"]
    wanted = np.exp(wanted) / np.exp(wanted).sum()
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-3)


def test_company_changes_nothing(load: Load) -> None:
    llm = load(CASES["bert-mean"], max_seqs=3)
    texts = [tokens_of("bert-mean", n) for n in (1, 40, 7, 96, 3, 128, 20, 20)]
    done: list[tuple[int, int]] = []
    rows = llm.embed(texts, progress=lambda n, total: done.append((n, total)))
    assert done == [(i + 1, len(texts)) for i in range(len(texts))]
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(llm.embed(text), row)
    assert llm.embed([]).shape == (0, 64)
    llm.engine.check()


def test_pooling_by_name(load: Load) -> None:
    llm, tokens = load(CASES["bert-cls"]), tokens_of("bert-cls")
    states = llm.engine.hidden(tokens)
    for pooling, wanted in (("mean", states.mean(axis=0)), ("cls", states[0]), ("last", states[-1]), ("none", states)):
        got = llm.embed(tokens, pooling=pooling, normalize=False)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    several = llm.embed([tokens, tokens[:3]], pooling="none")
    assert [row.shape for row in several] == [(40, 64), (3, 64)]
    np.testing.assert_allclose(np.linalg.norm(several[1], axis=1), 1, rtol=1e-5)


def test_dimensions_are_the_first_numbers_at_length_one(load: Load) -> None:
    llm, tokens = load(CASES["gemma-embedding-dense"]), tokens_of("gemma-embedding-dense")
    whole, short = llm.embed(tokens), llm.embed(tokens, dimensions=8)
    assert short.shape == (8,)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    assert cosine(whole[:8], short) == pytest.approx(1, abs=1e-6)
    with pytest.raises(RequestError, match="dimensions must be from 1 to 64"):
        llm.embed(tokens, dimensions=65)


def test_prompts_of_the_file(tmp_path: Path) -> None:
    def prompts(writer: GGUFWriter) -> None:
        writer.add_string("sentence_transformers.prompt.query", "ab")
        writer.add_string("sentence_transformers.prompt.document", "c")
        writer.add_string("sentence_transformers.default_prompt_name", "document")

    with pyllm.load(write_tiny_gguf(tmp_path / "prompts.gguf", more=prompts), backend="reference") as llm:
        np.testing.assert_array_equal(llm.embed("d", prompt_name="query"), llm.embed(llm.tokenizer.encode("abd")))
        np.testing.assert_array_equal(llm.embed("d"), llm.embed(llm.tokenizer.encode("cd")))
        with pytest.raises(RequestError, match="'title' is not in the file; it has query, document"):
            llm.embed("d", prompt_name="title")
    with (
        pyllm.load(write_tiny_gguf(tmp_path / "none.gguf"), backend="reference") as llm,
        pytest.raises(RequestError, match="it has no prompts"),
    ):
        llm.embed("d", prompt_name="query")


def test_long_and_empty_texts_are_refused(load: Load) -> None:
    llm = load(CASES["bert-mean"])
    with pytest.raises(ContextFullError):
        llm.embed([1] * 129)
    with pytest.raises(RequestError, match="empty text"):
        llm.embed([[1, 2], []])
    with pytest.raises(RequestError, match="has no classifier; embed"):
        llm.classify([1, 2])
    with pytest.raises(RequestError, match="pooling"):
        llm.embed([1], pooling="median")
    with pytest.raises(RequestError, match="no output head"):
        llm.complete([1, 2])


HEAD = np.random.default_rng(1).standard_normal((1, 32), np.float32)


def ranker(path: Path, template: str | None = None) -> pyllm.LLM:
    """The tiny model with a classifier of one score, of the last token's state."""

    def more(writer: GGUFWriter) -> None:
        writer.add_pooling_type(PoolingType.RANK)
        writer.add_tensor("cls.output.weight", HEAD)
        if template is not None:
            writer.add_string("tokenizer.chat_template.rerank", template)

    return pyllm.load(write_tiny_gguf(path, more=more), backend="reference")


DOCUMENTS = ["a river", "the house", "", "stones and more stones"]


@pytest.mark.parametrize("template", [None, "<bos>Q: {query} D: {document}<eos>"])
def test_rerank_sorts_by_score(tmp_path: Path, template: str | None) -> None:
    with ranker(tmp_path / "rank.gguf", template) as llm:
        encode = llm.tokenizer.encode
        scores = []
        for document in DOCUMENTS:
            if template is None:
                tokens = [*encode("where?"), *encode(document, add_special=False)]
            else:
                tokens = [257, *encode(f"Q: where? D: {document}", add_special=False), 256]
            scores.append(float(HEAD[0] @ llm.engine.hidden(tokens)[-1]))
        raw = llm.rerank("where?", DOCUMENTS, normalize=False)
        assert [one.index for one in raw] == sorted(range(4), key=lambda i: -scores[i])
        np.testing.assert_allclose([one.score for one in raw], sorted(scores, reverse=True), rtol=1e-4)
        ranked = llm.rerank("where?", DOCUMENTS)
        assert [one.index for one in ranked] == [one.index for one in raw]
        np.testing.assert_allclose(
            [one.score for one in ranked], [1 / (1 + np.exp(-one.score)) for one in raw], rtol=1e-4
        )
        assert llm.rerank("where?", DOCUMENTS, top_n=2) == ranked[:2]
        assert llm.rerank("where?", []) == []
        (label,) = llm.classify("a river").items()
        assert label == (
            "0",
            pytest.approx(1 / (1 + np.exp(-float(HEAD[0] @ llm.engine.hidden(encode("a river"))[-1])))),
        )


def test_what_a_document_says_is_no_control_token(tmp_path: Path) -> None:
    with ranker(tmp_path / "rank.gguf", "{query}<eos>{document}") as llm:
        assert llm._pair("<eos>", "{query}").count(256) == 1


def test_event_loops_embed(tmp_path: Path) -> None:
    async def main(llm: pyllm.LLM) -> None:
        model = pyllm.AsyncLLM(llm)
        np.testing.assert_array_equal(await model.embed([1, 2], pooling="mean"), llm.embed([1, 2], pooling="mean"))
        assert await model.rerank("a", ["b", "c"]) == llm.rerank("a", ["b", "c"])
        assert await model.classify([1, 2]) == llm.classify([1, 2])

    with ranker(tmp_path / "rank.gguf") as llm:
        asyncio.run(main(llm))


def test_pairs_of_a_word_piece_vocabulary() -> None:
    tokens = ["[CLS]", "[SEP]", "▁a", "▁b", "[UNK]"]
    metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.cls_token_id": 0,
                "tokenizer.ggml.seperator_token_id": 1, "tokenizer.ggml.unknown_token_id": 4}  # fmt: skip
    assert from_gguf(metadata).encode_pair("a b", "b") == [0, 2, 3, 1, 3, 1]
