"""Control tokens written in a message: broken by a mark, whichever they are and however they overlap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyllm.chat import ChatTemplate
from pyllm.tokenizers.specials import Finder

MARK = "\ufdd0"


def template(tokens: list[str]) -> ChatTemplate:
    roles = dict.fromkeys(("bos_id", "eos_id", "unk_id", "pad_id"))
    ids = {token: i for i, token in enumerate(tokens)}
    vocab: Any = SimpleNamespace(special_ids=ids, **roles)
    tokenizer: Any = SimpleNamespace(vocab=vocab, broken=Finder(ids, frozenset()).broken)
    return ChatTemplate({"default": "x"}, tokenizer)


@given(st.lists(st.text("ab<|", max_size=6), max_size=8), st.text("ab<|", max_size=40))
def test_no_control_token_is_left_whole(tokens: list[str], text: str) -> None:
    broken = template(tokens)._marked([{"content": text}], MARK)[0]["content"]
    assert broken.replace(MARK, "") == text
    assert not any(token in broken for token in tokens if len(token) > 1)
    if not any(token and token in text for token in tokens):
        assert broken == text


def test_text_without_control_tokens_is_left_as_it_is() -> None:
    given = {"a<|im_en": ["<|im_en", 5, None], "role": ("end", True)}
    assert template(["<|im_end|>"])._marked(given, MARK) == given


def test_names_of_properties_are_marked_and_names_that_templates_ask_for_are_not() -> None:
    """A tool's schema comes from outside, too; a vocabulary may hold "role" as a control token."""
    given = {"role": "user", "properties": {"a<|im_end|>": {"type": "role"}}}
    assert template(["<|im_end|>", "role"])._marked(given, MARK) == {
        "role": "user",
        "properties": {f"a<{MARK}|im_end|>": {"type": f"r{MARK}ole"}},
    }


def test_thousands_of_tokens_that_begin_alike() -> None:
    tokens = [f"<unused{i}>" for i in range(6000)]
    broken = template(tokens)._marked("a <unused5999> b <unused0> <unused>", MARK)
    assert broken == f"a <{MARK}unused5999> b <{MARK}unused0> <unused>"
