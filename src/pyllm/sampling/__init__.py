"""Sampling: choosing the next token from logits, by small steps that are composed once per request."""

from pyllm.sampling.chain import Sampler, check
from pyllm.sampling.largest import Largest
from pyllm.sampling.logprobs import logprobs

__all__ = ["Largest", "Sampler", "check", "logprobs"]
