"""Vocabularies made by hand: what metadata may say, what damaged metadata does, and hostile texts."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from pyllm.errors import TokenizerError
from pyllm.tokenizers import Tokenizer, from_gguf
from pyllm.tokenizers.bpe import _TO_CHAR


def bpe_metadata(*extra: tuple[str, int], merges: list[str] | None = None, **keys: Any) -> dict[str, Any]:
    """All byte tokens, the results of the merges, and tokens with a type of their own."""
    merges = ["h e", "l l", "he ll", "hell o"] if merges is None else merges
    tokens = [*_TO_CHAR.values(), *dict.fromkeys(m.replace(" ", "") for m in merges), *(text for text, _ in extra)]
    types = [1] * (len(tokens) - len(extra)) + [kind for _, kind in extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def spm_metadata(*extra: tuple[str, int, float], **keys: Any) -> dict[str, Any]:
    """The roles, all byte tokens, a few letters, and more."""
    entries = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)]
    entries += [(f"<0x{b:02X}>", 6, 0.0) for b in range(256)]
    entries += [(c, 1, -100.0) for c in "▁abcd"] + list(extra)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [e[0] for e in entries],
        "tokenizer.ggml.token_type": np.array([e[1] for e in entries], np.int32),
        "tokenizer.ggml.scores": np.array([e[2] for e in entries], np.float32),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def texts(tokenizer: Tokenizer, text: str, **options: Any) -> list[str]:
    return [tokenizer.vocab.texts[i] for i in tokenizer.encode(text, **options)]


def test_merges_by_rank() -> None:
    assert texts(from_gguf(bpe_metadata()), "hello hell") == ["hello", "Ġ", "hell"]
    assert texts(from_gguf(bpe_metadata(merges=["l l", "e ll", "h e"])), "hell") == ["h", "ell"]


def test_control_tokens_only_when_asked_user_tokens_always() -> None:
    tokenizer = from_gguf(bpe_metadata(("<stop>", 3), ("<tool>", 4)))
    stop, tool = tokenizer.token_id("<stop>"), tokenizer.token_id("<tool>")
    ids = tokenizer.encode("<tool><stop>")
    assert ids[0] == tool
    assert stop not in ids
    assert tokenizer.encode("<tool><stop>", parse_special=True) == [tool, stop]
    assert tokenizer.decode([tool, stop]) == "<tool>"
    assert tokenizer.token_id("<none>") is None


def test_longer_special_tokens_go_first() -> None:
    tokenizer = from_gguf(bpe_metadata(("ab", 4), ("bcd", 4)))
    assert texts(tokenizer, "abcd") == ["a", "bcd"]


def test_bos_and_eos_as_the_file_says() -> None:
    plain = from_gguf(bpe_metadata(bos_token_id=5, eos_token_id=6))
    assert (plain.bos_id, plain.eos_id) == (5, 6)
    assert texts(plain, "hello") == ["hello"]
    both = from_gguf(bpe_metadata(bos_token_id=5, eos_token_id=6, add_bos_token=True, add_eos_token=True))
    ids = both.encode("hello")
    assert (ids[0], ids[-1], len(ids)) == (5, 6, 3)
    assert len(both.encode("hello", add_special=False)) == 1
    llama3 = from_gguf(bpe_metadata(bos_token_id=5) | {"tokenizer.ggml.pre": "llama-bpe"})
    assert llama3.encode("")[:1] == [5]
    spm = from_gguf(spm_metadata())
    assert (spm.bos_id, spm.eos_id, spm.encode("")) == (1, 2, [1])
    assert from_gguf(spm_metadata(add_bos_token=False)).encode("") == []


def test_stop_ids_by_role_and_by_text() -> None:
    tokenizer = from_gguf(
        bpe_metadata(("<|im_end|>", 3), ("<|eom_id|>", 1), ("</s>", 1), ("<x>", 3), eos_token_id=3, eot_token_id=7)
    )
    named = {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|eom_id|>")}
    assert tokenizer.stop_ids == {3, 7} | named
    assert tokenizer.is_special(tokenizer.token_id("<|eom_id|>") or 0)
    harmony = from_gguf(bpe_metadata(("<|return|>", 3), ("<|call|>", 3), ("<|end|>", 3), ("<|channel|>", 3)))
    text = "<|channel|>hello<|end|><|return|>"
    ids = harmony.encode(text, parse_special=True)
    assert len(ids) == 4
    assert ids[2] not in harmony.stop_ids
    assert ids[3] in harmony.stop_ids
    assert harmony.decode(ids) == "<|channel|>hello<|end|>"
    assert not set(harmony.encode(text)) & {ids[0], ids[2], ids[3]}


def test_ignored_merges_take_whole_words() -> None:
    metadata = bpe_metadata(("lo", 1), merges=["h e"]) | {"tokenizer.ggml.pre": "llama-bpe"}
    assert texts(from_gguf(metadata), "lo") == ["lo"]
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    assert texts(from_gguf(metadata), "lo") == ["l", "o"]


def test_spm_merges_best_score_first_and_falls_back_to_bytes() -> None:
    tokenizer = from_gguf(spm_metadata(("ab", 1, -2.0), ("bc", 1, -1.0), ("▁a", 1, -3.0)))
    assert texts(tokenizer, "abc", add_special=False) == ["▁a", "bc"]
    assert texts(tokenizer, "é", add_special=False) == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    bare = from_gguf(spm_metadata(("ab", 1, -2.0), add_space_prefix=False))
    assert texts(bare, "ab", add_special=False) == ["ab"]


def test_spm_without_byte_tokens_writes_unknown() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a"],
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1], np.int32),
    }
    assert from_gguf(metadata).encode("aé", add_special=False) == [3, 4, 0]


def test_spm_tokens_across_words() -> None:
    tokenizer = from_gguf(spm_metadata(("a▁", 1, -1.0), ("a▁b", 1, -0.5)))
    assert texts(tokenizer, "a b", add_special=False) == ["▁", "a▁b"]
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_bpe_of_plain_characters() -> None:
    entries = ["<bos>", "▁", "a", "b", "▁a", "\n\n", *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer = from_gguf(
        {
            "tokenizer.ggml.model": "gemma4",
            "tokenizer.ggml.tokens": entries,
            "tokenizer.ggml.token_type": np.array([3, 1, 1, 1, 1, 1] + [6] * 256, np.int32),
            "tokenizer.ggml.merges": ["▁ a"],
            "tokenizer.ggml.bos_token_id": 0,
        }
    )
    assert texts(tokenizer, "b a\n\né") == ["<bos>", "b", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("b a\n\né")) == "b a\n\né"


@pytest.mark.parametrize("kind", [None, "none", "no_vocab", "test", "plamo2", 7])
def test_no_usable_vocabulary(kind: Any) -> None:
    with pytest.raises(TokenizerError, match="by token ids only"):
        from_gguf({} if kind is None else {"tokenizer.ggml.model": kind})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
        ({"tokenizer.ggml.tokens": []}, "empty"),
        ({"tokenizer.ggml.tokens": np.arange(5)}, "not a list of strings"),
        ({"tokenizer.ggml.tokens": ["a", 3]}, "not a list of strings"),
        ({"tokenizer.ggml.token_type": np.array([1, 1], np.int32)}, "token_type has 2 entries"),
        ({"tokenizer.ggml.token_type": ["a"] * 1000}, "not a list of numbers"),
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, "scores has 3 entries"),
        ({"tokenizer.ggml.scores": "x"}, "not a list of numbers"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": [1, 2]}, "not a list of strings"),
        ({"tokenizer.ggml.pre": "from-the-future"}, "from-the-future"),
    ],
)
def test_damaged_metadata(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        from_gguf(bpe_metadata() | change)


def test_odd_metadata_is_survived() -> None:
    odd = bpe_metadata(
        ("", 3), ("<x>", 99), ("hello", 1),
        merges=["", " ", "nospace", "a  b", "h e", "h e", "he y", "un known", " x y"],
        bos_token_id=10**9, eos_token_id=-1, unknown_token_id="x",
    )  # fmt: skip
    tokenizer = from_gguf(odd)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)
    for text in ("hello un known hey", "", "\x00", "<x>"):
        assert tokenizer.decode(tokenizer.encode(text, parse_special=True)) == text
    scores = np.full(len(spm_metadata()["tokenizer.ggml.tokens"]) + 2, np.nan, np.float32)
    spm = from_gguf(spm_metadata(("ab", 1, 0.0), ("cd", 1, 0.0), scores=scores))
    assert spm.decode(spm.encode("abcd ab")) == "abcd ab"


def test_missing_pretokenizer_warns(caplog: pytest.LogCaptureFixture) -> None:
    metadata = bpe_metadata()
    del metadata["tokenizer.ggml.pre"]
    assert texts(from_gguf(metadata), "hello") == ["hello"]
    assert "tokenizer.ggml.pre" in caplog.text


def test_ids_outside_the_vocabulary() -> None:
    tokenizer = from_gguf(bpe_metadata())
    for bad in (-1, tokenizer.n_vocab, 10**12):
        for call in (
            tokenizer.token_bytes,
            tokenizer.is_special,
            tokenizer.stream().push,
            lambda i: tokenizer.decode([i]),
        ):
            with pytest.raises(TokenizerError, match="outside the vocabulary"):
                call(bad)


def test_ids_from_numpy() -> None:
    tokenizer = from_gguf(bpe_metadata())
    assert tokenizer.decode(np.array(tokenizer.encode("hello"))) == "hello"


@pytest.mark.parametrize("metadata", [bpe_metadata(), spm_metadata()])
def test_lone_surrogates(metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("a\ud83d\ude00b")) == "a😀b"


@pytest.mark.parametrize(
    "metadata", [bpe_metadata(merges=["a a", "aa aa"]), spm_metadata(("aa", 1, -1), ("aaaa", 1, 0))]
)
@pytest.mark.parametrize("char", ["a", " ", "\n", "é"])
def test_long_runs_end(metadata: dict[str, Any], char: str) -> None:
    tokenizer = from_gguf(metadata)
    for n in (60_000, 200_000):  # by plain code, and by compiled code where it is there; squares would take minutes
        assert tokenizer.decode(tokenizer.encode(char * n)) == char * n


@pytest.mark.parametrize(
    "metadata",
    [
        bpe_metadata(("<x>", 3), bos_token_id=5, add_bos_token=True),
        spm_metadata(("ab", 1, -2.0)),
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": ["[UNK]", "▁a", "b", "▁c"],
            "tokenizer.ggml.unknown_token_id": 0,
        },
        {"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "▁", "a", "▁ab", "b"]},
    ],
)
def test_a_pickled_tokenizer_is_the_same(metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(metadata | {"general.name": "Phi-3", "other.key": 1}, 1000)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert type(copy) is type(tokenizer)
    assert copy.n_vocab == tokenizer.n_vocab == 1000
    assert copy.vocab.swallowing_ids == tokenizer.vocab.swallowing_ids
    for text in ("ab abc <x> hello", "", "é"):
        ids = tokenizer.encode(text, parse_special=True)
        assert copy.encode(text, parse_special=True) == ids
        assert copy.decode(ids) == tokenizer.decode(ids)


def test_ids_of_rows_beyond_the_tokens_show_nothing() -> None:
    metadata = bpe_metadata()
    n = len(metadata["tokenizer.ggml.tokens"])
    tokenizer = from_gguf(metadata, n + 3)
    assert tokenizer.n_vocab == n + 3
    assert tokenizer.decode([*tokenizer.encode("hello"), n, n + 2]) == "hello"
    assert tokenizer.stream().push(n + 1) == ""
    assert (tokenizer.token_text(n), tokenizer.is_special(n)) == ("", False)
    assert max(tokenizer.encode(f"[PAD{n}]", parse_special=True)) < n
    assert len(metadata["tokenizer.ggml.tokens"]) == n
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        tokenizer.decode([n + 3])
