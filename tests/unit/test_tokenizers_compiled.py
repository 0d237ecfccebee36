"""Compiled encoders against the plain code, whose ids are the definition."""

from __future__ import annotations

import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizers import TEXT
from test_tokenizers_metadata import bpe_metadata, spm_metadata

from pyllm import gguf
from pyllm.errors import BackendError
from pyllm.jit.compiler import LIBRARY
from pyllm.tokenizers import Tokenizer, from_gguf, pretokenizers
from pyllm.tokenizers.bpe import _TO_CHAR
from pyllm.tokenizers.compiled import automaton, switch
from pyllm.tokenizers.compiled.expressions import Unsupported
from pyllm.tokenizers.compiled.words import Splitter

SLOW_START = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
VOCABS = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"]
LONG_RUNS = [
    "a" * 100_000,
    " " * 100_000,
    "\n" * 70_000,
    "😀" * 30_000,
    "ab" * 50_000,
    "1" * 50_000,
    "a  b\n\n" * 9_000,
]


def both(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of each text by compiled code, in one call, and by plain code."""
    assert tokenizer._switch.build()
    texts = [text for text in texts if text]
    assert tokenizer._switch._encoder is not None
    ids, ends = tokenizer._switch._encoder.encode(texts) if texts else ([], [])
    plain: list[list[int]] = []
    for text in texts:
        plain.append([])
        tokenizer._encode_words(text, plain[-1])
    return [ids[a:b] for a, b in pairwise([0, *ends])], plain


@cache
def of_file(path: Path) -> Tokenizer:
    with gguf.open_gguf(path) as file:
        return from_gguf(file.metadata)


@pytest.mark.parametrize("name", VOCABS)
@SLOW_START
@given(texts=st.lists(TEXT, max_size=4))
def test_real_vocabularies(name: str, texts: list[str], shared_data: Path) -> None:
    compiled, plain = both(of_file(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"), texts)
    assert compiled == plain


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama-spm"])
def test_long_runs_of_real_vocabularies(name: str, shared_data: Path) -> None:
    compiled, plain = both(of_file(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"), LONG_RUNS)
    assert compiled == plain


def test_all_of_wikitext(shared_data: Path) -> None:
    text = (shared_data / "wiki.test.txt").read_text(encoding="utf-8")
    for name in ("llama-bpe", "llama-spm"):
        compiled, plain = both(of_file(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"), [text, text[1:300_000]])
        assert compiled == plain


PAIRS = st.tuples(st.text("abé", min_size=1, max_size=3), st.text("abé", min_size=1, max_size=3))


@SLOW_START
@given(pairs=st.lists(PAIRS, max_size=12), texts=st.lists(st.text("abé 中\n", max_size=60), max_size=3))
def test_random_merges(pairs: list[tuple[str, str]], texts: list[str]) -> None:
    written = [" ".join("".join(_TO_CHAR[b] for b in part.encode()) for part in pair) for pair in pairs]
    tokenizer = from_gguf(bpe_metadata(merges=written))
    parts = {p for m in written for p in m.split()}
    if not parts <= set(tokenizer.vocab.ids):  # such merges are left to the plain code
        assert not tokenizer._switch.build()
        return
    compiled, plain = both(tokenizer, texts)
    assert compiled == plain


@SLOW_START
@given(
    tokens=st.dictionaries(st.text("ab▁cé", min_size=2, max_size=5), st.sampled_from([-1.0, -2.0, -2.5, -9.0, 0.0])),
    texts=st.lists(st.text("abcé ▁中\n", max_size=60), max_size=3),
)
def test_random_scores(tokens: dict[str, float], texts: list[str]) -> None:
    compiled, plain = both(from_gguf(spm_metadata(*((t, 1, s) for t, s in tokens.items()))), texts)
    assert compiled == plain


def gemma4(*tokens: str, merges: list[str]) -> Tokenizer:
    """Byte-pair encoding of characters; what is no token is written in bytes."""
    entries = ["<bos>", "▁", *tokens, *(f"<0x{b:02X}>" for b in range(256))]
    return from_gguf(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": entries,
            "tokenizer.ggml.token_type": np.array([3] + [1] * (len(tokens) + 1) + [6] * 256, np.int32),
            "tokenizer.ggml.merges": merges,
        }
    )


@SLOW_START
@given(texts=st.lists(st.text("abé ▁中\n", max_size=60), max_size=3))
def test_merges_of_characters(texts: list[str]) -> None:
    tokenizer = gemma4("a", "b", "▁a", "ab", "ab▁a", "aa", "\n\n", "é", merges=["a b", "▁ a", "ab ▁a", "a a"])
    compiled, plain = both(tokenizer, texts)
    assert compiled == plain


def test_vocabularies_with_holes() -> None:
    """Bytes without a token, equal scores, no scores, tokens that hold a space or are no text."""
    few = bpe_metadata(("a b", 1), ("\udc80", 1), merges=["a a"])
    gone = few["tokenizer.ggml.tokens"].index("c")
    few["tokenizer.ggml.tokens"][gone] = "?c?"
    bare = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "aa", "a b", "\udc80"],
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1, 1, 1, 1], np.int32),
    }
    for metadata in (few, bare, bare | {"tokenizer.ggml.unknown_token_id": 99}, spm_metadata(("ab", 1, np.nan))):
        compiled, plain = both(from_gguf(metadata), ["aaa abc", "é a b", "c", "a\x00"])
        assert compiled == plain


@pytest.mark.parametrize("char", ["a", " ", "\n", "é"])
def test_long_runs(char: str) -> None:
    for metadata in (bpe_metadata(merges=["a a", "aa aa"]), spm_metadata(("aa", 1, -1), ("aaaa", 1, 0), ("▁▁", 1, -2))):
        compiled, plain = both(from_gguf(metadata), [char * 100_000, char * 40, char * 41])
        assert compiled == plain


@SLOW_START
@given(texts=st.lists(TEXT.filter(bool), min_size=1, max_size=3))
def test_words_are_those_of_the_expressions(texts: list[str]) -> None:
    data, ends = "".join(texts).encode(), np.cumsum([len(t.encode()) for t in texts]).astype(np.int32)
    for name in pretokenizers.names():
        if name == "superbpe":
            continue
        cuts = [0, *splitter(name).ends(data, ends).tolist()]
        words = [data[a:b].decode() for a, b in pairwise(cuts)]
        assert words == [word for text in texts for word in plain_splitter(name)(text)], name


@cache
def splitter(name: str) -> Splitter:
    pre = pretokenizers.get(name)
    return Splitter((pre.fused,) if pre.fused else pre.patterns)


@cache
def plain_splitter(name: str) -> Any:
    return pretokenizers.splitter(pretokenizers.get(name))


def test_what_the_automaton_cannot_do_is_left_to_the_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for expression in (r"(?=ab)a", r"^a", r"(a)\1", r"a\b", r"a*?"):
        with pytest.raises(Unsupported):
            Splitter((expression,))
    superbpe = from_gguf(bpe_metadata() | {"tokenizer.ggml.pre": "superbpe"})
    assert not superbpe._switch.build()
    assert superbpe.decode(superbpe.encode("hello 12345 " * 100_000)) == "hello 12345 " * 100_000
    monkeypatch.setattr(automaton, "_MOST_STATES", 3)
    crowded = from_gguf(bpe_metadata())
    plain: list[int] = []
    crowded._encode_words("hello hell " * 1000, plain)
    assert crowded._switch.build()
    assert crowded.encode("hello hell " * 1000) == plain


def test_pieces_and_special_tokens_keep_their_order() -> None:
    tokenizer = from_gguf(spm_metadata(("<x>", 3, 0.0), ("ab", 1, -2.0)))
    text = "ab<x>b a<x><x>é" * 300
    plain = tokenizer.encode(text, parse_special=True)
    assert tokenizer._switch._encoder is None
    assert tokenizer._switch.build()
    assert tokenizer.encode(text, parse_special=True) == plain
    assert tokenizer.encode("a\ud800" * 2000) == tokenizer.encode("a\ufffd" * 2000)


def test_short_texts_make_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch.Switch, "build", lambda self: pytest.fail("made an encoder"))
    tokenizer = from_gguf(bpe_metadata())
    for _ in range(10):
        tokenizer.encode("hello " * 1000)


def test_many_short_texts_make_one_beside_them() -> None:
    tokenizer = from_gguf(bpe_metadata())
    for _ in range(30):
        tokenizer.encode("hello " * 1000)
    thread = tokenizer._switch._thread
    assert thread is not None
    thread.join(60)
    assert tokenizer._switch._encoder is not None
    assert len(tokenizer.encode("hello" * 1000)) == 1000


def test_where_nothing_compiles_texts_are_encoded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendError("no compiler here")

    monkeypatch.setattr(LIBRARY, "load", fail)
    tokenizer = from_gguf(bpe_metadata())
    assert len(tokenizer.encode("hello " * 200_000)) == 400_000
    assert not tokenizer._switch.build()


def test_threads_share_an_encoder(shared_data: Path) -> None:
    tokenizer = of_file(shared_data / "vocabs" / "ggml-vocab-gpt-2.gguf")
    texts = [f"{word} {i} 中文 " * 3000 for i, word in enumerate(["one", "two", "three", "four"])]
    plain: list[list[int]] = [[], [], [], []]
    for text, ids in zip(texts, plain, strict=True):
        tokenizer._encode_words(text, ids)
    assert tokenizer._switch.build()
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: tokenizer.encode(texts[i])})) for i in range(len(texts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(texts))] == plain
