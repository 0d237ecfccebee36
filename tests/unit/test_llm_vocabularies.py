"""Models whose token table has more rows than the vocabulary has tokens, or fewer."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from test_tokenizers_metadata import spm_metadata

import pyllm
from pyllm import gguf
from pyllm.config import GenerateSettings, SamplingParams
from pyllm.errors import ModelError
from pyllm.gguf.copying import copy_model, copying

N_ROWS = 128


@pytest.fixture
def model_with(arch_file: Callable[[str], Path], tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function that writes a model of N_ROWS rows with the first `n` tokens of a SentencePiece vocabulary."""

    def write(n: int) -> Path:
        target = tmp_path / f"tokens-{n}.gguf"
        with gguf.open_gguf(arch_file("llama-dense")) as file:
            kept = {k: v for k, v in gguf.copy_metadata(file.metadata).items() if not k.startswith("tokenizer.")}
            own = {k: v[:n] if k != "tokenizer.ggml.model" else v for k, v in spm_metadata().items()}
            copy_model(file, copying(file, target, metadata=kept | {k: gguf.Value.of(v) for k, v in own.items()}))
        return target

    return write


def test_ids_without_a_token_show_nothing_in_an_answer(model_with) -> None:  # type: ignore[no-untyped-def]
    with pyllm.load(model_with(100), backend="reference", n_ctx=64) as llm:
        answer = llm.complete([3, 4], max_tokens=3, temperature=0, logit_bias={120: 1e4}, ignore_eos=True, logprobs=2)
        assert answer.tokens == (120, 120, 120)
        assert (answer.text, answer.finish_reason) == ("", "length")
        assert llm.tokenizer.n_vocab == llm.n_vocab == N_ROWS


def test_more_tokens_than_rows_are_refused_when_loaded(model_with) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=r"200 tokens.*128 rows"):
        pyllm.load(model_with(200), backend="reference")


def test_settings_and_results_can_be_pickled(model_with) -> None:  # type: ignore[no-untyped-def]
    settings = GenerateSettings(SamplingParams(seed=1), max_tokens=3, stop=("x",))
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pyllm.load(model_with(100), backend="reference", n_ctx=64) as llm:
        answer = llm.complete([3, 4], max_tokens=3, temperature=0)
        tokenizer = pickle.loads(pickle.dumps(llm.tokenizer))
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert tokenizer.decode([59, 120]) == "8"
