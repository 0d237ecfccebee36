"""Compiled WordPiece and Unigram against the plain code, whose ids are the definition."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizers import TEXT
from test_tokenizers_compiled import LONG_RUNS, SLOW_START, both, of_file

from pyllm.tokenizers import Tokenizer, from_gguf
from pyllm.tokenizers.ugm import _CharsMap

SIGNS = st.text("abé ▁中\n", max_size=40)


def charsmap(listed: dict[str, str]) -> np.ndarray:
    """A normalization table as sentencepiece stores it: a double array over the bytes of what is listed."""
    texts, places = b"", {}
    for old, new in listed.items():
        places[old.encode()] = len(texts)
        texts += new.encode() + b"\0"
    units = np.zeros(1 << 14, np.uint32)
    free = iter(range(1, 60))  # each node's branches in a block of their own

    def fill(place: int, beginning: bytes) -> None:
        base = next(free) * 256
        labels = {key[len(beginning)] for key in places if key.startswith(beginning) and len(key) > len(beginning)}
        leaf = beginning in places
        units[place] |= np.uint32((base ^ place) << 10 | leaf << 8)
        if leaf:
            units[base] = 0x80000000 | places[beginning]
        for label in sorted(labels):
            units[base ^ label] = label
            fill(base ^ label, beginning + bytes([label]))

    fill(0, b"")
    return np.frombuffer(np.uint32(units.nbytes).tobytes() + units.tobytes() + texts, np.uint8)


LISTED = {"ﬁ": "fi", "é": "e", "\u3000": " ", "\t": " ", "ab": "ba", "a": "a", "x": "", "½": " 1/2", "\u200b": ""}


def test_the_tables_of_these_tests_are_read() -> None:
    assert _CharsMap(charsmap(LISTED)).apply("ﬁx éab\u3000a½b\u200bc") == "fi eba a 1/2bc"


def unigram(*tokens: tuple[str, float], byte_tokens: bool = False, **keys: Any) -> Tokenizer:
    entries = [("<pad>", 3, 0.0), ("</s>", 3, 0.0), ("<unk>", 2, 0.0), *((t, 1, s) for t, s in tokens)]
    if byte_tokens:
        entries += [(f"<0x{b:02X}>", 6, 0.0) for b in range(256)]
    return from_gguf(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.tokens": [e[0] for e in entries],
            "tokenizer.ggml.token_type": np.array([e[1] for e in entries], np.int32),
            "tokenizer.ggml.scores": np.array([e[2] for e in entries], np.float32),
            **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        }
    )


TOKENS = st.dictionaries(
    st.text("ab▁cé", min_size=1, max_size=5), st.sampled_from([-1.0, -1.5, -2.0, -2.5, -9.25, 0.0, np.nan]), max_size=12
)


@SLOW_START
@given(tokens=TOKENS, texts=st.lists(SIGNS, max_size=3), byte_tokens=st.booleans(), keys=st.data())
def test_random_unigrams(tokens: dict[str, float], texts: list[str], byte_tokens: bool, keys: st.DataObject) -> None:
    options = {name: keys.draw(st.booleans()) for name in ("add_space_prefix", "remove_extra_whitespaces")}
    if keys.draw(st.booleans()):
        options["precompiled_charsmap"] = charsmap(LISTED)
    tokenizer = unigram(*tokens.items(), byte_tokens=byte_tokens, **options)
    compiled, plain = both(tokenizer, texts)
    assert compiled == plain


@SLOW_START
@given(texts=st.lists(TEXT, max_size=3))
def test_any_text_of_a_unigram_vocabulary(texts: list[str]) -> None:
    signs = [(c, -5.0 - i / 64) for i, c in enumerate("▁aBé中の1.,'!")]
    words = [("▁word", -2.0), ("▁Wor", -2.25), ("wo", -3.0), ("rd", -3.0), ("word", -4.5), (".▁", -3.5), ("▁▁", -4.0)]
    tokenizer = unigram(*signs, *words, precompiled_charsmap=charsmap(LISTED), remove_extra_whitespaces=True)
    compiled, plain = both(tokenizer, texts)
    assert compiled == plain


def test_long_runs_of_a_unigram_vocabulary() -> None:
    tokenizer = unigram(("▁", -3), ("a", -3), ("aa", -4), ("aaaa", -6), ("b", -3), ("▁▁", -4), ("\n", -2), ("1", -2.5))
    compiled, plain = both(tokenizer, [run[:20_000] for run in LONG_RUNS])
    assert compiled == plain


def test_replacements_that_are_much_longer() -> None:
    tokenizer = unigram(("▁", -3), ("a", -3), precompiled_charsmap=charsmap({"中": "a b " * 3000, "é": " "}))
    compiled, plain = both(tokenizer, ["中a中", "é中", "中" * 20])
    assert compiled == plain
    assert len(compiled[2]) > 50_000


def test_an_unknown_token_that_text_may_become_is_left_to_the_plain_code() -> None:
    assert not unigram(("a", -1.0), unknown_token_id=3)._switch.build()


@SLOW_START
@given(texts=st.lists(TEXT | st.text(st.characters(max_codepoint=0x2FFF), max_size=40), max_size=4))
def test_wordpiece(texts: list[str], shared_data: Path) -> None:
    compiled, plain = both(of_file(shared_data / "vocabs" / "ggml-vocab-bert-bge.gguf"), texts)
    assert compiled == plain


@SLOW_START
@given(tokens=st.sets(st.text("ab▁cé[", min_size=1, max_size=4), max_size=12), texts=st.lists(SIGNS, max_size=3))
@pytest.mark.parametrize("lowercase", [True, False])
def test_random_wordpieces(tokens: set[str], texts: list[str], lowercase: bool) -> None:
    tokenizer = from_gguf(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": ["[UNK]", *sorted(tokens)],
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.normalizer.lowercase": lowercase,
            "tokenizer.ggml.normalizer.strip_accents": False,
        }
    )
    compiled, plain = both(tokenizer, [*texts, "İa ÉÀ\u0301Ⱥ"])
    assert compiled == plain


def test_every_character_of_wordpiece(shared_data: Path) -> None:
    tokenizer = of_file(shared_data / "vocabs" / "ggml-vocab-bert-bge.gguf")
    chars = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]
    texts = ["a".join(chars[i : i + 500]) for i in range(0, len(chars), 5000)]
    compiled, plain = both(tokenizer, [*texts, *LONG_RUNS[:2]])
    assert compiled == plain
