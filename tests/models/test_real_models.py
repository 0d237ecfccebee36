"""Real files from end to end: answers, perplexity, several at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.evaluation.perplexity import perplexity

ModelPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def smollm2(model_path: ModelPath) -> Iterator[pyllm.LLM]:
    with pyllm.load(model_path("smollm2"), n_ctx=2048) as llm:
        yield llm


def test_prompt_has_the_ids_and_logits_of_other_engines(smollm2: pyllm.LLM) -> None:
    """transformers (torch, float32) reads this prompt as these ids, and finds these most likely tokens; the fourth is
    0.24 below the third, which activations of 8 bits may swap."""
    tokens = smollm2.tokenizer.encode("The capital of France is")
    assert tokens == [504, 3575, 282, 4649, 314]
    row = smollm2.logits(tokens)[-1]
    best = [smollm2.tokenizer.token_text(int(i)) for i in np.argsort(-row)[:4]]
    assert best[:2] == [" Paris", " the"]
    assert " London" in best
    wanted = [smollm2.tokenizer.encode(text)[0] for text in (" Paris", " the", " London")]
    assert row[wanted] == pytest.approx([17.37, 14.89, 13.25], abs=0.5)


def test_complete(smollm2: pyllm.LLM) -> None:
    assert smollm2.complete("The capital of France is", max_tokens=1, temperature=0).text == " Paris"


def test_chat_streams_what_it_returns_whole(smollm2: pyllm.LLM) -> None:
    question = "How many days are in a week?"  # each token of the answer leads by 0.5, so rounding changes none
    whole = smollm2.chat(question, max_tokens=48, temperature=0)
    pieces = list(smollm2.chat(question, stream=True, max_tokens=48, temperature=0))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3
    assert "7 days" in whole.text
    assert "<|im_end|>" not in whole.text


def test_chat_ends_by_itself(smollm2: pyllm.LLM) -> None:
    result = smollm2.chat("Say hello.", max_tokens=300, temperature=0)
    assert result.finish_reason == "stop"


def test_stop_string(smollm2: pyllm.LLM) -> None:
    result = smollm2.complete("One, two, three, four,", max_tokens=40, temperature=0, stop=["seven"])
    assert result.finish_reason == "stop"
    assert "six" in result.text
    assert "seven" not in result.text


def test_prompts_side_by_side_share_their_beginning(smollm2: pyllm.LLM) -> None:
    start = "Here is a list of countries and their capitals, one in each line, in no special order.\n" * 4
    prompts = [start + country for country in ("France:", "Italy:", "Spain:", "Egypt:")]
    results = smollm2.generate(prompts, max_tokens=3, temperature=0)
    assert [r.text.split()[0].strip(",.") for r in results][:2] == ["Paris", "Rome"]
    assert sum(r.usage.n_cached > 0 for r in results) >= 3


def test_embeddings_tell_what_texts_are_about(smollm2: pyllm.LLM) -> None:
    cat, kitten, tax = smollm2.embed(
        ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Income tax is due in April."]
    )
    assert cat @ kitten > cat @ tax


@pytest.mark.slow
def test_perplexity_is_llama_cpps(smollm2: pyllm.LLM, shared_data: Path) -> None:
    text = (shared_data / "wiki.test.txt").read_text(encoding="utf-8")
    *_, last = perplexity(smollm2, text, n_ctx=512, n_windows=20)
    assert last.ppl == pytest.approx(23.1105, rel=0.005)


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is the capital of France?", "Paris"),
        ("How many days are there in a week?", "7"),
        ("What is the opposite of hot?", "cold"),
    ],
)
def test_the_default_model_answers_a_first_question_rightly(model_path: ModelPath, question: str, word: str) -> None:
    with pyllm.load(model_path("qwen-0.5b"), n_ctx=256) as llm:
        assert word in llm.chat(question, max_tokens=24, temperature=0).text


@pytest.mark.slow
def test_qwen_writes_a_function_that_works(model_path: ModelPath) -> None:
    with pyllm.load(model_path("qwen-coder"), n_ctx=1024) as llm:
        question = "Write a Python function `is_palindrome(text)` that returns a bool. Only the code, no example."
        answer = llm.chat(question, max_tokens=200, temperature=0).text
    code = answer.split("```python", 1)[1].split("```", 1)[0]
    check = code + "\nprint(is_palindrome('level'), is_palindrome('levels'))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["True", "False"]
