"""Models whose encoder reads the prompt, through `pyllm.load`: answers, memory, and what they are not for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pyllm
from arch_models import ArchModel
from pyllm.config import LoadSettings, PlacementOptions
from pyllm.errors import ModelError, RequestError
from pyllm.gguf import open_gguf
from pyllm.llm import fit
from pyllm.llm.loading import compile_model, execution_options

PROMPT = [5, 17, 33, 101, 64, 2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ArchModel.load("t5").write(tmp_path_factory.mktemp("t5") / "t5.gguf")


def test_prompts_are_answered(path: Path) -> None:
    """A prompt's beginning is not all that matters, and its length is its own."""
    with pyllm.load(path, backend="cpu", n_ctx=64, kv_dtype="f32") as llm:
        one = llm.complete(PROMPT, max_tokens=8, temperature=0)
        assert (one.usage.n_prompt, one.usage.n_cached, one.usage.n_generated) == (6, 0, 8)
        other = llm.complete([*PROMPT, 77], max_tokens=8, temperature=0)
        assert other.tokens != one.tokens
        again = llm.generate([PROMPT, [*PROMPT, 77]], max_tokens=8, temperature=0)
        assert [answer.tokens for answer in again] == [one.tokens, other.tokens]
        with pytest.raises(RequestError, match="encoder reads"):
            llm.embed(PROMPT)
    with pyllm.load(path, backend="reference", n_ctx=64, kv_dtype="f32") as llm:
        assert llm.complete(PROMPT, max_tokens=8, temperature=0).tokens == one.tokens


def test_memory_is_as_foretold(path: Path) -> None:
    settings = LoadSettings(n_ctx=64, max_seqs=2, backend="cpu")
    with open_gguf(path) as file:
        (part,) = fit.parts(file, 64, execution_options(64, settings), "cpu")
    with pyllm.load(path, backend="cpu", n_ctx=64, max_seqs=2) as llm:
        held = llm.memory()
    assert (held["weights"], held["kv"]) == (part.weights, part.kv)


def test_what_has_no_encoder_refuses_them(path: Path) -> None:
    with open_gguf(path) as file, pytest.raises(ModelError, match="complete\\(\\) works"):
        compile_model(file, 64, execution_options(64, LoadSettings()), "cpu", placement=PlacementOptions())


def test_the_start_token_is_the_files(tmp_path: Path) -> None:
    model, answers = ArchModel.load("t5"), []
    for start in (9, 0):
        other = replace(model, metadata=model.metadata | {"t5.decoder_start_token_id": start})
        with pyllm.load(other.write(tmp_path / f"{start}.gguf"), backend="cpu", n_ctx=64) as llm:
            assert llm.architecture.start == start
            answers.append(llm.complete(PROMPT, max_tokens=4, temperature=0).tokens)
    assert answers[0] != answers[1]
