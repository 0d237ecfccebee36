"""Runs many requests at once on one executable: scheduling, shared prefixes, sampling, threads."""

from pyllm.engine.engine import Engine
from pyllm.engine.generation import Generation
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest

__all__ = ["Engine", "FinishReason", "GeneratedToken", "Generation", "GenerationRequest"]
