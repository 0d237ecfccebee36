"""The base of all tokenizers: special tokens, BOS and EOS, ids to text, streaming. A kind adds `_encode_words`."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pyllm.arguments import Kind, TokenIds, checked, entries_of, refusal
from pyllm.errors import TokenizerError
from pyllm.tokenizers.compiled.switch import Encoder, Switch
from pyllm.tokenizers.specials import Finder
from pyllm.tokenizers.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocab

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

_SPACE = "▁"


def _pieces(name: str, value: Any) -> list[str | int]:
    entries = entries_of(value)
    if entries is None or not set(map(type, entries)) <= {str, int}:
        raise refusal(name, value, "a list of texts and token ids, such as partition() gives")
    return entries


Pieces = Annotated[Iterable[str | int], Kind("a list of texts and token ids", _pieces)]


class Tokenizer(ABC):
    """Text to token ids and back, as defined by the model's GGUF metadata.

    Safe to use from several threads. Lone surrogates of a text, which UTF-8 cannot represent, are read as U+FFFD.
    """

    source: tuple[Any, ...] = ()  # what `from_gguf` made it of
    _space_prefix = False  # whether a space is put before text that begins or follows a special token
    _strip_first = False  # whether the first space of a decoded text is one that was put there

    def __init__(self, vocab: Vocab, *, add_bos: bool, add_eos: bool) -> None:
        self.vocab = vocab
        self.bos_id = vocab.bos_id
        self.eos_id = vocab.eos_id
        self.stop_ids = vocab.stop_ids
        self.add_bos = vocab.flag("add_bos_token", add_bos) and vocab.bos_id is not None
        self.add_eos = vocab.flag("add_eos_token", add_eos) and vocab.eos_id is not None
        self._always = Finder(vocab.user_ids, vocab.swallowing_ids)
        self._specials = Finder(vocab.special_ids | vocab.user_ids, vocab.swallowing_ids)
        self._bytes: dict[int, bytes] = _Memo(self._find_bytes)
        self._visible: dict[int, bytes] = _Memo(self._find_visible)
        self._switch = Switch(self._compiled)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its metadata, and rebuilt from it."""
        from pyllm.tokenizers import from_gguf

        return from_gguf, self.source

    @property
    def n_vocab(self) -> int:
        return len(self.vocab)

    @property
    def strips_first(self) -> bool:
        """Whether a space at the beginning of decoded text is dropped, as the vocabulary puts one there."""
        return self._strip_first

    @checked
    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS, EOS (or CLS and SEP) where the model wants them. With `parse_special` control tokens
        written in the text ("<|im_end|>") become that token; without, they are plain text, so that text from outside
        cannot steer a chat. User-defined tokens are found either way, as the vocabulary means them.
        """
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        self._encode_pieces(self.partition(text, parse_special), ids)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    @checked
    def encode_pair(self, first: str, second: str) -> list[int]:
        """Token ids of two texts as cross-encoders read them, with the special tokens around and between them."""
        ids = self.encode(first)
        if self.vocab.flag("add_sep_token", False) and self.vocab.sep_id is not None:
            ids.append(self.vocab.sep_id)
        ids += self.encode(second, add_special=False)
        if self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    @checked
    def partition(self, text: str, parse_special: bool = True) -> list[str | int]:
        """Cut a text at its special tokens: their ids, and the pieces of plain text between them."""
        if not text.isascii():
            text = _valid(text)
        return (self._specials if parse_special else self._always).cut(text)

    def broken(self, text: str, mark: str) -> str:
        """A text with `mark` after the first character of every control token in it.

        Read as plain text and without the mark it is unchanged; tokens of one character stay.
        """
        return self._control.broken(text, mark)

    @checked
    def encode_pieces(self, pieces: Pieces) -> list[int]:
        """Token ids of pieces from `partition`; plain pieces are not searched for special tokens again."""
        ids: list[int] = []
        self._encode_pieces(pieces, ids)
        return ids

    @checked
    def encode_within(self, text: str) -> list[int]:
        """Token ids of plain text amid other text: no space is put before it, no BOS or EOS around it."""
        ids: list[int] = []
        self._encode_pieces(self.partition(text, parse_special=False), ids, space_prefix=False)
        return ids

    @checked
    def decode(self, ids: TokenIds, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. Control tokens are left out unless requested.

        A space that the vocabulary puts before a text is removed.
        """
        table = self._visible if skip_special else self._bytes
        data = b"".join(map(table.__getitem__, ids))
        if self._strip_first and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    @checked
    def stream(self, skip_special: bool = True, continues: bool = False) -> StreamDecoder:
        """A streaming decoder. `continues`: the tokens follow a text, so a leading space belongs to it."""
        return StreamDecoder(self, skip_special, strip=self._strip_first and not continues)

    @checked
    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes; the name of a control token."""
        return self._bytes[token_id]

    def all_bytes(self) -> list[bytes]:
        """`token_bytes` of every token, quickly."""
        others = np.flatnonzero(self.vocab.types != NORMAL).tolist()
        texts = self.vocab.texts.copy()
        for i in others:
            texts[i] = ""
        found = self._texts_bytes(texts)
        for i in others:
            found[i] = self._find_bytes(i)
        return found

    @checked
    def token_text(self, token_id: int) -> str:
        """A token's text; incomplete characters become U+FFFD."""
        return self._bytes[token_id].decode("utf-8", "replace")

    @checked
    def token_id(self, text: str) -> int | None:
        """Id of the token stored as `text` ("<|im_end|>"), None if there is none."""
        return self.vocab.find(text)

    @checked
    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control or unknown token: not text."""
        return self.vocab.types[self._check(token_id)] in (CONTROL, UNKNOWN)

    @cached_property
    def _control(self) -> Finder:
        return Finder({text: i for text, i in self.vocab.special_ids.items() if len(text) > 1}, frozenset())

    def _check(self, token_id: int) -> int:
        if not 0 <= token_id < len(self.vocab):
            raise TokenizerError(f"token id {token_id} is outside the vocabulary of {len(self.vocab)} tokens")
        return token_id

    def _find_visible(self, token_id: int) -> bytes:
        hidden = self.is_special(token_id) and token_id not in self.vocab.shown_ids
        return b"" if hidden else self.token_bytes(token_id)

    def _find_bytes(self, token_id: int) -> bytes:
        kind = self.vocab.types[self._check(token_id)]
        text = self.vocab.texts[token_id]
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            return _utf8(text)
        if kind == UNUSED:
            return b""
        if kind == BYTE and (byte := _byte_value(text)) is not None:
            return bytes([byte])
        return self._text_bytes(text)

    def _text_bytes(self, text: str) -> bytes:
        return _utf8(text.replace(_SPACE, " "))

    def _texts_bytes(self, texts: list[str]) -> list[bytes]:
        """`_text_bytes` of many texts."""
        joined = _utf8("\0".join(texts).replace(_SPACE, " ")).split(b"\0")
        return joined if len(joined) == len(texts) else [self._text_bytes(text) for text in texts]

    def _encode_pieces(self, pieces: Iterable[str | int], ids: list[int], space_prefix: bool = True) -> None:
        pieces = [piece for piece in pieces if piece != ""]
        if self._space_prefix and space_prefix:
            pieces = [
                " " + piece if isinstance(piece, str) and (i == 0 or isinstance(pieces[i - 1], int)) else piece
                for i, piece in enumerate(pieces)
            ]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        encoded = self._switch.encode(texts) if texts else None
        if encoded is None:
            for piece in pieces:
                if isinstance(piece, str):
                    self._encode_words(piece, ids)
                else:
                    ids.append(piece)
            return
        own, ends = encoded
        if len(pieces) == 1:
            ids += own
            return
        spans = iter(pairwise([0, *ends]))
        for piece in pieces:
            if isinstance(piece, str):
                ids += own[slice(*next(spans))]
            else:
                ids.append(piece)

    def _compiled(self) -> tuple[Sequence[Kernel], Callable[[], Encoder]]:
        """The compiled equivalent of `_encode_words`; see `Recipe`."""
        raise ValueError("there is none for this kind")

    @abstractmethod
    def _encode_words(self, text: str, ids: list[int]) -> None:
        """Append the token ids of plain, non-empty text to `ids`."""


class StreamDecoder:
    """Incremental decoding: a character is returned when its last byte has arrived, never in parts.

    The results of all calls, joined, are `decode` of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, strip: bool = False) -> None:
        self._table = tokenizer._visible if skip_special else tokenizer._bytes
        self._strip = strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text completed by this token, maybe empty."""
        data = self._table[token_id]
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The rest: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", final=True)


def words_of(texts: Iterable[str]) -> tuple[re.Pattern[str], list[str]]:
    """A regular expression for parts of texts that no token crosses, with their leading spaces; and the characters from
    which some token continues into a space."""
    crossing = sorted(
        {a for text in texts if _SPACE in text.lstrip(_SPACE) for a, b in pairwise(text) if b == _SPACE != a}
    )
    also = f"(?:(?<=[{re.escape(''.join(crossing))}]){_SPACE}+[^{_SPACE}]*)*" if crossing else ""
    return re.compile(f"{_SPACE}*[^{_SPACE}]+{also}|{_SPACE}+"), crossing


class _Memo(dict[int, bytes]):
    """A dictionary whose entries are computed at first use."""

    def __init__(self, find: Callable[[int], bytes]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: int) -> bytes:
        value = self[key] = self._find(key)
        return value


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _byte_value(text: str) -> int | None:
    """Value of a byte token, written `<0x0A>`."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            return None
    return None
