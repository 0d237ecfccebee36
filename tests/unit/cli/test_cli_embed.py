"""`pyllm embed` and `pyllm rerank`: JSON lines in and out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Run
from gguf import GGUFWriter, PoolingType

import pyllm
from tiny_gguf import write_tiny_gguf

REFERENCE = ["--backend", "reference"]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_texts_become_vectors(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text('a river\n\n"the \\"house\\""\n{"text": "stones", "id": 3}\n{not json\n')
    texts = ["a river", 'the "house"', "stones", "{not json"]
    with pyllm.load(model, backend="reference") as llm:
        wanted = llm.embed(texts)
    for arguments in (["-f", str(file)], texts):
        done = run("embed", "-m", model, *REFERENCE, *arguments)
        assert done.code == 0, done.err
        found = lines(done.out)
        assert [one["index"] for one in found] == [0, 1, 2, 3]
        np.testing.assert_allclose([one["embedding"] for one in found], wanted, atol=1e-5)
    short = lines(
        run("embed", "-m", model, *REFERENCE, "--dimensions", "4", "--no-normalize", "--pooling", "last", "x").out
    )
    with pyllm.load(model, backend="reference") as llm:
        np.testing.assert_allclose(
            short[0]["embedding"], llm.embed("x", pooling="last", normalize=False)[:4], atol=1e-5
        )


def test_documents_by_score(run: Run, tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_pooling_type(PoolingType.RANK)
        writer.add_tensor("cls.output.weight", np.random.default_rng(1).standard_normal((1, 32), np.float32))

    path, documents = str(write_tiny_gguf(tmp_path / "rank.gguf", more=more)), ["a river", "the house", "stones"]
    with pyllm.load(path, backend="reference") as llm:
        wanted = llm.rerank("where?", documents)
    done = run("rerank", "-m", path, *REFERENCE, "-q", "where?", *documents)
    assert done.code == 0, done.err
    found = lines(done.out)
    assert [one["index"] for one in found] == [one.index for one in wanted]
    assert [one["text"] for one in found] == [documents[one.index] for one in wanted]
    np.testing.assert_allclose([one["score"] for one in found], [one.score for one in wanted], rtol=1e-5)
    assert len(lines(run("rerank", "-m", path, *REFERENCE, "-q", "where?", "-n", "1", *documents).out)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "a", "-f", "file"], "give the texts as arguments or with -f, not both"),
        (["embed", "--pooling", "median", "a"], "median"),
        (["rerank", "a"], "--query"),
    ],
)
def test_usage(run: Run, model: str, arguments: list[str], says: str) -> None:
    command, *others = arguments
    done = run(command, "-m", model, *REFERENCE, *others)
    assert done.code == 2
    assert says in done.err


def test_no_classifier(run: Run, model: str) -> None:
    done = run("rerank", "-m", model, *REFERENCE, "-q", "a", "b")
    assert done.code == 1
    assert "has no classifier; embed() gives vectors to compare" in done.err
