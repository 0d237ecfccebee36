"""RWKV's World tokenizer: at each place of a text, the longest token of bytes that fits.

Source: https://github.com/BlinkDL/ChatRWKV (rwkv_tokenizer.py). Tokens are any bytes, and files write them as Python
does, with escapes: `\\n`, `\\xe4`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from pyllm.tokenizers.base import Tokenizer, _utf8
from pyllm.tokenizers.vocab import NORMAL, USER_DEFINED, Vocab

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


class RWKVTokenizer(Tokenizer):
    """`tokenizer.ggml.model` = "rwkv"."""

    def __init__(self, metadata: Mapping[str, Any], vocab: Vocab) -> None:
        super().__init__(vocab, add_bos=False, add_eos=False)
        types = vocab.types.tolist()
        ids = {_unescaped(text): i for text, i in vocab.ids.items() if types[i] in (NORMAL, USER_DEFINED)}
        self._tokens = sorted(token for token in ids if token)
        self._token_ids = [ids[token] for token in self._tokens]
        self._shorter = _prefixes(self._tokens)
        """Place of each token's longest prefix among `_tokens`, -1 where none is a token."""
        self._longest = max(map(len, self._tokens), default=1)

    def _encode_words(self, text: str, ids: list[int]) -> None:
        data, at, tokens = _utf8(text), 0, self._tokens
        while at < len(data):
            # The longest token that fits is the last one up to this text by order, or a prefix of that.
            i = bisect_right(tokens, data[at : at + self._longest]) - 1
            while i >= 0 and not data.startswith(tokens[i], at):
                i = self._shorter[i]
            if i >= 0:
                ids.append(self._token_ids[i])
                at += len(tokens[i])
                continue
            if self.vocab.unk_id is not None:
                ids.append(self.vocab.unk_id)
            at += 1

    def _text_bytes(self, text: str) -> bytes:
        return _unescaped(text)

    def _texts_bytes(self, texts: list[str]) -> list[bytes]:
        return [_unescaped(text) for text in texts]


def _prefixes(tokens: list[bytes]) -> list[int]:
    """For each of the tokens, in order, the place of the longest other one that it begins with; -1 where none is."""
    found, open_ = [], list[int]()
    for i, token in enumerate(tokens):
        while open_ and not token.startswith(tokens[open_[-1]]):
            open_.pop()
        found.append(open_[-1] if open_ else -1)
        open_.append(i)
    return found


def _unescaped(text: str) -> bytes:
    """A token's bytes, of a text that may have escapes."""
    return _ESCAPE.sub(_byte, _utf8(text))


def _byte(escape: re.Match[bytes]) -> bytes:
    code, character = escape.groups()
    return bytes([int(code, 16)]) if code else _NAMED.get(character, character)
