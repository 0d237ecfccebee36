"""SentencePiece's `tokenizer.model`: the fields that a GGUF vocabulary needs, read out of the protobuf message.

Source: `sentencepiece_model.proto` (ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3) and the protobuf
wire format. Fields that are not needed are skipped; lengths are checked against what holds them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllm.errors import TokenizerError

MAX_BYTES = 256 << 20
MAX_PIECES = 1 << 24

UNIGRAM, BPE = 1, 2
"""`TrainerSpec.model_type`; the others, words and characters, are not for language models."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a model file says. `types` are SentencePiece's, which GGUF's token types are too: 1 normal … 6 byte."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    """Precompiled normalization; empty for none."""
    roles: dict[str, int] | None = None
    """Ids that the trainer gave to "unk", "bos", "eos" and "pad"; -1 for none."""


def read(path: Path) -> SentencePieceModel:
    """Raises TokenizerError for what is not a SentencePiece model."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(f"{path} is larger than {MAX_BYTES >> 20} MiB; that is no SentencePiece model")
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    try:
        return parse(data)
    except ValueError as error:
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}") from error


def parse(data: memoryview) -> SentencePieceModel:
    """The same from the file's bytes. Raises ValueError."""
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    for number, value in _fields(data):
        if number == 1:
            if len(texts) == MAX_PIECES:
                raise ValueError(f"it has more than {MAX_PIECES} pieces")
            text, score, kind = _piece(_message(value))
            texts.append(text)
            scores.append(score)
            types.append(kind)
        elif number == 2:
            trainer.update(_fields(_message(value)))
        elif number == 3:
            normalizer.update(_fields(_message(value)))
    if not texts:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(2, memoryview(b""))
    return SentencePieceModel(
        texts,
        scores,
        types,
        model_type=_int(trainer.get(3), UNIGRAM),
        byte_fallback=bool(_int(trainer.get(35), 0)),
        add_dummy_prefix=bool(_int(normalizer.get(3), 1)),
        remove_extra_whitespaces=bool(_int(normalizer.get(4), 1)),
        whitespace_as_suffix=bool(_int(trainer.get(24), 0)),
        charsmap=bytes(_message(charsmap)),
        roles={
            name: _int(trainer.get(number), default)
            for name, number, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))
        },
    )


def _piece(data: memoryview) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = bytes(_message(value)).decode("utf-8", "surrogateescape")
        elif number == 2 and isinstance(value, memoryview) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _int(value, 1)
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece is of the type {kind}")
    return text, score, kind


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a message, string or fixed-size number."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"field {number} has the wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"field {number} wants {size} bytes where {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("a number has no end")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _int(value: int | memoryview | None, default: int) -> int:
    """A varint as protobuf's int32: negative numbers take ten bytes."""
    if value is None:
        return default
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number should")
    return value - (1 << 64) if value >> 63 else value
