"""llama-server's own API, beside OpenAI's: completions with all of its options, tokens, templates, slots."""

from __future__ import annotations

from pyllm.server.apis._native import completion, state, text
from pyllm.server.apis._native.form import API

__all__ = ["API", "completion", "state", "text"]
