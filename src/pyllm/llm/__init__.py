"""The library as its users see it: load a model, complete, chat, embed and score."""

from __future__ import annotations

from pyllm.llm.model import LLM, Message, Prompt, load, load_tokenizer

__all__ = ["LLM", "Message", "Prompt", "load", "load_tokenizer"]
