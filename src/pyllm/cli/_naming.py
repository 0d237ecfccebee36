"""Models named by the first word of a command: `pyllm run qwen2.5-coder:0.5b "hi"`, without -m."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

_TAGGED = re.compile(r"[a-z][\w.-]*:\d+(\.\d+)?[bm](-[\w.-]+)?", re.IGNORECASE | re.ASCII)
"""A name with a size after a colon, llama3.2:3b-instruct."""
_REPOSITORY = re.compile(r"(hf\.co|huggingface\.co)/[\w.-]+/\S+", re.ASCII)


def names_model(word: str) -> bool:
    """Whether a word can only mean a model: a GGUF file, hf.co/user/repo, a named model, a known name, or a name with a
    size.

    A known family alone ("mistral") may be a word of a prompt; it counts if it contains a digit ("smollm2").
    """
    if not word or len(word) > 4096 or (word != word.strip()):
        return False
    if word.lower().endswith(".gguf") and (os.path.isfile(os.path.expanduser(word)) or not re.search(r"\s", word)):
        return True
    if _REPOSITORY.fullmatch(word) or _TAGGED.fullmatch(word) or _is_named(word):
        return True
    return is_known(word) and (":" in word or re.search(r"\d", word) is not None)


def is_known(word: str) -> bool:
    """Whether the catalog has a model of this name, with or without its tag."""
    return any(word.lower() in (name, name.partition(":")[0]) for name in _catalog())


def known_models() -> list[str]:
    """Names for shell completion: those of the catalog, and of fetched models."""
    from pyllm import hub
    from pyllm.errors import PyllmError

    try:
        return [model.name for model in hub.models()]
    except (PyllmError, OSError):
        return []


def split_words(model: str | None, words: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The model and the other words: the first word is the model if it names one and -m is not given."""
    from pyllm.cli._options import is_given
    from pyllm.cli._output import note

    if not words or is_given("model", "hf_repo"):
        return model, tuple(words)
    if names_model(words[0]):
        return words[0], tuple(words[1:])
    if is_known(words[0]):
        note(f"note: {words[0]!r} is taken as a word of the prompt; -m {words[0]} is the model")
    return model, tuple(words)


def _is_named(word: str) -> bool:
    """Whether the user made a model of this name."""
    from pyllm import hub
    from pyllm.errors import PyllmError

    try:
        return not re.search(r"\s", word) and hub.find_named(word) is not None
    except PyllmError:
        return True  # it is damaged, which loading it says


def _catalog() -> list[str]:
    from pyllm.errors import PyllmError
    from pyllm.hub import catalog

    try:
        return [name.lower() for name in catalog.load().entries]
    except PyllmError:
        return []
