"""Vocabularies converted from Hugging Face folders tokenize as the `tokenizers` and sentencepiece libraries do."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pyllm import tokenizers as ours
from pyllm.errors import TokenizerError
from pyllm.gguf import open_gguf
from pyllm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from pyllm_convert.tokenizer import tokenizer_metadata
from pyllm_convert.tokenizer_regex import canonical

GOLDEN = Path(__file__).parent.parent / "golden" / "sentencepiece"
CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's theirs, WE'LL see, they've gone.",
    "def f(x):\n    return x**2  # 100%\n\n\nfor i in range(10):\n\tprint(i, 12345)\r\n",
    "Я люблю большие модели. 模型把文字切成小块。これは小さな文です。 naïve café déjà vu",
    "HelloWorld helloWorld HTTPServer camelCase SNAKE_CASE a/b/c\n/d 3.14 1,000,000",
    "🦙🦙 emoji 👩‍👩‍👧 done     spaces\t\ttabs",
] * 3
WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TIKTOKEN = (  # another spelling of the same
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


BYTE_LEVEL: dict[str, tuple[str, Any]] = {
    "llama-3": ("llama-bpe", [split(WORD), BYTES_ONLY]),
    "qwen2": ("qwen2", [split(WORD.replace("{1,3}", "")), BYTES_ONLY]),
    "gpt-2": ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "smollm": ("smollm", [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "olmo2": ("dbrx", [split(TIKTOKEN, "removed", True), BYTES_ONLY]),
    "gpt-oss": ("gpt-4o", [split(CASED), BYTES_ONLY]),
    "mistral-nemo": (
        "tekken",
        [split(CASED.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")), BYTES_ONLY],
    ),
    "deepseek-v3": (
        "deepseek-v3",
        [split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK), BYTES_ONLY],
    ),
    "deepseek-coder": (
        "deepseek-coder",
        [
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-\ud7ff]+"),
            pre_tokenizers.Digits(True),
            BYTES_ONLY,
        ],
    ),
}
MERGES_IGNORED = ("llama-3", "mistral-nemo")
SPECIALS = ["<|start|>", "<|end|>", "<tool>"]
PIECES = [
    *SPECIALS, " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "I've", "The", " the", "123", "4567", "3.14", "模型", "これ",
    "🦙", "👩‍👩‍👧", "é", "Я", "ß", "/", "...", "=>", "x", "HTTPServer", "½", "٣", "한국", "\x00", "\x7f",
    "\u00a0", "\u2028",
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(PIECES)
    | st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="ſ"), max_size=6),
    max_size=12,
).map("".join)


def converted(folder: Path, **config: Any) -> ours.Tokenizer:
    return ours.from_gguf(values(folder, **config))


def values(folder: Path, **config: Any) -> dict[str, Any]:
    return {key: value.value for key, value in tokenizer_metadata(folder, config).items()}


def write(folder: Path, **files: Any) -> Path:
    """Files by name without ".json"."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def save(folder: Path, tokenizer: Tokenizer, **files: Any) -> Path:
    write(folder, **files)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Tokenizer, ours.Tokenizer, Path]]:
    """Small vocabularies by family: the library's tokenizer, the converted one, the folder."""
    made = {}
    for family, (_, steps) in BYTE_LEVEL.items():
        library = Tokenizer(models.BPE(ignore_merges=family in MERGES_IGNORED))
        library.pre_tokenizer = pre_tokenizers.Sequence(steps)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        library.train_from_iterator(CORPUS, trainer)
        library.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS[:2]])
        library.add_tokens([AddedToken(SPECIALS[2], normalized=False)])
        folder = save(tmp_path_factory.mktemp(family), library)
        made[family] = library, converted(folder), folder
    return made


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_pre_tokenizers_are_told_by_their_steps(byte_level, family) -> None:
    assert values(byte_level[family][2])["tokenizer.ggml.pre"] == BYTE_LEVEL[family][0]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_byte_level_ids_are_the_librarys(byte_level, text) -> None:
    for family, (library, tokenizer, _) in byte_level.items():
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=False, parse_special=True) == expected, family


def test_real_vocabularies_give_their_reference_ids(shared_data, tmp_path) -> None:
    """tokenizer.json written from llama.cpp's vocabulary files, converted back: the ids are the files' own."""
    for name, steps in (("llama-bpe", BYTE_LEVEL["llama-3"][1]), ("qwen2", BYTE_LEVEL["qwen2"][1])):
        path = shared_data / "vocabs" / f"ggml-vocab-{name}.gguf"
        with open_gguf(path) as file:
            texts, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"].tolist()
            merges = file.metadata["tokenizer.ggml.merges"]
        model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(texts) if types[i] == 1}, "merges": merges}
        model["ignore_merges"] = name == "llama-bpe"
        added = [
            {"id": i, "content": t, "special": types[i] == CONTROL} for i, t in enumerate(texts) if types[i] in (3, 4)
        ]
        steps = json.loads(pre_tokenizers.Sequence(steps).__getstate__())
        folder = write(tmp_path / name, tokenizer={"model": model, "added_tokens": added, "pre_tokenizer": steps})
        found = values(folder, vocab_size=len(texts))
        assert found["tokenizer.ggml.tokens"] == texts
        assert found["tokenizer.ggml.token_type"].tolist() == types
        tokenizer = ours.from_gguf(found)
        inputs = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
        for text, line in zip(inputs, Path(f"{path}.out").read_text().splitlines(), strict=False):
            assert tokenizer.encode(text, add_special=False) == [int(i) for i in line.split()]


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads((GOLDEN / "ids.json").read_text())


def sentencepiece_folder(folder: Path, name: str, **files: Any) -> Path:
    (write(folder, **files) / "tokenizer.model").write_bytes((GOLDEN / f"{name}.model").read_bytes())
    return folder


FILES = ["bpe", "bpe_bare", "unigram", "unigram_bytes", "unigram_rules"]
BARE = ("bpe_bare", "unigram_bytes")  # without a space before a text


@pytest.mark.parametrize("name", FILES)
def test_sentencepiece_files_give_sentencepieces_ids(golden, tmp_path, name) -> None:
    tokenizer = converted(sentencepiece_folder(tmp_path, name))
    for text, expected in zip(golden["texts"], golden["models"][name]["ids"], strict=True):
        if name not in BARE and ("<turn>" in text or "    " in text):
            continue  # GGUF's vocabularies put a space after user-defined tokens too
        assert tokenizer.encode(text, add_special=False) == expected, text


@pytest.mark.parametrize("name", FILES)
def test_sentencepiece_files_are_read_whole(golden, tmp_path, name) -> None:
    found, expected = values(sentencepiece_folder(tmp_path, name)), golden["models"][name]
    types = found["tokenizer.ggml.token_type"].tolist()
    assert found["tokenizer.ggml.model"] == ("t5" if "unigram" in name else "llama")
    assert found["tokenizer.ggml.tokens"][-50:] == expected["pieces"]
    assert found["tokenizer.ggml.scores"][-50:].tolist() == pytest.approx(expected["scores"], abs=1e-4)
    assert [i for i, t in enumerate(types) if t == UNKNOWN] == expected["unknown"]
    assert [i for i, t in enumerate(types) if t == CONTROL] == expected["control"]
    assert types.count(BYTE) == expected["n_bytes"]
    assert types.count(USER_DEFINED) == 2
    assert found["tokenizer.ggml.add_space_prefix"] is (name not in BARE)
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)


@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_damaged_sentencepiece_files_are_one_error(tmp_path_factory, data) -> None:
    whole = (GOLDEN / "bpe.model").read_bytes()
    folder = tmp_path_factory.mktemp("damaged")
    at = len(data) * 37 % len(whole)
    (folder / "tokenizer.model").write_bytes(whole[:at] + data + whole[at + len(data) // 2 :])
    with contextlib.suppress(TokenizerError):
        values(folder)


def sentencepiece_merges(pieces: list[str], scores: list[float], skipped: Iterable[str] = ()) -> list[tuple[str, str]]:
    """All ways to put a piece together, best first, as conversions to tokenizer.json list them."""
    known = set(pieces) - set(skipped)
    ways = [
        (score, i, len(piece) - i, piece)
        for piece, score in zip(pieces, scores, strict=True)
        if piece in known
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]
    return [(piece[:i], piece[i:]) for _, i, _, piece in sorted(ways, reverse=True)]


def llama2_style(folder: Path, name: str) -> tuple[Tokenizer, Path]:
    """tokenizer.json from a SentencePiece model, as transformers derives it: with a space prefix, or Gemma's way."""
    found = values(sentencepiece_folder(folder, name))
    (folder / "tokenizer.model").unlink()
    texts, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"].tolist()
    texts = [text.replace(" ", "▁") for text in texts]
    normal = [i for i, kind in enumerate(types) if kind == 1]
    merges = sentencepiece_merges([texts[i] for i in normal], [found["tokenizer.ggml.scores"][i] for i in normal])
    library = Tokenizer(
        models.BPE({t: i for i, t in enumerate(texts)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if name == "bpe":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        library.normalizer = normalizers.Replace(" ", "▁")
        library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return library, save(folder, library, config={"vocab_size": len(texts)})


@pytest.fixture(scope="module")
def llama2(tmp_path_factory) -> Mapping[str, tuple[Tokenizer, ours.Tokenizer, Path]]:
    made = {}
    for name in ("bpe", "bpe_bare"):
        library, folder = llama2_style(tmp_path_factory.mktemp(name), name)
        made[name] = library, converted(folder), folder
    return made


@settings(max_examples=100, deadline=None)
@given(text=TEXTS | st.text("abcdefghijk lmnop\n", max_size=40))
def test_sentencepiece_style_ids_are_the_librarys(llama2, text) -> None:
    for name, (library, tokenizer, folder) in llama2.items():
        assert values(folder)["tokenizer.ggml.model"] == "llama"
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids, name


@pytest.fixture(scope="module")
def gemma4(llama2) -> tuple[Tokenizer, ours.Tokenizer]:
    library, _, folder = llama2["bpe_bare"]
    found = values(folder, text_config={"model_type": "gemma4_text"})
    assert found["tokenizer.ggml.model"] == "gemma4"
    return library, ours.from_gguf(found)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS | st.text("abcdefghijk lmnop\n", max_size=40))
def test_gemma4_ids_are_the_librarys(gemma4, text) -> None:
    library, tokenizer = gemma4
    assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids


def unordered_spaces(folder: Path, prefix: bool) -> tuple[Tokenizer, Path]:
    """BPE over text with "▁" whose merges no SentencePiece model has: "bc" and "a" make "abc", but are not merged."""
    vocab = ["<s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcd", "ab", "bc", "abc", "▁a", "cd", "dab", "▁▁"]
    merges = [("b", "c"), ("a", "b"), ("c", "d"), ("▁", "a"), ("ab", "c"), ("d", "ab"), ("▁", "▁")]
    library = Tokenizer(models.BPE({text: i for i, text in enumerate(vocab)}, merges, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    return library, save(folder, library)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text("abcd ", max_size=30) | TEXTS.map(lambda text: text.replace("\n", "")), max_size=10))
def test_merges_that_scores_cannot_order_keep_their_ranks(tmp_path_factory, texts) -> None:
    library, folder = unordered_spaces(tmp_path_factory.mktemp("merges"), prefix=False)
    tokenizer = converted(folder)
    for text in texts:
        assert tokenizer.encode(text, add_special=False) == library.encode(text, add_special_tokens=False).ids


def test_merges_that_scores_cannot_order_are_refused_with_a_space_prefix(tmp_path) -> None:
    with pytest.raises(TokenizerError, match=r"no scores of tokens can stand for"):
        values(unordered_spaces(tmp_path, prefix=True)[1])


@pytest.fixture(scope="module")
def unigram(tmp_path_factory) -> list[tuple[Tokenizer, ours.Tokenizer]]:
    """As transformers derives it from SentencePiece models: with blanks merged; with unknown characters as bytes."""
    made = []
    for merge, byte_fallback in ((True, False), (False, True)):
        library = Tokenizer(models.Unigram())
        rules = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
        library.normalizer = normalizers.Sequence(rules if merge else [])
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if merge else "never")
        library.train_from_iterator(
            CORPUS,
            trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
        )
        saved = json.loads(library.to_str())
        if byte_fallback:
            saved["model"]["byte_fallback"] = True
            saved["model"]["vocab"] += [[f"<0x{b:02X}>", 0.0] for b in range(256)]
        library = Tokenizer.from_str(json.dumps(saved))
        made.append((library, converted(save(tmp_path_factory.mktemp("unigram"), library))))
    return made


@settings(max_examples=100, deadline=None)
@given(text=(TEXTS | st.text("abcdefghijk lmnopé模", max_size=40)).map(str.rstrip))
def test_unigram_ids_are_the_librarys(unigram, text) -> None:
    for library, tokenizer in unigram:
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=False) == expected


def test_unigram_of_words_has_the_librarys_ids(tmp_path) -> None:
    """XLM-RoBERTa's: blanks are cut away before words get one each; a text is put between two tokens."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = converted(save(tmp_path, library, tokenizer_config=roles))
    for text in ("a word", "  two   words  ", "HelloWorld, 3.14 é模", ""):
        assert tokenizer.encode(text) == library.encode(text).ids


def test_damaged_charsmaps_are_refused(tmp_path) -> None:
    found = values(sentencepiece_folder(tmp_path, "unigram_rules"))
    charsmap = found["tokenizer.ggml.precompiled_charsmap"]
    for bad in (charsmap[:3], charsmap[:20], [255] * 8):
        with pytest.raises(TokenizerError, match="precompiled_charsmap is damaged"):
            ours.from_gguf(found | {"tokenizer.ggml.precompiled_charsmap": bad})
    no_texts = charsmap[: 4 + int(charsmap[:4].view("<u4")[0])]  # what is replaced is then replaced by nothing
    cut = ours.from_gguf(found | {"tokenizer.ggml.precompiled_charsmap": no_texts})
    assert cut.encode("A") == cut.encode("")


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> tuple[Tokenizer, ours.Tokenizer]:
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {f"{name.strip('[]').lower()}_token": name for name in specials}
    return library, converted(save(tmp_path_factory.mktemp("wordpiece"), library, tokenizer_config=roles))


@settings(max_examples=100, deadline=None)
@given(text=st.text(string.ascii_letters + string.punctuation + " \n\téÉüßЯ模型文の0123", max_size=40))
def test_wordpiece_ids_are_the_librarys(wordpiece, text) -> None:
    library, tokenizer = wordpiece
    assert tokenizer.encode(text) == library.encode(text).ids


ROLE_CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"tokenizer_config": {"eos_token": {"content": "<|end|>"}, "add_bos_token": True}}, {"eos": 3, "add_bos": True}),
    ({"special_tokens_map": {"bos_token": "<|start|>"}, "config": {}}, {"bos": 2, "add_bos": False}),
    ({"generation_config": {"eos_token_id": [3, 4], "pad_token_id": 0}}, {"eos": 3, "eot": 4, "pad": 0}),
    (
        {"generation_config": {"eos_token_id": [1, 99]}, "tokenizer_config": {"eos_token": "<|end|>"}},
        {"eos": 3, "eot": 1},
    ),
]


def role_folder(folder: Path, processor: Any = None, **files: Any) -> Path:
    vocab = {text: i for i, text in enumerate(["a", "b", "<|start|>", "<|end|>", "<tool>"])}
    added = [{"id": i, "content": t, "special": t != "<tool>"} for t, i in vocab.items() if i > 1]
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": processor,
    }
    return write(folder, **({"tokenizer": tokenizer} | files))


@pytest.mark.parametrize(("files", "expected"), ROLE_CASES)
def test_roles_come_from_every_file(tmp_path, files, expected) -> None:
    found = values(role_folder(tmp_path, **files))
    keys = {"eos": "eos_token_id", "bos": "bos_token_id", "eot": "eot_token_id", "pad": "padding_token_id"}
    keys["add_bos"] = "add_bos_token"
    assert {name: found.get(f"tokenizer.ggml.{keys[name]}") for name in expected} == expected


def test_the_template_of_added_tokens_decides(tmp_path) -> None:
    special = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("<|start|>", "<|end|>")]
    processor = {
        "type": "TemplateProcessing",
        "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]],
    }
    processor = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, processor]}
    config = {"add_bos_token": False, "eos_token": "<tool>"}
    found = values(role_folder(tmp_path, processor, tokenizer_config=config))
    assert ours.from_gguf(found).encode("ab") == [2, 0, 1, 3]
    assert found["tokenizer.ggml.eot_token_id"] == 4


def test_ids_without_a_token_are_filled_up(tmp_path) -> None:
    found = values(role_folder(tmp_path), vocab_size=7)
    assert found["tokenizer.ggml.tokens"][5:] == ["[PAD5]", "[PAD6]"]
    assert found["tokenizer.ggml.token_type"].tolist() == [1, 1, CONTROL, CONTROL, USER_DEFINED, UNUSED, UNUSED]


def test_added_tokens_without_weights_are_left_out(tmp_path) -> None:
    assert values(role_folder(tmp_path), text_config={"vocab_size": 3})["tokenizer.ggml.tokens"] == [
        "a",
        "b",
        "<|start|>",
    ]


def test_chat_templates(tmp_path) -> None:
    several = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    found = values(role_folder(tmp_path, tokenizer_config={"chat_template": several}))
    assert found["tokenizer.chat_template"] == "d"
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == "t"
    (tmp_path / "chat_template.jinja").write_text("{{ 'ü' }}", encoding="utf-8")
    assert values(tmp_path)["tokenizer.chat_template"] == "{{ 'ü' }}"


def with_pre(**pre: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": pre}


SEQUENCE = [{"type": "Split", "pattern": {"Regex": r"x{5}|\d+"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "neither tokenizer.json nor tokenizer.model"),
    ({"tokenizer": {}, "config": {}}, "neither"),
    ({"tokenizer": {"model": 5}}, "no model"),
    ({"tokenizer": with_pre(type="Sequence", pretokenizers=SEQUENCE)}, "cuts words by 'x{5}"),
    ({"tokenizer": with_pre(type="ByteLevel", use_regex=False)}, "nothing but bytes"),
    ({"tokenizer": with_pre(type="Whitespace")}, "type 'Whitespace'"),
    ({"tokenizer": {"model": {"type": "BPE", "vocab": [], "merges": []}}}, "vocabulary"),
    ({"tokenizer": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}}, "merge 'a'"),
    ({"tokenizer": {"model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}}}, "vocabulary"),
    ({"tokenizer": {"model": {"type": "WordLevel", "vocab": {}}}}, "'WordLevel'"),
    ({"tokenizer": with_pre(type="ByteLevel") | {"added_tokens": [{"id": -1, "content": "x"}]}}, "-1 is no id"),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_what_cannot_be_converted_says_so(tmp_path, files, message) -> None:
    with pytest.raises(TokenizerError, match=re.escape(message)):
        values(write(tmp_path, **files))


def test_sizes_that_are_none_are_refused(tmp_path) -> None:
    for size in (0, -1, 1 << 50, "8"):
        with pytest.raises(TokenizerError, match="vocab_size"):
            values(role_folder(tmp_path), vocab_size=size)
    with pytest.raises(TokenizerError, match="of two models"):
        values(role_folder(tmp_path, added_tokens={}), vocab_size=1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_not_json_objects_are_refused(tmp_path, content) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        values(tmp_path)


EQUAL = [
    (r"(?i:'s|'t)|a", r"'[sS]|'[tT]|a"),
    (r"'(?i:[st]|ll)", r"(?:'ll|'LL|'lL|'Ll|'[ST]|'[st])"),
    ("[\u4e00-\u9fa5]+", r"[\u4e00-\u9fa5]+"),
    (r"[a-cd-f]", r"[a-f]"),
    (r"[^\s\p{L}]++[\r\n]*", r"[^\s\p{L}]+[\r\n]*"),
    (r"\s*[\r\n]+|x", r"\s*[\r\n]|x"),
]
DIFFERENT = [
    (r"a++b", r"a+b"), (r"[^\s]++x", r"[^\s]+x"), (r"ab|a", r"a|ab"), (r"\p{N}{1,3}", r"\p{N}{1,2}"), (r"a+?", r"a+"),
    (r"\s+(?!\S)|\s+", r"\s+(?!\S)"), (r"(?=a)", r"(?!a)"), (r"\p{Lu}", r"\P{Lu}"), (r"[^a]", r"[a]"),
    (r"a|b+", r"b+|a"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_spellings_of_one_expression_are_equal(a, b) -> None:
    assert canonical(a) == canonical(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_expressions_are_different(a, b) -> None:
    assert canonical(a) != canonical(b)


@given(st.text(r"ab[]()|*+?{}^$\\-,1:i!<=pLu\x", max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_expression_is_read_or_refused(pattern) -> None:
    with contextlib.suppress(ValueError):
        assert canonical(pattern) == canonical(pattern)


WHOLE: dict[str, Any] = {
    "tokenizer": {
        "model": {
            "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3, "▁": 4}, "merges": ["a b"], "unk_token": "a",
        },
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "normalizer": {
            "type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "prepend_scheme": "never"}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]},
    },
    "tokenizer_config": {
        "bos_token": {"content": "<s>"}, "add_bos_token": True, "added_tokens_decoder": {"3": {"content": "<s>"}},
        "chat_template": [{"name": "default", "template": "x"}],
    },
    "special_tokens_map": {"eos_token": "b"},
    "added_tokens": {"<s>": 3},
    "generation_config": {"eos_token_id": [1]},
}  # fmt: skip
KINDS: list[dict[str, Any]] = [
    {},
    {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]], "unk_id": 0},
    {"type": "WordPiece", "vocab": {"a": 0, "##b": 1}, "unk_token": "a"},
]
JUNK = (
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
)
JUNK |= st.lists(st.integers() | st.text(max_size=2), max_size=3) | st.just([[1]]) | st.just({"type": []})


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), byte_level=st.booleans())
def test_whatever_stands_in_the_files_is_one_error(tmp_path_factory, data, kind, byte_level) -> None:
    files = json.loads(json.dumps(WHOLE))
    files["tokenizer"]["model"] |= copy.deepcopy(kind)
    if byte_level:
        files["tokenizer"] |= {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "use_regex": True}}
    for container, key in data.draw(st.lists(st.sampled_from(places(files)), min_size=1, max_size=3)):
        container[key] = copy.deepcopy(data.draw(JUNK))
    with contextlib.suppress(TokenizerError):
        ours.from_gguf(values(write(tmp_path_factory.mktemp("any"), **files)))


def test_templates_of_every_place(tmp_path) -> None:
    """chat_template.jinja goes before the settings; further ones lie in a folder; a byte order mark is left out."""
    write_folder = role_folder(tmp_path, tokenizer_config={"chat_template": [{"name": "rag", "template": "r"}]})
    (write_folder / "chat_template.jinja").write_bytes("\ufeff{{ 1 }}\r\n".encode())
    more = write_folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_bytes("\ufefft".encode())
    (more / "..bad name.jinja").write_text("x")
    found = values(write_folder)
    assert found["tokenizer.chat_template"] == "{{ 1 }}\r\n"
    assert found["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == "t"
    assert found["tokenizer.chat_template.rag"] == "r"


@pytest.mark.parametrize("template", [5, {"a": 1}, [5, {"name": 3, "template": "x"}, {"name": "y"}], None, [], ""])
def test_templates_of_another_kind_are_left_out(tmp_path, template) -> None:
    found = values(role_folder(tmp_path, tokenizer_config={"chat_template": template}))
    assert [key for key in found if "chat_template" in key] == []
