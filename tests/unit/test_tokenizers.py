"""Tokenizers against llama.cpp's reference outputs and the `tokenizers` library, and what must hold for all text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizer_cases as cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm import gguf
from pyllm.tokenizers import Tokenizer, bpe, from_gguf, pretokenizers
from pyllm.tokenizers.bpe import BPETokenizer

VOCABS = ["bert-bge", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "starcoder"]
BYTE_LEVEL = ["gpt-2", "llama-bpe", "qwen2"]  # these have a token for every byte

# Text as tokenizers see it: words, digits, blanks of all kinds, marks, scripts, emoji, text of special tokens.
WORDS = """a B é ß Ω я 中 文字 の 한국 ไ हि ع 😀 👩‍👩‍👧 1 23 4567 ½ ٣ . , !? 's 'LL 're $ + _ ( ) ` ^ | ~ İ ǅ ﬁ 𝒳 ª ▁ Ġ
<|endoftext|> <s> </s> <0x0A> word Word WORD"""
BLANKS_AND_ODD = " |  |\n|\r\n|\t|\u00a0|\u3000|\u200b|\u2028|\u0301|\0|\ufffd|\U0010ffff"
PARTS = st.sampled_from(WORDS.split() + BLANKS_AND_ODD.split("|"))
TEXT = st.lists(PARTS, max_size=30).map("".join) | st.text(max_size=40)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def load(path: Path) -> Tokenizer:
    with gguf.open_gguf(path) as file:
        return from_gguf(file.metadata)


@pytest.fixture(scope="session")
def vocab(shared_data: Path) -> Callable[[str], Tokenizer]:
    return lambda name: load(shared_data / "vocabs" / f"ggml-vocab-{name}.gguf")


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Callable[[str], Iterator[tuple[str, list[int]]]]:
    def read(name: str) -> Iterator[tuple[str, list[int]]]:
        base = shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"
        with open(f"{base}.inp", encoding="utf-8", newline="") as file:
            texts = file.read().split("\n__ggml_vocab_test__\n")
        lines = Path(f"{base}.out").read_text().split("\n")
        return zip(texts, ([int(i) for i in line.split()] for line in lines), strict=False)

    return read


@pytest.mark.parametrize("name", VOCABS)
def test_every_reference_line(
    name: str, vocab: Callable[[str], Tokenizer], reference: Callable[[str], Iterator[tuple[str, list[int]]]]
) -> None:
    tokenizer = vocab(name)
    n = 0
    for text, ids in reference(name):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)
        if name != "bert-bge":
            assert tokenizer.decode(ids) == text
        n += 1
    assert n >= 46


@pytest.mark.parametrize("name", ["smollm2", "qwen-coder"])
def test_models_as_llama_cpp(name: str, model_path: Callable[[str], Path]) -> None:
    tokenizer = load(model_path(name))
    plain, special = cases.MODELS[name]
    assert [tokenizer.encode(t, add_special=False) for t in cases.TEXTS] == plain
    assert [tokenizer.encode(t, parse_special=True) for t in cases.TEXTS] == special


@pytest.mark.parametrize(("name", "text", "plain", "special"), cases.VOCABS)
def test_special_tokens_as_llama_cpp(
    name: str, text: str, plain: list[int], special: list[int], vocab: Callable[[str], Tokenizer]
) -> None:
    assert vocab(name).encode(text, add_special=False) == plain
    assert vocab(name).encode(text, parse_special=True) == special


@pytest.mark.parametrize(
    ("name", "stops"),
    [("gpt-2", {50256}), ("llama-bpe", {128001, 128009}), ("llama-spm", {2}), ("phi-3", {2, 32000, 32007}),
     ("qwen2", {151643, 151645}), ("starcoder", {0, 4})],
)  # fmt: skip
def test_stop_ids(name: str, stops: set[int], vocab: Callable[[str], Tokenizer]) -> None:
    assert vocab(name).stop_ids == stops


def test_special_tokens_are_left_out_of_text(vocab: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocab("llama-bpe")
    ids = tokenizer.encode("<|begin_of_text|>Hi<|eot_id|>", add_special=False, parse_special=True)
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|begin_of_text|>Hi<|eot_id|>"
    assert [tokenizer.is_special(i) for i in ids] == [True, False, True]
    assert tokenizer.token_text(ids[0]) == "<|begin_of_text|>"
    assert tokenizer.encode("Hi") == [tokenizer.bos_id, ids[1]]
    assert tokenizer.n_vocab == 128256


@pytest.mark.parametrize("name", BYTE_LEVEL)
@FAST
@given(text=TEXT)
def test_decode_undoes_encode(name: str, vocab: Callable[[str], Tokenizer], text: str) -> None:
    tokenizer = vocab(name)
    for parse in (False, True):
        ids = tokenizer.encode(text, add_special=False, parse_special=parse)
        assert tokenizer.decode(ids, skip_special=False) == text
    assert not any(map(tokenizer.is_special, tokenizer.encode(text, add_special=False)))


@FAST
@given(text=TEXT.filter(lambda t: "▁" not in t))
def test_decode_undoes_encode_spm(vocab: Callable[[str], Tokenizer], text: str) -> None:
    tokenizer = vocab("llama-spm")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not any(map(tokenizer.is_special, tokenizer.encode(text, add_special=False)))


@pytest.mark.parametrize("name", VOCABS)
@FAST
@given(data=st.data())
def test_stream_is_decode_in_parts(name: str, vocab: Callable[[str], Tokenizer], data: st.DataObject) -> None:
    tokenizer = vocab(name)
    random_ids = st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=20)
    ids = data.draw(random_ids | TEXT.map(lambda t: tokenizer.encode(t)))
    for skip in (True, False):
        stream = tokenizer.stream(skip_special=skip)
        parts = [stream.push(i) for i in ids]
        # What a stream has given so far is never taken back.
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


def test_stream_never_splits_a_character(vocab: Callable[[str], Tokenizer]) -> None:
    for name in ("gpt-2", "llama-spm"):
        tokenizer = vocab(name)
        stream = tokenizer.stream()
        ids = tokenizer.encode("a👩‍👧é", add_special=False)
        parts = [stream.push(i) for i in ids]
        assert "".join(parts) == "a👩‍👧é"
        assert "\ufffd" not in "".join(parts)
        assert "" in parts
        cut = tokenizer.stream()
        assert "".join(map(cut.push, tokenizer.encode("😀", add_special=False)[:-1])) == ""
        assert cut.flush() == "\ufffd"


def test_stream_that_continues_keeps_the_first_space(vocab: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocab("llama-spm")
    [paris] = tokenizer.encode("Paris", add_special=False)
    assert tokenizer.stream().push(paris) == "Paris"
    assert tokenizer.stream(continues=True).push(paris) == " Paris"


@FAST
@given(text=TEXT)
def test_fused_patterns_cut_as_the_sequence_does(text: str) -> None:
    pre = pretokenizers.get("smollm")
    assert pre.fused is not None
    plain = pretokenizers.PreTokenizer(pre.patterns)
    assert pretokenizers.splitter(pre)(text) == pretokenizers.splitter(plain)(text)


@FAST
@given(text=TEXT)
def test_splitting_loses_nothing(text: str) -> None:
    for name in pretokenizers.names():
        assert "".join(splitter(name)(text)) == text


@cache
def splitter(name: str) -> Callable[[str], list[str]]:
    return pretokenizers.splitter(pretokenizers.get(name))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "It's  12 o'clock!\n", ["It", "'s", " ", " 12", " o", "'", "clock", "!", "\n"]),
        ("smollm", "x  12", ["x", "  ", "1", "2"]),
        ("llama3", "I'LL pay $12345 \n\n now", ["I", "'LL", " pay", " $", "123", "45", " \n\n", " now"]),
        ("qwen2", "a 12", ["a", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld it's", ["Hello", "World", " it's"]),
        ("tekken", "HelloWorld it's 12", ["Hello", "World", " it", "'s", " ", "1", "2"]),
        ("deepseek-v3", "abc12345中文.x", ["abc", "123", "45", "中文", ".x"]),
        ("falcon", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("viking", "ab 12, c", ["ab", " ", "1", "2", ",", " c"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_words_of_known_pretokenizers(name: str, text: str, words: list[str]) -> None:
    assert splitter(name)(text) == words


@FAST
@given(text=TEXT.filter(bool))
def test_short_and_long_words_are_merged_alike(vocab: Callable[[str], Tokenizer], text: str) -> None:
    tokenizer = vocab("gpt-2")
    assert isinstance(tokenizer, BPETokenizer)
    word = "".join(bpe._TO_CHAR[b] for b in text.encode())
    assert bpe.merge(word[:40], tokenizer._ranks) == bpe._merge_long(list(word[:40]), tokenizer._ranks)
    assert tuple(bpe_oracle(tokenizer)(word)) == tokenizer._tokens(bpe._merge_long(list(word), tokenizer._ranks))


@cache
def bpe_oracle(ours: BPETokenizer) -> Callable[[str], list[int]]:
    from tokenizers.models import BPE

    model = BPE(ours.vocab.ids, [tuple(merge.split(" ")) for merge in ours._merges])
    return lambda word: [token.id for token in model.tokenize(word)]


# Characters that Unicode has known for long: the library's tables are old.
OLD_TEXT = st.lists(PARTS.filter(lambda t: t != "▁"), max_size=30).map("".join) | st.text(
    st.characters(max_codepoint=0x52F), max_size=40
)


@FAST
@given(text=OLD_TEXT)
def test_wordpiece_as_the_library_does(vocab: Callable[[str], Tokenizer], text: str) -> None:
    ours = vocab("bert-bge")
    assert ours.encode(text, add_special=False) == bert_oracle(ours).encode(text, add_special_tokens=False).ids


@cache
def bert_oracle(ours: Tokenizer) -> Any:
    import tokenizers as hf

    pieces = [
        t.removeprefix("▁") if t.startswith("▁") or t[:1] + t[-1:] == "[]" else "##" + t for t in ours.vocab.texts
    ]
    model = hf.models.WordPiece({t: i for i, t in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=10**6)
    oracle = hf.Tokenizer(model)
    oracle.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    oracle.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    return oracle


@pytest.mark.parametrize("name", ["smollm2", "qwen-coder"])
def test_a_long_text_comes_back(name: str, model_path: Callable[[str], Path], shared_data: Path) -> None:
    text = (shared_data / "wiki.test.txt").read_text(encoding="utf-8")
    tokenizer = load(model_path(name))
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
