"""Cutting texts at special tokens: by a plain definition, and in a time that is linear in the text."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers_metadata import bpe_metadata, texts

from pyllm.tokenizers import from_gguf
from pyllm.tokenizers.specials import Finder

PIECES = st.text("ab< \né中", min_size=1, max_size=5)


def by_definition(ids: dict[str, int], swallowing: set[int], text: str) -> list[str | int]:
    """llama.cpp's way: one token after the other, the longest in bytes first, cuts every piece that is left."""
    pieces: list[str | int] = [text] if text else []
    for token in sorted(ids, key=lambda t: (-len(t.encode()), ids[t])):
        pieces = [p for piece in pieces for p in cut(piece, token, ids[token], ids[token] in swallowing)]
    return pieces


def cut(piece: str | int, token: str, token_id: int, swallows: bool) -> Iterator[str | int]:
    if isinstance(piece, int):
        yield piece
        return
    for i, part in enumerate(piece.split(token)):
        if i:
            yield token_id
        rest = part.lstrip(" \t\n\v\f\r") if i and swallows else part
        if rest:
            yield rest


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(PIECES, max_size=6, unique=True), text=st.text("ab< \né中", max_size=30), data=st.data())
def test_cut_is_what_the_definition_says(tokens: list[str], text: str, data: st.DataObject) -> None:
    ids = {token: i for i, token in enumerate(tokens)}
    swallowing = data.draw(st.sets(st.sampled_from(sorted(ids.values())))) if ids else set()
    assert Finder(ids, frozenset(swallowing)).cut(text) == by_definition(ids, swallowing, text)


def test_thousands_of_tokens_in_a_text_are_found_in_linear_work() -> None:
    finder = Finder({f"<unused{i}>": i for i in range(6000)}, frozenset())

    def calls(n: int) -> int:
        counted = 0

        def count(*_: object) -> None:
            nonlocal counted
            counted += 1

        text = "".join(f"<unused{i}> word " for i in range(n))
        sys.setprofile(count)
        try:
            pieces = finder.cut(text)
        finally:
            sys.setprofile(None)
        assert pieces == [p for i in range(n) for p in (i, " word ")]
        return counted

    calls(6000)  # what is kept from call to call
    assert calls(6000) < 5 * calls(1500)


def test_runs_of_tokens_that_are_parts_of_each_other() -> None:
    finder = Finder({"\n" * n: n for n in range(1, 32)}, frozenset())
    assert finder.cut("\n" * 100) == [31, 31, 31, 7]
    assert finder.cut("a\n\nb\n") == ["a", 2, "b", 1]


def test_six_thousand_special_tokens_encode_as_themselves() -> None:
    tokenizer = from_gguf(bpe_metadata(*((f"<unused{i}>", 4) for i in range(6000))))
    text = "".join(f"<unused{i}>hello" for i in range(6000))
    assert texts(tokenizer, text)[:4] == ["<unused0>", "hello", "<unused1>", "hello"]
    assert len(tokenizer.encode(text)) == 12000


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(PIECES.filter(lambda t: len(t) > 1), max_size=6, unique=True), text=st.text("ab< é", max_size=30)
)
def test_a_broken_text_holds_no_token(tokens: list[str], text: str) -> None:
    broken = Finder({token: i for i, token in enumerate(tokens)}, frozenset()).broken(text, "|")
    assert broken.replace("|", "") == text
    assert not any(token in broken for token in tokens)
    if not any(token in text for token in tokens):
        assert broken == text
