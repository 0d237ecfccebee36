"""What a model's file says of it, in Ollama's words; kept until the file changes."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyllm.errors import PyllmError
from pyllm.gguf import GGUFFile, open_gguf
from pyllm.hub import catalog
from pyllm.hub.modelfile import text_of
from pyllm.llm.recipes import template_of
from pyllm.records import dataclass
from pyllm.server.known import Known

_MOST_ITEMS = 64
"""Of an array that is shown; longer ones are null, as Ollama has them."""
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Facts:
    """A file's header."""

    architecture: str = ""
    n_parameters: int = 0
    n_ctx: int = 0


def facts_of(path: Path) -> Facts:
    """The header of a file; without contents where it cannot be read."""
    try:
        found = path.stat()
        return _facts(path, found.st_mtime_ns, found.st_size)
    except (OSError, PyllmError):
        return Facts()


@lru_cache(512)
def _facts(path: Path, *changed: int) -> Facts:
    with open_gguf(path) as file:
        architecture = str(file.metadata.get("general.architecture", ""))
        n_ctx = file.metadata.get(f"{architecture}.context_length")
        n_parameters = sum(_size(tensor.shape) for tensor in file.tensors.values())
        return Facts(architecture, n_parameters, n_ctx if isinstance(n_ctx, int) else 0)


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def details(known: Known) -> dict[str, Any]:
    """`details` of a model."""
    facts = facts_of(known.path)
    return {
        "parent_model": _parent(known),
        "format": "gguf",
        "family": facts.architecture,
        "families": [facts.architecture] if facts.architecture else [],
        "parameter_size": count(facts.n_parameters),
        "quantization_level": known.format or "unknown",
    }


def _parent(known: Known) -> str:
    """The name of the model that a named one was made of; of a file, its name alone."""
    if known.named is None:
        return ""
    base = known.named.base
    return Path(base).name if Path(base).is_absolute() else base


def count(n: int) -> str:
    """A number of parameters: "494.03M", "7.6B"."""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if n >= unit:
            return f"{n // unit}{name}" if n % unit == 0 else f"{n / unit:.{digits}f}{name}"
    return f"{n // 1000}K" if n >= 1000 else str(n)


def digest(known: Known) -> str:
    """64 digits that tell a model from others: the file's SHA-256 where that is known without reading it, else a hash
    of name, size and time."""
    if known.named is not None:
        named = known.named
        parts = [text_of(named.modelfile()), *(file.sha256 for file in (*named.files, *named.adapters))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
    entry = catalog.load().entries.get(known.name)
    if entry is not None and entry.sha256 is not None:
        return entry.sha256
    target = known.path.resolve().name
    if _HASH.fullmatch(target):
        return target
    return hashlib.sha256(f"{known.name}\0{known.size}\0{known.created}".encode()).hexdigest()


def capabilities(known: Known) -> tuple[list[str], str]:
    """What a model can do, and its chat template. Raises GGUFError."""
    found = known.path.stat()
    own = known.named.template if known.named is not None else ""
    return _capabilities(known.path, own, found.st_mtime_ns, found.st_size)


@lru_cache(64)
def _capabilities(path: Path, own: str, *changed: int) -> tuple[list[str], str]:
    from pyllm import chat
    from pyllm.chat.dialects import dialect_of
    from pyllm.tokenizers.vocab import Vocab

    found = ["completion"]
    with open_gguf(path) as file:
        text = own or _text(file, "tokenizer.chat_template")
        with suppress(PyllmError):  # chats with it say what is wrong
            template = template_of(own) if own.strip() else chat.from_gguf(file.metadata)
            if template is not None:
                found += ["tools"] if template.takes_tools else []
                found += ["thinking"] if dialect_of(template).spec.reasoning is not None else []
        with suppress(PyllmError):
            found += ["insert"] if {"prefix", "suffix"} <= Vocab(file.metadata).fim_ids.keys() else []
    return found, text


def _text(file: GGUFFile, key: str) -> str:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else ""


def metadata(known: Known, whole: bool) -> dict[str, Any]:
    """`model_info`: the file's metadata, long lists as null unless all is asked for. Raises GGUFError."""
    found: dict[str, Any] = {}
    with open_gguf(known.path) as file:
        for key in file.metadata:
            field = file.metadata.field(key)
            if key == "tokenizer.chat_template":
                continue
            if field.item_type is not None and field.count > _MOST_ITEMS and not whole:
                found[key] = None
                continue
            value = file.metadata[key]
            found[key] = value.tolist() if hasattr(value, "tolist") else value
        found["general.parameter_count"] = facts_of(known.path).n_parameters
    return {key: _jsonable(value) for key, value in found.items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value
