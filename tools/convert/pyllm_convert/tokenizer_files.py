"""The files of a Hugging Face folder that say something about its tokenizer, read once, sizes checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.errors import TokenizerError

_MAX_BYTES = 512 << 20
MAX_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in text before anything is cut or merged."""

    text: str
    special: bool

    @property
    def is_control(self) -> bool:
        """Whether it steers the model: declared special, or one that old files forgot to declare."""
        t = self.text
        looks_special = (t.startswith(("<|", "<｜")) and t.endswith(("|>", "｜>"))) or (
            t.startswith("<unused") and t.endswith(">")
        )
        return self.special or looks_special or t in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What was found in a folder; {} for a file that is not there. `tokenizer` is tokenizer.json, or None."""

    folder: Path
    tokenizer: dict[str, Any] | None
    settings: dict[str, Any]
    special_map: dict[str, Any]
    config: Mapping[str, Any]
    generation: dict[str, Any]
    added: dict[int, AddedToken] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> TokenizerFiles:
        """Raises TokenizerError for a file that cannot be read or is not what its name says."""
        tokenizer = read_json(folder / "tokenizer.json")
        if tokenizer and not isinstance(tokenizer.get("model"), dict):
            raise TokenizerError(f"{folder / 'tokenizer.json'} has no model; it is damaged")
        settings = read_json(folder / "tokenizer_config.json")
        files = cls(
            folder,
            tokenizer or None,
            settings,
            read_json(folder / "special_tokens_map.json"),
            config,
            read_json(folder / "generation_config.json"),
        )
        files.added.update(_added(tokenizer, settings, read_json(folder / "added_tokens.json")))
        return files

    @property
    def vocab_size(self) -> int | None:
        """Rows of the model's token table, as config.json states it."""
        texts = self.config.get("text_config")
        for source in (self.config, texts if isinstance(texts, dict) else {}):
            size = source.get("vocab_size")
            if size is not None:
                if not isinstance(size, int) or not 0 < size <= MAX_TOKENS:
                    raise TokenizerError(f"config.json says vocab_size {size!r}, which is no size of a vocabulary")
                return size
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file. Raises TokenizerError."""
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; that is no file of a tokenizer")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} is not a JSON object")
    return value


def read_text(path: Path) -> str:
    """A UTF-8 text, such as a chat template, without the mark that some editors put first. Raises TokenizerError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TokenizerError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; that is no file of a tokenizer")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error}") from error


def content(entry: Any) -> str | None:
    """The text of a token that a file writes as text, or as an object with its text."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _added(*files: dict[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Added tokens by id: of added_tokens.json, tokenizer_config.json, tokenizer.json, the last one counts."""
    tokenizer, settings, plain = files
    for text, token_id in plain.items():
        yield _id(token_id), AddedToken(text, special=False)
    decoder = settings.get("added_tokens_decoder")
    entries = [(token_id, entry) for token_id, entry in (decoder if isinstance(decoder, dict) else {}).items()]
    listed = tokenizer.get("added_tokens")
    entries += [(e.get("id"), e) for e in (listed if isinstance(listed, list) else ()) if isinstance(e, dict)]
    for token_id, entry in entries:
        found = content(entry)
        if found is None:
            raise TokenizerError(f"the added token {token_id} has no text; the tokenizer's files are damaged")
        yield _id(token_id), AddedToken(found, special=isinstance(entry, dict) and bool(entry.get("special")))


def _id(value: Any) -> int:
    try:
        token_id = int(value)
    except (TypeError, ValueError, OverflowError):
        token_id = -1
    if not 0 <= token_id < MAX_TOKENS:
        raise TokenizerError(f"{value!r} is no id of a token; the tokenizer's files are damaged")
    return token_id
