"""RWKV's tokenizer on a vocabulary made by hand, beside llama.cpp's ids (llama-cpp-python 0.3.36)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import TokenizerError
from pyllm.tokenizers import Tokenizer, from_gguf

WORDS = [
    b"\n\n", b"\t\t", b"\\n", b"ab", b"abc", b"abcde", b"bcd", b"cd", b" the", b"the", b" t", b"here", b"there's",
    b"'s", b'"x"', b"\xc3\xa9", b"\xe6\x97\xa5", b"\xe6\x97", b"\x97\xa5\xe6", b"\xa5\xe6\x9c\xac",
    b"\xf0\x9f\x91", b"a" * 9, b"\x00\x00", b"\x7f\x80", b"\xff\xfe", b"  ", b"    ", b"<s", b"12", b"123", b"\r\n",
]  # fmt: skip
"""Tokens besides the single bytes, some of which begin others or end within a character."""

CASES = {
    "abcde abcd abcx bcde": [262, 33, 261, 101, 33, 261, 121, 33, 263, 102],
    "in there, there's the \"x\"\\n\n\n\n":
        [106, 111, 265, 115, 102, 45, 265, 115, 102, 270, 265, 33, 271, 259, 257, 11],
    "日本é 日日 中 👩\u200d👧":
        [273, 231, 157, 173, 272, 33, 273, 273, 33, 229, 185, 174, 33, 277, 170, 227, 129, 142, 277, 168],
    "aaaaaaaaaaaaaaaaaaaaaa     1234 \t\t\t\r\n\r":
        [278, 278, 98, 98, 98, 98, 283, 33, 286, 53, 33, 258, 10, 287, 14],
    "<s <|tool|> don't it's": [284, 33, 288, 33, 101, 112, 111, 40, 117, 33, 106, 117, 270],
    "": [],
}  # fmt: skip
"""Text to ids."""

PARTS = st.sampled_from([*"abcde th'\"\n\r\t<s>0123\\", "é", "日本", "👩", "\0"]) | st.characters(codec="utf-8")


def metadata(**keys: Any) -> dict[str, Any]:
    """Control token 0, the 256 bytes, WORDS, a user-defined token, an unused one; written as converters do."""
    tokens = [bytes([b]) for b in range(256)] + WORDS
    texts = ["<s>", *(repr(token)[2:-1] for token in tokens), "<|tool|>", "[PAD9]"]
    return {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array([3] + [1] * len(tokens) + [4, 5], np.int32),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 257,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return from_gguf(metadata())


@pytest.mark.parametrize("text", CASES)
def test_ids_are_llama_cpps(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == CASES[text]
    assert tokenizer.decode(CASES[text]) == text


@given(st.lists(PARTS).map("".join))
def test_tokens_are_the_longest_that_fit(text: str) -> None:
    """As an expression finds them whose alternatives are ordered by length."""
    tokenizer = from_gguf(metadata())
    tokens = sorted([bytes([b]) for b in range(256)] + WORDS + [b"<|tool|>"], key=len, reverse=True)
    found = re.findall(b"|".join(map(re.escape, tokens)), text.encode(), re.DOTALL)
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode(text)] == found
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_only_when_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<s>", parse_special=True) == [0]
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("<s>[PAD9]")][:2] == [b"<s", b">"]
    assert tokenizer.decode([0]) == ""
    assert tokenizer.stop_ids == {0, 257}


def test_all_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    found = tokenizer.all_bytes()
    assert found == [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    assert found[1:257] == [bytes([b]) for b in range(256)]
    assert found[257 : 257 + len(WORDS)] == WORDS


def test_characters_arrive_whole(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in tokenizer.encode("日本é👩")]
    assert "".join(parts) + stream.flush() == "日本é👩"
    assert "\ufffd" not in "".join(parts)


def test_vocabularies_without_some_bytes() -> None:
    """What no token fits is the unknown token, or nothing."""
    bare = {"tokens": ["<s>", "a", "<unk>", "\\xzz\\q", "\\"], "token_type": np.array([3, 1, 2, 1, 1], np.int32)}
    assert from_gguf(metadata(**bare)).encode("abxzzqa") == [1, 3, 1]
    assert from_gguf(metadata(**bare, unknown_token_id=2)).encode("aé\\") == [1, 2, 2, 4]


def test_no_tokens() -> None:
    with pytest.raises(TokenizerError, match="by token ids only"):
        from_gguf({"tokenizer.ggml.model": "rwkv"})
