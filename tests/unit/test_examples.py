"""Every script of examples/ runs as its first lines say, on a tiny model of random weights, and is right."""

from __future__ import annotations

import io
import math
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import pyllm
from tiny_gguf import write_tiny_gguf

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[pyllm.LLM]:
    with pyllm.load(model, backend="reference") as llm:
        yield llm


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process, on the reference backend; gives what it prints."""
    load = pyllm.load

    def loaded(model: str, **options: int) -> pyllm.LLM:
        return load(model, backend="reference", **options)

    def call(name: str, *arguments: object, stdin: str = "") -> str:
        monkeypatch.setattr(pyllm, "load", loaded)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_every_example_is_run_here_and_listed() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES.rglob("*.py"):
        name = script.relative_to(EXAMPLES).as_posix()
        assert f"]({name})" in listed, f"{name} is missing in examples/README.md"
        assert f'"{name}"' in tests or script.parent != EXAMPLES, f"{name} has no test"


def test_chat_answers_each_line_with_all_before_it(run: Run, llm: pyllm.LLM) -> None:
    history = [{"role": "system", "content": "Answer in one sentence."}]
    expected = ""
    for line in ("Hello.", "And then?"):
        history.append({"role": "user", "content": line})
        answer = llm.chat(history, max_tokens=128, temperature=0)
        history.append({"role": "assistant", "content": answer.text})
        expected += answer.text + "\n"
    assert run("chat.py", llm.path, stdin="Hello.\nAnd then?\n") == expected


def test_streaming_prints_the_answer_and_its_end(run: Run, llm: pyllm.LLM) -> None:
    whole = llm.chat("Count from one to five.", max_tokens=64, seed=1)
    ending = f"\n{len(whole.tokens)} tokens, ended by {whole.finish_reason}\n"
    assert run("streaming.py", llm.path) == whole.text + ending


def test_batch_completes_each_prompt_as_if_alone(run: Run, llm: pyllm.LLM) -> None:
    def line(country: str) -> str:
        alone = llm.complete(f"The capital of {country} is", max_tokens=6, temperature=0, stop=".")
        return f"{country}: {alone.text.strip()}\n"

    assert run("batch.py", llm.path) == "".join(map(line, ("France", "Japan", "Egypt", "Peru")))


def test_embeddings_lists_the_closest_text_first(run: Run, llm: pyllm.LLM) -> None:
    lines = run("embeddings.py", llm.path).splitlines()
    question = llm.embed("How do I sort a list in Python?", normalize=False).astype(np.float64)
    scores = []
    for line in lines:
        score, text = line.split("  ", 1)
        vector = llm.embed(text, normalize=False).astype(np.float64)
        cosine = vector @ question / math.sqrt((vector @ vector) * (question @ question))
        assert float(score) == pytest.approx(cosine, abs=0.001)
        scores.append(float(score))
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_tokens_lists_the_bytes_of_a_vocabulary_of_bytes(run: Run, model: Path) -> None:
    lines = run("tokens.py", model, "hé").splitlines()
    assert lines == ["    104  b'h'", "    195  b'\\xc3'", "    169  b'\\xa9'", "3 tokens of 258"]


def test_logprobs_gives_the_perplexity_of_the_logits(run: Run, llm: pyllm.LLM) -> None:
    *tokens, last = run("logprobs.py", llm.path).splitlines()
    assert 0 < len(tokens) <= 4
    # Ids of a vocabulary of bytes, after <bos>.
    ids = [257, *b"Paris is the capital of France, and Berlin is the capital of Germany."]
    rows = llm.logits(ids).astype(np.float64)
    losses = [math.log(np.exp(row - row[then]).sum()) for row, then in zip(rows, ids[1:], strict=False)]
    assert float(last.split()[1]) == pytest.approx(math.exp(sum(losses) / len(losses)), abs=0.006)


def test_quantizing_writes_a_file_of_that_recipe(run: Run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.gguf"
    out = run("quantizing.py", model, target, "Q8_0")
    formats = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
    assert formats["blk.0.ffn_down.weight"] == "Q8_0"
    assert "blk.0.ffn_down.weight Q8_0\n" in out
    assert out.endswith(f"{model.stat().st_size:,} bytes became {target.stat().st_size:,}\n")


def test_quantizing_says_in_a_line_what_is_wrong(run: Run, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*Q99"):
        run("quantizing.py", model, tmp_path / "small.gguf", "Q99")


def test_own_architecture_runs_when_its_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loud model is a llama whose embeddings are sqrt(32) times as large."""
    loud = write_tiny_gguf(tmp_path / "loud.gguf", arch="loud")
    with pytest.raises(pyllm.ModelError, match="'loud' is unknown"):
        pyllm.load(loud, backend="reference")
    # What pip would install.
    info = tmp_path / "site" / "pyllm_loud-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyllm-loud\nVersion: 0.1.0\n")
    import tomllib

    project = tomllib.loads((EXAMPLES / "own_architecture" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["pyllm.archs"].items())
    (info / "entry_points.txt").write_text(f"[pyllm.archs]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(EXAMPLES / "own_architecture"))

    llama = write_tiny_gguf(tmp_path / "llama.gguf", embed_scale=math.sqrt(32))
    with pyllm.load(loud, backend="reference") as a, pyllm.load(llama, backend="reference") as b:
        np.testing.assert_allclose(a.logits([257, 1, 2, 3]), b.logits([257, 1, 2, 3]), rtol=1e-4, atol=1e-5)
