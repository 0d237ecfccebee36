"""Which of pyllm's pre-tokenizers a `tokenizer.json` describes: told by its steps, not by what they give for a text."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers import pretokenizers
from pyllm_convert.tokenizer_regex import Form, canonical

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_MAX_DEPTH = 20
# Of several names for the same way to cut, those that other programs have known longest, without effects of their own.
_PREFERRED = (
    "gpt-2", "llama-bpe", "qwen2", "smollm", "dbrx", "deepseek-llm", "deepseek-coder", "deepseek-v3", "tekken",
    "gpt-4o", "bloom", "viking", "default", "falcon", "qwen35",
)  # fmt: skip


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet."""
    parts = [*steps(tokenizer.get("pre_tokenizer")), *steps(tokenizer.get("normalizer"))]
    return any(part.get("type") == "ByteLevel" for part in parts)


def detect(tokenizer: Mapping[str, Any]) -> str:
    """The value for `tokenizer.ggml.pre` of a byte-level BPE `tokenizer.json`.

    Raises TokenizerError where it cuts words in a way that pyllm does not know, and names the expression.
    """
    patterns = list(_patterns(tokenizer))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    forms: list[Form] = []
    for pattern in patterns:
        try:
            forms.append(canonical(pattern))
        except ValueError as error:
            raise _unknown(pattern, f": {error}") from error
    near = ""
    for name in (*_PREFERRED, *pretokenizers.names()):
        pre = pretokenizers.get(name)
        if not pre.byte_level or [canonical(p) for p in pre.patterns] != _as_known(name, forms):
            continue
        if pre.ignore_merges == ignore_merges:
            return name
        near = near or name
    if near:
        if _merges_reach_all(tokenizer["model"]):
            return near  # then it makes no difference whether a word that is a token is merged or taken as it is
        raise _unknown(" then ".join(patterns), f" with{'' if ignore_merges else 'out'} ignore_merges")
    known = {form for name in pretokenizers.names() for form in map(canonical, pretokenizers.get(name).patterns)}
    new = [pattern for pattern, form in zip(patterns, forms, strict=True) if form not in known]
    raise _unknown(new[0] if new else " then ".join(patterns) or "nothing but bytes")


def _merges_reach_all(model: Mapping[str, Any]) -> bool:
    """Whether every token, merged from its characters, becomes itself."""
    from tokenizers.models import BPE

    try:
        bpe = BPE(dict(model["vocab"]), merge_pairs(model), cache_capacity=0)
        return all([t.id for t in bpe.tokenize(text)] == [i] for text, i in model["vocab"].items())
    except Exception:  # the library raises Exception itself: a merge whose parts are no tokens
        return False


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A BPE model's merges, which files write as "left right" or as ["left", "right"]. Raises TokenizerError."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("tokenizer.json has a BPE model without merges; the file is damaged")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TokenizerError(
                f"tokenizer.json has the merge {merge!r}, which is not two tokens; the file is damaged"
            )
        pairs.append((pair[0], pair[1]))
    return pairs


def _as_known(name: str, forms: list[Form]) -> list[Form]:
    """The forms, but for DeepSeek's first vocabulary, which has no token of several digits: runs of them do as well."""
    if name == "deepseek-llm" and forms and forms[-1] == canonical(r"\p{N}"):
        return [*forms[:-1], canonical(r"\p{N}+")]
    return forms


def _patterns(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """The steps that cut words, as expressions for isolated splits, in order."""
    for part in steps(tokenizer.get("pre_tokenizer")):
        kind = part.get("type")
        if kind == "Split":
            yield _split_pattern(part)
        elif kind == "Digits":
            yield r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
        elif kind == "Punctuation" and part.get("behavior") == "Contiguous":
            yield _PUNCTUATION
        elif kind == "ByteLevel":
            if part.get("add_prefix_space"):
                logging.getLogger("pyllm").warning(
                    "the tokenizer puts a space before a text, which GGUF cannot say of byte-level vocabularies; "
                    "a text's first word is tokenized without it"
                )
            if part.get("use_regex", True):
                yield _GPT2
        else:
            raise TokenizerError(
                f"tokenizer.json cuts words by a step of the type {kind!r}, which is not known for byte-level BPE; "
                "Split, Digits, Punctuation and ByteLevel would work"
            )


def _split_pattern(part: Mapping[str, Any]) -> str:
    pattern = part.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        if not isinstance(text, str):
            raise TokenizerError("tokenizer.json has a Split without an expression; the file is damaged")
        regex = re.escape(text)
    behavior, invert = part.get("behavior"), bool(part.get("invert"))
    # To keep matches and drop the rest is the same where everything matches, as what these expressions end in shows.
    keeps_all = behavior == "Removed" and invert and regex.endswith((r"|\s+", r"|\s"))
    if behavior != "Isolated" and not keeps_all:
        raise TokenizerError(
            f"tokenizer.json splits at {regex!r} in the manner {behavior!r}, which is not known; 'Isolated' would work"
        )
    return regex


def steps(part: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences within sequences laid out."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("pretokenizers", "normalizers", "decoders", "processors"):
        inner = part.get(key) or []
        if not isinstance(inner, list) or depth == _MAX_DEPTH:
            raise TokenizerError(f"tokenizer.json has a sequence whose {key} are no list of steps; it is damaged")
        for step in inner:
            yield from steps(step, depth + 1)


def _unknown(pattern: str, why: str = "") -> TokenizerError:
    return TokenizerError(
        f"tokenizer.json cuts words by {pattern!r}{why}, which is none of the pre-tokenizers that pyllm knows "
        "(pyllm.tokenizers.pretokenizers); add it there, or convert without a vocabulary"
    )
