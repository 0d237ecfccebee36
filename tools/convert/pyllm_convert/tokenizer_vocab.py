"""Tokens, their types and scores, and merges, from `tokenizer.json` or `tokenizer.model`, one function a kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from pyllm_convert import sentencepiece_model, tokenizer_pre
from pyllm_convert.tokenizer_files import MAX_TOKENS, TokenizerFiles, content
from pyllm_convert.tokenizer_pre import merge_pairs, steps

_SPACE = "▁"
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_NO_SCORE, _ADDED_SCORE = -10000.0, -1000.0  # of ids without a token, and of added ones; llama.cpp's

_GEMMA4_VISIBLE = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)  # as llama.cpp's converter has them


@dataclass(slots=True)
class VocabTable:
    """A vocabulary for GGUF. `model` and `pre` are `tokenizer.ggml.model` and `.pre`; `scores` [n] or None.

    `settings` are further keys of `tokenizer.ggml`, by the name after that.
    """

    model: str
    pre: str
    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def find(self, text: str) -> int | None:
        """Id of a token by its text, None if there is none."""
        try:
            return self.texts.index(text)
        except ValueError:
            return None


def vocab_table(files: TokenizerFiles) -> VocabTable:
    """The vocabulary of a folder, padded to the rows of the model's token table.

    A SentencePiece file is taken for what `tokenizer.json` only derives from it, but of Gemma 4, whose merges GGUF has
    a kind of its own for. Raises TokenizerError.
    """
    tokenizer = files.tokenizer
    sentencepiece = next((p for n in ("tokenizer.model", "spiece.model") if (p := files.folder / n).is_file()), None)
    kind = tokenizer["model"].get("type", "BPE") if tokenizer else None
    if tokenizer and kind == "WordPiece":
        return _wordpiece(files, tokenizer)
    if tokenizer and kind == "BPE" and tokenizer_pre.is_byte_level(tokenizer):
        return _byte_level(files, tokenizer)
    if tokenizer and kind == "BPE" and _is_gemma4(files.config):
        return _gemma4(files, tokenizer)
    if sentencepiece is not None:
        return _sentencepiece(files, sentencepiece_model.read(sentencepiece))
    if tokenizer and kind == "BPE":
        return _sentencepiece_bpe(files, tokenizer)
    if tokenizer and kind == "Unigram":
        return _unigram(files, tokenizer)
    if tokenizer:
        raise TokenizerError(f"tokenizer.json is of the type {kind!r}; pyllm knows BPE, Unigram and WordPiece")
    raise TokenizerError(
        f"{files.folder} has neither tokenizer.json nor tokenizer.model, and no other file holds a vocabulary"
    )


def _byte_level(files: TokenizerFiles, tokenizer: dict[str, Any]) -> VocabTable:
    merges = [f"{_visible(a)} {_visible(b)}" for a, b in merge_pairs(tokenizer["model"])]
    texts, types = _laid_out(files, _vocab(tokenizer["model"]), lambda _: NORMAL)
    return VocabTable("gpt2", tokenizer_pre.detect(tokenizer), texts, types, merges=merges)


def _visible(part: str) -> str:
    """A merge's part as GGUF writes it, where a space parts the two."""
    return part.replace(" ", "Ġ")


def _wordpiece(files: TokenizerFiles, tokenizer: dict[str, Any]) -> VocabTable:
    """GGUF marks the tokens that begin a word, `tokenizer.json` the others, by "##"."""
    model = tokenizer["model"]
    mark = content(model.get("continuing_subword_prefix", "##"))
    texts, types = _laid_out(files, _vocab(model), lambda _: NORMAL)
    for i, text in enumerate(texts):
        if types[i] == NORMAL and not (text.startswith("[") and text.endswith("]")):
            texts[i] = text[len(mark) :] if mark and text.startswith(mark) else _SPACE + text
    settings: dict[str, Any] = dict(_normalizer_flags(tokenizer))
    unknown = content(model.get("unk_token"))
    if unknown in model["vocab"]:
        settings["unknown_token_id"] = model["vocab"][unknown]
    return VocabTable("bert", "default", texts, types, settings=settings)


def _normalizer_flags(tokenizer: dict[str, Any]) -> dict[str, bool]:
    flags = {}
    for step in steps(tokenizer.get("normalizer")):
        kind = step.get("type")
        if kind == "Lowercase":
            flags["normalizer.lowercase"] = True
        elif kind == "StripAccents":
            flags["normalizer.strip_accents"] = True
        elif kind == "BertNormalizer":
            lowercase, strip = bool(step.get("lowercase", True)), step.get("strip_accents")
            flags["normalizer.lowercase"] = lowercase
            flags["normalizer.strip_accents"] = lowercase if strip is None else bool(strip)
    return {"normalizer.lowercase": False, "normalizer.strip_accents": False} | flags


def _sentencepiece(files: TokenizerFiles, model: sentencepiece_model.SentencePieceModel) -> VocabTable:
    if model.whitespace_as_suffix:
        raise TokenizerError(
            "tokenizer.model puts spaces after words (treat_whitespace_as_suffix); GGUF has no word for it"
        )
    if model.model_type not in (sentencepiece_model.BPE, sentencepiece_model.UNIGRAM):
        raise TokenizerError("tokenizer.model cuts text into words or characters only; BPE and Unigram would work")
    kinds = dict(zip(model.texts, model.types, strict=True))
    vocab = {text: i for i, text in reversed(list(enumerate(model.texts)))}
    texts, types = _laid_out(files, vocab, kinds.__getitem__)
    for i, (text, kind) in enumerate(zip(model.texts, model.types, strict=True)):
        if i < len(texts) and i not in files.added:  # of equal pieces each keeps its id
            texts[i], types[i] = text, kind
            if kind == USER_DEFINED:
                texts[i] = text.replace(_SPACE, " ")
    table = VocabTable("llama", "default", texts, types, _scores(files, model.scores, len(texts)))
    table.settings["add_space_prefix"] = model.add_dummy_prefix
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        role = (model.roles or {}).get(name, -1)
        if 0 <= role < len(texts):
            table.settings[f"{key}_token_id"] = role
    if model.model_type == sentencepiece_model.UNIGRAM:
        table.model = "t5"
        table.settings["remove_extra_whitespaces"] = model.remove_extra_whitespaces
        if model.charsmap:
            table.settings["precompiled_charsmap"] = model.charsmap
    return table


def _sentencepiece_bpe(files: TokenizerFiles, tokenizer: dict[str, Any]) -> VocabTable:
    """Merges turned into the scores that SentencePiece ranks tokens by, where both mean the same."""
    model = tokenizer["model"]
    vocab, pairs = _vocab(model), merge_pairs(model)
    prefix = _space_prefix(tokenizer)
    added = {token.text for token in files.added.values()}
    unknown = content(model.get("unk_token"))
    texts, types = _laid_out(files, vocab, lambda text: _sp_type(text, unknown))
    scores = _scores_of_merges(vocab, pairs, added)
    if scores is None:
        if prefix:
            raise TokenizerError(
                "tokenizer.json has merges that no scores of tokens can stand for, and puts a space before a text; "
                "GGUF has no form for both, unless the folder also has tokenizer.model"
            )
        return VocabTable("gpt2", "sarvam-moe", texts, types, merges=[" ".join(pair) for pair in pairs])
    by_id = [0.0] * (max(vocab.values(), default=-1) + 1)
    for text, score in scores.items():
        by_id[vocab[text]] = score
    settings: dict[str, Any] = {"add_space_prefix": prefix}
    if unknown in vocab:
        settings["unknown_token_id"] = vocab[unknown]
    return VocabTable("llama", "default", texts, types, _scores(files, by_id, len(texts)), settings=settings)


def _is_gemma4(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    kinds = [c.get("model_type") for c in (config, inner) if isinstance(c, dict)]
    return any(isinstance(kind, str) and kind.startswith("gemma4") for kind in kinds)


def _gemma4(files: TokenizerFiles, tokenizer: dict[str, Any]) -> VocabTable:
    """Merges of text whose spaces are written as U+2581. What parts a turn into thoughts and calls is part of what is
    said, not hidden as control tokens are."""
    model = tokenizer["model"]
    if _space_prefix(tokenizer):
        raise TokenizerError("tokenizer.json puts a space before a text, for which files of Gemma 4 have no place")
    unknown = content(model.get("unk_token"))
    texts, types = _laid_out(files, _vocab(model), lambda text: _sp_type(text, unknown))
    types = [USER_DEFINED if text in _GEMMA4_VISIBLE else kind for text, kind in zip(texts, types, strict=True)]
    settings: dict[str, Any] = {"add_space_prefix": False}
    if unknown in model["vocab"]:
        settings["unknown_token_id"] = model["vocab"][unknown]
    merges = [" ".join(pair) for pair in merge_pairs(model)]
    return VocabTable("gemma4", "gemma4", texts, types, merges=merges, settings=settings)


def _scores_of_merges(
    vocab: Mapping[str, int], pairs: list[tuple[str, str]], added: set[str]
) -> dict[str, float] | None:
    """Scores of tokens with which merging by score is merging by rank; None where there are none.

    So it is where the merges were made from a SentencePiece model: each way to put a token together is a merge, and
    the merges of a token follow each other. Those of tokens with one score lie mixed, the longest first.
    """
    if not all(a + b in vocab and a in vocab and b in vocab for a, b in pairs):
        return None
    made = [(rank, a, b) for rank, (a, b) in enumerate(pairs) if a + b not in added]
    last = {a + b: rank for rank, a, b in made}
    scores: dict[str, float] = {}
    for group in _groups(made, last):
        tokens = {a + b for _, a, b in group}
        lengths = [(len(a), len(b)) for _, a, b in group]
        if len(tokens) > 1 and lengths != sorted(lengths, reverse=True):
            return None
        scores.update(dict.fromkeys(tokens, -float(group[0][0] + 1)))
    return scores if _is_closed(vocab, set(pairs), added) else None


def _groups(made: list[tuple[int, str, str]], last: Mapping[str, int]) -> Iterator[list[tuple[int, str, str]]]:
    """Merges in runs such that all merges of a token are in one."""
    group: list[tuple[int, str, str]] = []
    end = -1
    for rank, a, b in made:
        if group and rank > end:
            yield group
            group = []
        group.append((rank, a, b))
        end = max(end, last[a + b])
    if group:
        yield group


def _is_closed(vocab: Mapping[str, int], pairs: set[tuple[str, str]], added: set[str]) -> bool:
    """Whether each token that two others make together is also a merge of them."""
    return all(
        (text[:i], text[i:]) in pairs
        for text in vocab
        if text not in added and not _BYTE_TOKEN.fullmatch(text)
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab and not {text[:i], text[i:]} & added
    )


def _unigram(files: TokenizerFiles, tokenizer: dict[str, Any]) -> VocabTable:
    import base64
    import binascii

    model = tokenizer["model"]
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or len(pieces) > MAX_TOKENS:
        raise TokenizerError("tokenizer.json has a Unigram model without a list of pieces; the file is damaged")
    try:
        listed = [(str(text), float(score)) for text, score in pieces]
    except (TypeError, ValueError, OverflowError) as error:
        raise TokenizerError(f"tokenizer.json has a piece that is not a text and a score: {error}") from error
    unk_id = model.get("unk_id")
    unknown = (
        listed[unk_id][0]
        if isinstance(unk_id, int) and not isinstance(unk_id, bool) and 0 <= unk_id < len(listed)
        else None
    )
    texts, types = _laid_out(files, {text: i for i, (text, _) in enumerate(listed)}, lambda t: _sp_type(t, unknown))
    settings: dict[str, Any] = {"add_space_prefix": _space_prefix(tokenizer), "remove_extra_whitespaces": False}
    if unknown is not None:
        settings["unknown_token_id"] = unk_id
    for step in steps(tokenizer.get("normalizer")):
        if step.get("type") == "Precompiled":
            try:
                charsmap = base64.b64decode(str(step.get("precompiled_charsmap")), validate=True)
            except binascii.Error as error:
                raise TokenizerError(f"tokenizer.json has a charsmap that is not base64: {error}") from error
            settings["precompiled_charsmap"] = charsmap
        if step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"}:
            settings["remove_extra_whitespaces"] = True
    if any(step.get("type") == "WhitespaceSplit" for step in steps(tokenizer.get("pre_tokenizer"))):
        settings["remove_extra_whitespaces"] = True
    return VocabTable(
        "t5", "default", texts, types, _scores(files, [s for _, s in listed], len(texts)), settings=settings
    )


def _space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before a text; refuses steps that GGUF's SentencePiece vocabularies cannot express."""
    unigram = tokenizer["model"].get("type") == "Unigram"
    allowed = ("Precompiled", "Replace", "Strip", "NFC", "NFKC") if unigram else ("NFC",)
    prefix = False
    for step in steps(tokenizer.get("normalizer")):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif kind not in allowed and (step.get("pattern"), step.get("content")) != ({"String": " "}, _SPACE):
            raise TokenizerError(
                f"tokenizer.json normalizes text by a step of the type {kind!r}, which GGUF has no word for; "
                "a folder with tokenizer.model could be converted"
            )
    for step in steps(tokenizer.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = prefix or scheme != "never"
            if step.get("split", True) and tokenizer["model"].get("type") == "BPE":
                _require_words(tokenizer["model"])
        elif unigram and kind == "WhitespaceSplit":
            continue  # several blanks count as one: see `_unigram`
        elif kind != "Split" or step.get("pattern") != {"String": " "}:  # by then there are no spaces any more
            raise TokenizerError(
                f"tokenizer.json cuts words by a step of the type {kind!r}, which is not known without byte-level BPE; "
                "Metaspace would work"
            )
    return prefix


def _require_words(model: Mapping[str, Any]) -> None:
    across = next((text for text in _vocab(model) if _SPACE in text[1:]), None)
    if across is not None:
        raise TokenizerError(
            f"tokenizer.json cuts text at each space, yet has the token {across!r} that goes on after one; GGUF "
            "cannot say that it is never used"
        )


def _sp_type(text: str, unknown: str | None) -> int:
    return UNKNOWN if text == unknown else BYTE if _BYTE_TOKEN.fullmatch(text) else NORMAL


def _vocab(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(isinstance(i, int) and 0 <= i < MAX_TOKENS for i in vocab.values()):
        raise TokenizerError("tokenizer.json has a vocabulary that is not tokens with their ids; the file is damaged")
    return vocab


def _laid_out(
    files: TokenizerFiles, vocab: Mapping[str, int], kind: Callable[[str], int]
) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids without a token are filled up to the rows of the model's token table.

    Added tokens beyond that table have no weights and are left out; other tokens may not lie beyond it.
    """
    highest = max(vocab.values(), default=-1)
    size = files.vocab_size
    if size is None:
        size = max([highest, *files.added]) + 1
    elif highest >= size and any(i >= size and i not in files.added for i in vocab.values()):
        raise TokenizerError(
            f"the tokenizer has {highest + 1} tokens, but config.json says vocab_size {size}; these are of two models"
        )
    texts = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for text, i in vocab.items():
        if i < size:
            texts[i], types[i] = text, kind(text)
    for i, token in files.added.items():
        if i >= size:
            continue
        if types[i] != UNKNOWN:
            types[i] = CONTROL if token.is_control else USER_DEFINED
        texts[i] = token.text if types[i] != USER_DEFINED else token.text.replace(_SPACE, " ")
    return texts, types


def _scores(files: TokenizerFiles, known: Iterable[float], n: int) -> list[float]:
    scores = [*known][:n]
    scores += [_NO_SCORE] * (n - len(scores))
    for i in files.added:
        if i < n:
            scores[i] = _ADDED_SCORE
    return scores
