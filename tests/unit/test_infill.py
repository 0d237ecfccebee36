"""Prompts for a gap in a text: the orders that models were trained with, and what gives way where there is no room."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm.errors import RequestError
from pyllm.llm.infill import Infill, SourceFile
from pyllm.tokenizers import Tokenizer, from_gguf
from tiny_gguf import byte_letters

PREFIX, SUFFIX, MIDDLE, REPO, FILE, BOS = range(256, 262)
NAMED = {"fim_pre": PREFIX, "fim_suf": SUFFIX, "fim_mid": MIDDLE, "fim_rep": REPO, "fim_sep": FILE}


def tokenizer(*roles: str, bos: bool = False) -> Tokenizer:
    """A tokenizer of bytes, whose ids are the bytes, and of tokens with these roles."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*byte_letters(), *(f"[{i}]" for i in range(256, 262))],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 6,
        "tokenizer.ggml.merges": ["a a"],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.add_bos_token": bos,
    }
    return from_gguf(metadata | {f"tokenizer.ggml.{role}_token_id": NAMED[role] for role in roles})


ALL = tokenizer(*NAMED)
GAP = Infill("ab", "yz")


def test_prefix_suffix_and_middle_with_the_beginning_of_the_answer() -> None:
    assert Infill("ab", "yz", "c").tokens(ALL) == [PREFIX, *b"ab", SUFFIX, *b"yz", MIDDLE, *b"c"]


def test_bos_comes_first_where_the_model_has_one() -> None:
    assert GAP.tokens(tokenizer(*NAMED, bos=True))[:2] == [BOS, PREFIX]


def test_files_come_before_in_the_form_of_qwen2_5_coder() -> None:
    infill = Infill("ab", "yz", files=[SourceFile("f.py", "x")], repository="r", name="g.py")
    assert infill.tokens(ALL) == [REPO, *b"r\n", FILE, *b"f.py\nx", FILE, *b"g.py\n", *GAP.tokens(ALL)]


def test_without_a_token_for_the_middle_the_suffix_is_first() -> None:
    assert GAP.tokens(tokenizer("fim_pre", "fim_suf")) == [SUFFIX, *b"yz", PREFIX, *b"ab"]


def test_the_outer_ends_give_way_and_each_side_is_sure_of_its_share() -> None:
    long = Infill("a" * 90 + "b" * 10, "y" * 10 + "z" * 90)
    assert long.tokens(ALL, 43) == [PREFIX, *b"a" * 20, *b"b" * 10, SUFFIX, *b"y" * 10, MIDDLE]
    assert Infill("b", "y" * 40 + "z").tokens(ALL, 44) == [PREFIX, *b"b", SUFFIX, *b"y" * 40, MIDDLE]


def test_files_give_way_before_the_text_around_the_gap() -> None:
    files = [SourceFile("f", "x" * 50), SourceFile("g", "y" * 10)]
    kept = Infill("ab", "yz", files=files, name="h").tokens(ALL, 24)
    assert kept == [FILE, *b"g\n", *b"y" * 10, FILE, *b"h\n", *GAP.tokens(ALL)]


def test_a_model_without_such_tokens_is_named_as_the_reason() -> None:
    with pytest.raises(RequestError, match="no tokens for prefix and suffix"):
        GAP.tokens(tokenizer("fim_mid"))
