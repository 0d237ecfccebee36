"""How the next token is chosen from logits: one small step each, put together once per request."""

from pyllm.sampling.chain import Sampler, check
from pyllm.sampling.largest import Largest
from pyllm.sampling.logprobs import logprobs

__all__ = ["Largest", "Sampler", "check", "logprobs"]
