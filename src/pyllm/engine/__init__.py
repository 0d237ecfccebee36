"""Runs many requests at once on one executable: scheduling, shared prefixes, sampling, a thread that computes."""

from pyllm.engine.engine import Engine
from pyllm.engine.generation import Generation
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest
from pyllm.engine.transformer import Transformer

__all__ = ["Engine", "FinishReason", "GeneratedToken", "Generation", "GenerationRequest", "Transformer"]
