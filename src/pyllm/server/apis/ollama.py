"""Ollama's API: what its Python client calls."""

from __future__ import annotations

from pyllm.server.apis._ollama import chat, embed, generate, making, models
from pyllm.server.apis._ollama.form import API

__all__ = ["API", "chat", "embed", "generate", "making", "models"]
