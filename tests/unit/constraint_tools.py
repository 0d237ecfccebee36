"""Random walks under masks: answers of a model that knows nothing but what the mask allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllm import gguf
from pyllm.constraints.constraint import Constraint
from pyllm.constraints.vocabulary import Vocabulary, vocabulary
from pyllm.tokenizers import Tokenizer, from_gguf


@cache
def load(path: Path) -> Tokenizer:
    with gguf.open_gguf(path) as file:
        return from_gguf(file.metadata)


def vocabulary_of(shared_data: Path, name: str) -> Vocabulary:
    return vocabulary(load(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"))


def allowed(constraint: Constraint, vocab: Vocabulary) -> list[int]:
    """The tokens of a constraint's mask."""
    mask = np.zeros(vocab.n_words, np.int32)
    constraint.mask(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: vocab.n_tokens]
    return np.flatnonzero(bits).tolist()


@cache
def _closing(vocab: Vocabulary) -> NDArray[np.float64]:
    """How much likelier tokens are that bring a JSON text to its end; [n_tokens]."""
    closes = [any(sign in piece for sign in b'"}]') for piece in vocab.token_bytes]
    weight = np.where(closes, 8.0, 0.0)
    weight[list(vocab.end_ids)] = 12
    return weight


def walk(
    constraint: Constraint, vocab: Vocabulary, seed: int, most: int = 400, marks: Sequence[str] = ()
) -> tuple[list[int], bool]:
    """Tokens drawn under a constraint's masks, and whether the answer came to its end before `most` tokens.

    Of the tokens allowed at each step, a few hundred at random compete, and all that may close something. Now and then
    one of `marks` is written, as far as it is allowed.
    """
    random = np.random.default_rng(seed)
    weight = _closing(vocab)
    made: list[int] = []
    words = vocab.tokenizer
    texts = [words.encode_within(mark) for mark in marks]
    texts += [words.encode(mark, add_special=False, parse_special=True) for mark in marks]
    mark: list[int] = []
    while len(made) < most and not constraint.finished:
        choices = np.array(allowed(constraint, vocab))
        ends = [i for i in vocab.end_ids if i in choices]
        assert bool(ends) == constraint.allows_end
        assert len(ends) in (0, len(vocab.end_ids)), "all end tokens, or none"
        if forced := constraint.forced():
            assert choices.tolist() == forced[:1]
        some = random.choice(choices, 300) if len(choices) > 600 else choices
        some = np.unique(np.concatenate([some, choices[weight[choices] > 0][:300]]))
        token = int(some[np.argmax(random.normal(size=len(some)) * 3 + weight[some])])
        if texts and not mark and random.random() < 0.2:
            mark = [*texts[random.integers(len(texts))]]
        mark = mark if mark and mark[0] in choices else []
        token = mark.pop(0) if mark else token
        if token in vocab.end_ids:
            return made, True
        constraint.advance(token)
        made.append(token)
    return made, constraint.allows_end


def completed(text: str) -> str:
    """A JSON text that was cut, brought to an end in the simplest way: what is open is closed.

    Written out by hand, so that it fails for texts that no JSON text begins with.
    """
    closers: list[str] = []
    string = escape = False
    for sign in text:
        if string:
            escape, string = (not escape and sign == "\\"), escape or sign != '"'
        elif sign == '"':
            string = True
        elif sign in "{[":
            closers.append("}" if sign == "{" else "]")
        elif sign in "}]":
            assert closers[-1:] == [sign]
            closers.pop()
    endings = ['"', "", "0", "0}", "true", '":0', '"', '"":0', ":0", "null"]
    words = [word[n:] for word in ("true", "false", "null") for n in range(1, len(word))]
    for ending in [*endings, *words, *('0' * n + '"' for n in range(1, 5)), *('0' * n + '":0' for n in range(1, 5)),
                   '\\"', '\\":0', 'n"', 'n":0']:  # fmt: skip
        whole = text + ending + "".join(reversed(closers))
        try:
            json.loads(whole)
            return whole
        except ValueError:
            continue
    raise AssertionError(f"no JSON text begins so: {text[-80:]!r}")
