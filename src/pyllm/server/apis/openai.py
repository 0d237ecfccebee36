"""OpenAI's API: chats, completions, gaps, embeddings, models. Its Responses are `responses`."""

from __future__ import annotations

from pyllm.server.apis._openai import chat, completions, embeddings, fim, models
from pyllm.server.apis._openai.form import API

__all__ = ["API", "chat", "completions", "embeddings", "fim", "models"]
