"""Chat templates: messages to prompts. `from_gguf(metadata, tokenizer) -> ChatTemplate | None`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyllm.chat.template import CHATML, ChatTemplate, encode_prompt

if TYPE_CHECKING:
    from pyllm.tokenizers import Tokenizer

__all__ = ["ChatTemplate", "default_template", "encode_prompt", "from_gguf"]

_KEY = "tokenizer.chat_template"


def from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> ChatTemplate | None:
    """The chat template of a file (`tokenizer.chat_template` and its named variants); None if it has none.

    Values that are not text are ignored. Raises TemplateError where the default template does not parse.
    """
    sources = {
        key.removeprefix(_KEY + "."): metadata[key]
        for key in metadata
        if key.startswith(_KEY + ".") and isinstance(metadata[key], str)
    }
    main = metadata.get(_KEY)
    if isinstance(main, str) and main.strip():
        sources["default"] = main
    return ChatTemplate(sources, tokenizer) if "default" in sources else None


def default_template(tokenizer: Tokenizer | None = None) -> ChatTemplate:
    """ChatML, which most models without a template of their own understand best."""
    return ChatTemplate({"default": CHATML}, tokenizer)
