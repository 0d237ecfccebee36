"""How the next token is chosen from logits: steps, each in a file of its own, run as one compiled chain.

Names are imported when they are first used: the settings of the steps are read without numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyllm.sampling.chain import Sampler, choose, prepare
    from pyllm.sampling.general import advised, check
    from pyllm.sampling.likelihoods import logprobs
    from pyllm.sampling.top_logits import TopLogits
    from pyllm.sampling.vocabulary import Vocabulary

__all__ = ["Sampler", "TopLogits", "Vocabulary", "advised", "check", "choose", "logprobs", "prepare"]

_HOME_OF = {
    "TopLogits": "top_logits",
    "Sampler": "chain",
    "Vocabulary": "vocabulary",
    "advised": "general",
    "check": "general",
    "choose": "chain",
    "logprobs": "likelihoods",
    "prepare": "chain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value
