"""The public library: load a model, complete, chat, embed and score."""

from __future__ import annotations

from pyllm.chat.messages import Message
from pyllm.llm.model import LLM
from pyllm.llm.opening import load, load_tokenizer
from pyllm.llm.prompts import Prompt

__all__ = ["LLM", "Message", "Prompt", "load", "load_tokenizer"]
