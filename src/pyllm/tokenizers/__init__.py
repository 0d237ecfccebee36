"""Tokenizers from GGUF metadata: `from_gguf(metadata) -> Tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.errors import TokenizerError
from pyllm.tokenizers.base import StreamDecoder, Tokenizer
from pyllm.tokenizers.vocab import Vocab

__all__ = ["StreamDecoder", "Tokenizer", "from_gguf"]

_IDS_ONLY = "the model can be used by token ids only"


def from_gguf(metadata: Mapping[str, Any], n_rows: int | None = None) -> Tokenizer:
    """The tokenizer described by a file's metadata (keys `tokenizer.ggml.*`).

    `n_rows`: rows of the model's token table. Many models have more rows than tokens; ids of the additional rows are
    tokens without text.

    Raises TokenizerError where there is no usable vocabulary: none at all, an unknown kind, damaged lists.
    """
    # The data of a tokenizer, independent of the file; also its pickled form.
    metadata = {k: metadata[k] for k in metadata if k.startswith("tokenizer.ggml.") or k == "general.name"}
    tokenizer = _make(metadata, n_rows)
    tokenizer.source = (metadata, n_rows)
    return tokenizer


def _make(metadata: Mapping[str, Any], n_rows: int | None) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind in ("gpt2", "gemma4"):
        from pyllm.tokenizers.bpe import BPETokenizer

        return BPETokenizer(metadata, Vocab(metadata, n_rows=n_rows))
    if kind == "llama":
        from pyllm.tokenizers.spm import SPMTokenizer

        return SPMTokenizer(metadata, Vocab(metadata, {"bos": 1, "eos": 2, "unknown": 0}, n_rows))
    if kind == "bert":
        from pyllm.tokenizers.wpm import WPMTokenizer

        roles = {"cls": 101, "unknown": 100, "seperator": 102, "padding": 0}
        return WPMTokenizer(metadata, Vocab(metadata, roles, n_rows))
    if kind == "t5":
        from pyllm.tokenizers.ugm import UGMTokenizer

        return UGMTokenizer(metadata, Vocab(metadata, {"eos": 1, "unknown": 2, "padding": 0}, n_rows))
    if kind == "rwkv":
        from pyllm.tokenizers.rwkv import RWKVTokenizer

        return RWKVTokenizer(metadata, Vocab(metadata, n_rows=n_rows))
    if kind in (None, "", "none", "no_vocab", "test"):
        raise TokenizerError(f"the file has no vocabulary (tokenizer.ggml.model is {kind!r}); {_IDS_ONLY}")
    raise TokenizerError(
        f"tokenizers of the kind {kind!r} (tokenizer.ggml.model) are not supported, only gpt2, gemma4, llama, bert, t5 "
        f"and rwkv; {_IDS_ONLY}"
    )
