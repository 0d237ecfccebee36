"""Speculation by a head of the model itself: answers, counts, prefixes, memory, where the head is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pyllm
from arch_models import FOLDER, ArchModel
from pyllm.archs import eagle3
from pyllm.config import LoadSettings, SamplingParams
from pyllm.engine.request import GenerationRequest
from pyllm.engine.speculation import Head, likely, lookup, speculation
from pyllm.engine.speculation.drafter import Offer
from pyllm.gguf import open_gguf
from pyllm.gguf.tensor import TensorInfo
from pyllm.llm import fit as fitting
from pyllm.llm.loading import execution_options
from pyllm.llm.speculating import beside

OPTIONS: dict[str, Any] = {"n_ctx": 192, "max_seqs": 4, "n_threads": 2}
PROMPT = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]
MODELS = ["qwen35-dense", "glm4moe-moe"]
"""With recurrent states, and without."""

Write = Callable[[ArchModel], Path]


def of(name: str) -> ArchModel:
    return ArchModel.read(FOLDER.parent / "heads" / f"{name}.json")


@pytest.fixture(name="write", scope="module")
def _write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    return lambda model: model.write(tmp_path_factory.mktemp("heads") / f"{model.name}.gguf")


@pytest.fixture(name="eager")
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the head guesses is verified, however unsure it is and whatever that costs."""
    monkeypatch.setattr(speculation, "lengths", lambda prospects, most, times: [min(p.n, 5, most) for p in prospects])
    monkeypatch.setattr(speculation, "best_rate", lambda prospect, *rest: prospect.n)
    monkeypatch.setattr(likely, "_LEAST_SURE", 0.0)
    monkeypatch.setattr(lookup.Lookup, "offer", lambda self, seq: Offer(0, 0))


def head_of(llm: pyllm.LLM) -> Head:
    found = [s.drafter for s in llm.engine._speculation._sources if isinstance(s.drafter, Head)]  # type: ignore[union-attr]
    return found[0]


def answers(path: Path, spec: str, backend: str) -> tuple[list[Any], list[pyllm.Usage]]:
    """Alone, and in company, of which one is cancelled."""
    with pyllm.load(path, spec=spec, backend=backend, **OPTIONS) as llm:
        cancelled = llm.engine.submit(GenerationRequest(PROMPT[::-1], SamplingParams(temperature=0), max_tokens=150))
        next(cancelled)
        found = [
            llm.complete(PROMPT, max_tokens=60, temperature=0),
            llm.complete([*PROMPT * 7, 9], max_tokens=60, temperature=0.8, seed=3, repeat_penalty=1.2),
        ]
        cancelled.cancel()
        found += llm.complete(PROMPT * 3, max_tokens=40, temperature=1.0, seed=4, n=2, logprobs=1).choices
        found += llm.generate([PROMPT[i:] * 4 for i in range(4)], max_tokens=30, temperature=0)
        llm.engine.check()
        exact = backend == "cpu"  # the reference backend's products round by the number of a sequence's rows
        return [(c.tokens, c.finish_reason, c.logprobs if exact else None) for c in found], [c.usage for c in found]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_answers_are_those_without(write: Write, eager: None, name: str, backend: str) -> None:
    path = write(of(name))
    plain, usages = answers(path, "off", backend)
    assert all(u.n_drafted == u.n_accepted == 0 for u in usages)
    found, usages = answers(path, "mtp", backend)
    assert found == plain
    assert all(0 <= u.n_accepted <= u.n_drafted for u in usages)
    assert sum(u.n_drafted for u in usages) > 100


def chain(reads: str) -> tuple[ArchModel, dict[str, NDArray[np.float32]]]:
    """A model whose next token is that of the last one in a cycle, and a head that knows the cycle: from the token that
    it `reads`, or from the state of the token before. Parts of layers add nothing."""
    n = 48
    given = of("qwen35-dense")
    width = given.shapes["token_embd.weight"][1]
    sizes = {"token_embd.weight": (n, width), "output.weight": (n, width)}
    model = replace(given, name=f"chain-{reads}", shapes={**given.shapes, **sizes})
    made = np.random.default_rng(5).normal(size=(n, width)).astype(np.float32)
    table = made / np.sqrt(np.mean(made**2, axis=1, keepdims=True))  # what an RMS norm leaves as it is
    following = (np.arange(n) * 5 + 7) % n
    weights: dict[str, NDArray[np.float32]] = {"token_embd.weight": table, "output.weight": np.empty_like(table)}
    weights["output.weight"][following] = table
    for name, shape in model.shapes.items():
        if "norm" in name:
            weights[name] = np.ones(shape, np.float32)
        elif name.endswith(("attn_output.weight", "ssm_out.weight", "ffn_down.weight")):
            weights[name] = np.zeros(shape, np.float32)
        elif name.endswith("eh_proj.weight"):
            weights[name] = np.zeros(shape, np.float32)
            weights[name][:, :width] = np.eye(width)
            if reads == "state":
                weights[name][:] = 0
                weights[name][:, width:] = np.linalg.lstsq(table, table[following], rcond=None)[0].T
    return model, weights


@pytest.mark.parametrize("reads", ["token", "state"])
def test_guesses_of_a_head_that_knows_are_all_right(tmp_path: Path, eager: None, reads: str) -> None:
    model, weights = chain(reads)
    path = model.write(tmp_path / "chain.gguf", weights)
    with pyllm.load(path, spec="mtp", backend="cpu", **OPTIONS) as llm:
        found = [llm.complete([3], max_tokens=100, temperature=0), llm.complete([5] * 70, max_tokens=90, temperature=0)]
        found += llm.generate([[7], [1, 2], [8] * 40], max_tokens=50, temperature=0)
        for first, answer in zip([3, 5, 7, 2, 8], found, strict=True):
            for token in answer.tokens:
                first = (first * 5 + 7) % 48
                assert token == first
            assert answer.usage.n_drafted == answer.usage.n_accepted > len(answer.tokens) // 2


@pytest.mark.parametrize("name", MODELS)
def test_a_prefix_that_is_shared_is_read_once(write: Write, eager: None, name: str) -> None:
    """Where a prompt goes on after pages of another, the head holds what it would have read itself."""
    first, rest = [1 + i % 90 for i in range(70)], [5, 9, 3] * 9
    path = write(of(name))
    held = []
    for prompts in ([[*first, *rest]], [first, [*first, *rest]]):
        with pyllm.load(path, spec="mtp", backend="reference", **OPTIONS) as llm:
            for prompt in prompts:
                usage = llm.complete(prompt, max_tokens=1, temperature=0).usage
            assert usage.n_cached == (64 if len(prompts) > 1 else 0)
            pages = llm.engine.pool.match(np.array(prompts[-1], np.int32), 3)
            held.append([head_of(llm).executable.read_page(page) for page in pages])
    assert len(held[0]) == len(held[1]) == 3
    for whole, continued in zip(*held, strict=True):
        a, b = (np.frombuffer(page, np.float16).astype(np.float32) for page in (whole, continued))
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_auto_uses_a_head_where_there_is_one(write: Write, arch_file: Callable[[str], Path]) -> None:
    with pyllm.load(write(of("glm4moe-moe")), spec="auto", backend="cpu", **OPTIONS) as llm:
        assert head_of(llm)
    without = arch_file("qwen35-dense")
    with pyllm.load(without, spec="auto", backend="cpu", **OPTIONS) as llm, pytest.raises(IndexError):
        head_of(llm)
    with pytest.raises(pyllm.ModelError, match=r"has no head that guesses, nor has a file mtp-\*.gguf beside it"):
        pyllm.load(without, spec="mtp", backend="cpu", **OPTIONS)


def test_a_head_in_a_file_beside_the_model(tmp_path: Path, eager: None) -> None:
    both = of("qwen35-dense")
    n = both.metadata["qwen35.block_count"] - 1
    counts = {"qwen35.block_count": n, "qwen35.nextn_predict_layers": 0}
    behind = {k: s for k, s in both.shapes.items() if k.startswith(f"blk.{n}.")}
    trunk = {k: s for k, s in both.shapes.items() if k not in behind}
    ends = {k: s for k, s in trunk.items() if not k.startswith("blk.")}
    path = replace(both, metadata={**both.metadata, **counts}, shapes=trunk).write(tmp_path / "model-Q4.gguf")
    replace(both, shapes={**ends, **behind}).write(tmp_path / "mtp-model-Q8.gguf")
    of("glm4moe-moe").write(tmp_path / "mtp-model-Q4.gguf")
    with pyllm.load(both.write(tmp_path / "whole.gguf"), spec="mtp", backend="cpu", **OPTIONS) as llm:
        whole = llm.complete(PROMPT, max_tokens=60, temperature=0)
    with pyllm.load(path, spec="mtp", backend="cpu", **OPTIONS) as llm:
        found = llm.complete(PROMPT, max_tokens=60, temperature=0)
    assert (found.tokens, found.usage.n_drafted, found.usage.n_accepted) == (
        whole.tokens, whole.usage.n_drafted, whole.usage.n_accepted
    )  # fmt: skip


def test_fit_counts_the_head(write: Write) -> None:
    path, settings = write(of("qwen35-dense")), LoadSettings(spec="mtp", backend="cpu", **OPTIONS)
    with open_gguf(path) as file, beside(settings, file, 192) as draft:
        (found,) = fitting.parts(file, 192, execution_options(192, settings), "cpu", draft=draft)
    with pyllm.load(path, spec="mtp", backend="cpu", **OPTIONS) as llm:
        memory = llm.memory()
    assert (found.weights, found.kv) == (memory["weights"], memory["kv"])
    assert found.work <= memory["work"]


@pytest.fixture(name="eagle", scope="module")
def _eagle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's file, and that of a head of EAGLE-3 for it."""
    folder = tmp_path_factory.mktemp("eagle3")
    head = ArchModel.read(FOLDER.parent / "eagle3" / "qwen3-dense.json")
    return ArchModel.load("qwen3-dense").write(folder / "model.gguf"), head.write(folder / "head.gguf")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_answers_with_a_head_of_eagle3_are_those_without(eagle: tuple[Path, Path], eager: None, backend: str) -> None:
    model, head = eagle
    plain, _ = answers(model, "off", backend)
    found, usages = answers(model, f"draft={head}", backend)
    assert found == plain
    assert sum(u.n_drafted for u in usages) > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_layers": [0, 1, 7]}, r"reads the inputs of layers \[0, 1, 7\], of which the model has"),
        ({"target_hidden_size": 32}, "was made for a model of 32 columns; this one has"),
        ({"norm_before_fc": True}, r"norm states together \(norm_before_fc\) are not supported; spec='ngram' works"),
    ],
)
def test_a_head_of_eagle3_for_another_model_is_refused(change: dict[str, Any], message: str) -> None:
    model, head = ArchModel.load("qwen3-dense"), ArchModel.read(FOLDER.parent / "eagle3" / "qwen3-dense.json")
    metadata = {**head.all_metadata, **{f"eagle3.{key}": value for key, value in change.items()}}
    with pytest.raises(pyllm.ModelError, match=message):
        eagle3.head(metadata, head.tensors, model.all_metadata, model.tensors)


def test_a_head_of_eagle3_may_know_fewer_tokens() -> None:
    model, head = ArchModel.load("qwen3-dense"), ArchModel.read(FOLDER.parent / "eagle3" / "qwen3-dense.json")

    def known(ids: list[int], kind: str = "I64") -> Any:
        data = np.array(ids, "<i8").view(np.uint8)
        tensors = {**head.tensors, "d2t": TensorInfo("d2t", (len(ids),), kind, data)}
        return eagle3.head(head.all_metadata, tensors, model.all_metadata, model.tensors).token_ids

    assert known([5, 3, 127]).tolist() == [5, 3, 127]
    for ids in ([], [-1], [model.n_vocab]):
        with pytest.raises(pyllm.ModelError, match=f"tensor d2t names tokens beyond the model's {model.n_vocab}"):
            known(ids)
    with pytest.raises(pyllm.ModelError, match="tensor d2t is F32, not I64"):
        known([1], "F32")
