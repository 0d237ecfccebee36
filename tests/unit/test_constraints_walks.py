"""Random answers under masks fit their schemas, by `jsonschema`; those that were cut begin a JSON text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from constraint_tools import completed, vocabulary_of, walk

import schema_cases
import tool_cases
from pyllm.constraints.constraint import GrammarConstraint
from pyllm.constraints.grammar import Grammar, of_response_format
from pyllm.constraints.vocabulary import Vocabulary

VOCABULARIES = ["gpt-2", "llama-spm"]
N_SCHEMAS = 300
N_AT_ONCE = 50


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocab(request: pytest.FixtureRequest, shared_data: Path) -> Vocabulary:
    return vocabulary_of(shared_data, request.param)


def grammar(schema: dict[str, Any]) -> Grammar:
    found = of_response_format(schema)
    assert found is not None
    assert not found.warnings
    return found


def check(schema: dict[str, Any], vocab: Vocabulary, seed: int, most: int) -> bool:
    """A random answer is valid, or the beginning of JSON; whether it was cut."""
    tokens, done = walk(GrammarConstraint(grammar(schema), vocab), vocab, seed, most)
    text = b"".join(map(vocab.token_bytes.__getitem__, tokens)).decode("utf-8", "strict" if done else "ignore")
    if done:
        validator = jsonschema.Draft202012Validator
        validator(schema, format_checker=schema_cases.format_checker()).validate(json.loads(text))
    elif text.strip():
        json.loads(completed(text))
    return not done


@pytest.mark.parametrize("first", range(0, N_SCHEMAS, N_AT_ONCE))
def test_random_schemas(vocab: Vocabulary, first: int) -> None:
    cut = [check(schema_cases.random_schema(seed), vocab, seed, 300) for seed in range(first, first + N_AT_ONCE)]
    assert sum(cut) < N_AT_ONCE // 5


def test_random_schemas_cut(vocab: Vocabulary) -> None:
    assert any(check(schema_cases.random_schema(seed), vocab, seed, 4 + seed % 20) for seed in range(100))


@pytest.mark.parametrize("name", tool_cases.TOOLS)
def test_schemas_of_tools(vocab: Vocabulary, name: str) -> None:
    for seed in range(2):
        check(tool_cases.TOOLS[name], vocab, seed, 400)


def test_a_wrong_answer_would_be_found(vocab: Vocabulary) -> None:
    tokens, _ = walk(GrammarConstraint(grammar({"const": {"a": 1}}), vocab), vocab, 0)
    text = b"".join(map(vocab.token_bytes.__getitem__, tokens)).decode()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(text), {"const": {"a": 2}})
    for wrong in ('{"a" 1', "[1,,", '{"a": tru3', "]"):
        with pytest.raises(AssertionError):
            completed(wrong)
