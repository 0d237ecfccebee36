"""Pre-tokenizers: how byte-level BPE vocabularies split text into words before merging, by `tokenizer.ggml.pre`.

A pre-tokenizer is a list of regular expressions applied one after the other: each cuts every piece that the ones before
it left, matches and the gaps between them both stay pieces (the "isolated" split of Hugging Face's tokenizers). The
expressions are those that the models were trained with, as their `tokenizer.json` or llama.cpp state them; where
llama.cpp approximates `\\p{Lu}` by ASCII, the original is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from pyllm.errors import TokenizerError
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One family's way to cut text, and the defaults that go with it.

    `fused` is one expression that cuts exactly as `patterns` in sequence do, where there is one: it is several times
    faster. `byte_level` says that tokens are written in GPT-2's byte alphabet; else they are plain text with "▁" for
    a space and `<0xXX>` for bytes. `ignore_merges`: a word that is a token needs no merging. `add_bos` is the default
    where the file has no `tokenizer.ggml.add_bos_token`.
    """

    patterns: tuple[str, ...]
    fused: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True


_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"  # English contractions, any case
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# Digits first: then a digit ends a run of blanks just as the end of the text does.
_DIGITS_GPT2_FUSED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_HAN_KANA = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_NO_PUNCTUATION = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# Cased letters as DeepSeek's tokenizer lists them.
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    r"\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    r"\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    r"\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)


def _word(letters: str, digits: str, tail: str = r"[\r\n]*", *, suffix: str = _SUFFIX) -> str:
    """The common expression of GPT-4's tokenizer: letters with one sign before them, digits, signs, blanks."""
    start = suffix + "|" if suffix else ""
    return rf"{start}[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?[^\s\p{{L}}\p{{N}}]+{tail}|{_BLANKS}"


def _cased(suffix: str, digits: str, tail: str = r"[\r\n/]*") -> str:
    """Words split where the case changes (GPT-4o, Tekken): upper then lower case; contractions stay with their word."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{_UPPER}*{_LOWER}+{suffix}|{lead}{_UPPER}+{_LOWER}*{suffix}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+{tail}|{_BLANKS}"
    )


_N3 = r"\p{N}{1,3}"
_LLAMA3 = _word(r"\p{L}+", _N3)
_QWEN2 = _word(r"\p{L}+", r"\p{N}")
_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2), fused=_DIGITS_GPT2_FUSED)
_DEEPSEEK3 = PreTokenizer(
    (
        _N3,
        _HAN_KANA,
        rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
    )
)
_RAW_LINES = PreTokenizer((r"[^\n]+|\n+",), byte_level=False)

_FAMILIES: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
     "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (PreTokenizer((_LLAMA3,)), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (PreTokenizer((_QWEN2,)),
     "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan megrez solar-open grok-2"),
    (PreTokenizer((_GPT2,)),
     "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
     "modern-bert mpt olmo jais exaone4 trillion granite-docling"),
    (_DIGITS_GPT2, "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")), "default"),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")), "falcon"),
    (PreTokenizer((
        r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"(?<!\s)\s+$", r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+",
    )), "deepseek-llm"),
    (PreTokenizer((
        r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}",
    )), "deepseek-coder"),
    (_DEEPSEEK3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (PreTokenizer((_word(r"[\p{L}\p{M}]+", r"\p{N}").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),)), "qwen35"),
    (PreTokenizer((_NO_PUNCTUATION,)), "poro-chat bloom gpt3-finnish"),
    (PreTokenizer((_NO_PUNCTUATION, r"\p{N}")), "viking"),
    (PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True), "tekken"),
    (PreTokenizer((_cased(_SUFFIX + "?", _N3),)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer((
        r"[\uac00-\ud7a3\u3131-\u318e]+"
        r"|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
        r"|[\u3105-\u312f]+|" + _HAN_KANA,
        _cased(_SUFFIX + "?", r"\p{N}"),
    ), ignore_merges=True), "youtu"),
    (PreTokenizer((
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    )), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",
    )), "seed-coder"),
    (PreTokenizer((
        # A run of blanks that is being split contains no line end: searching each time would be quadratic.
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_N3}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|(?<![^\S\r\n])\s*[\r\n]+"
        + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}",
    )), "jais-2"),
    (PreTokenizer((_word(r"\p{L}+", r"\p{N}", suffix=""),)), "ufakzeka"),
    (PreTokenizer((
        r"<sentinel:[0-9]+>", r"(?:IMGIMG)(?:(?:A|B|C|D|E|F|G|H|I){1,4})Z", r"[\t\n]|    |  ", r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]", _GPT2,
    ), add_bos=True), "chameleon"),
    (PreTokenizer((_N3, _word(r"\p{L}+", r"\p{N}+")), ignore_merges=True), "minicpm5"),
    (PreTokenizer((r"[^\n]+|\n+", _QWEN2)), "laguna"),
    (PreTokenizer((_cased(_SUFFIX + "?", _N3),), ignore_merges=True), "granite-embed-multi-97m"),
    (PreTokenizer((
        _N3, _HAN_KANA, rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}",
    )), "spark2_5"),
    (PreTokenizer((r"\p{N}+", r"(?<!\d)\d{1,2}(?=(?:\d{3})+(?!\d))|\d{3}")), "superbpe"),
    (PreTokenizer(_RAW_LINES.patterns, byte_level=False, add_bos=True), "gemma4 granite-embed-multi-311m"),
    (_RAW_LINES, "sarvam-moe"),
)  # fmt: skip

_TABLE: dict[str, PreTokenizer] = {name: pre for pre, names in _FAMILIES for name in names.split()}


def names() -> list[str]:
    """Every known value of `tokenizer.ggml.pre`, sorted."""
    return sorted(_TABLE)


def get(name: str) -> PreTokenizer:
    """The pre-tokenizer `name`. Raises TokenizerError for an unknown name, since a wrong guess would degrade every
    answer."""
    try:
        return _TABLE[name]
    except KeyError:
        raise TokenizerError(
            f"the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known to this version of pyllm; "
            "the model can be used by token ids only"
        ) from None


def splitter(pre: PreTokenizer) -> Callable[[str], list[str]]:
    """A function that splits a text into words; joined, they are the text."""
    import regex

    patterns = (pre.fused,) if pre.fused else pre.patterns
    # A capturing group keeps the matches in what split() returns; the gaps between them are the other pieces.
    splits = [regex.compile(f"({pattern})").split for pattern in patterns]
    if len(splits) == 1:
        only = splits[0]
        return lambda text: [word for word in only(text) if word]

    def cut(text: str) -> list[str]:
        words = [text]
        for split in splits:
            words = [part for word in words for part in split(word) if part]
        return words

    return cut
