"""The settings of sampling. Written by `python tools/write_settings.py`; change `pyllm/sampling`, not this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from pyllm.arguments import settle
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen: the steps from logits to a token, each left out at its neutral value.

    Steps run in the order of their fields, unless `samplers` says otherwise.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens; -inf forbids one. Ids may be texts ("260"), as JSON has them."""
    banned_tokens: Sequence[int] = ()
    """Tokens that are never chosen."""
    banned_strings: Sequence[str] = ()
    """Texts that never are in the answer: a token that would complete one is not chosen."""
    min_tokens: int = 0
    """Least number of tokens before the answer may end."""
    repeat_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the last `repeat_last_n` (1: off)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the last `repeat_last_n` (0: off)."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens for each occurrence in the last `repeat_last_n` (0: off)."""
    repeat_last_n: int = 64
    """Number of last tokens that the penalties look at; -1: all, 0: none."""
    dry_multiplier: float = 0.0
    """DRY: subtracted from the logit of a token that continues a repetition (0: off)."""
    dry_base: float = 1.75
    """Growth of DRY's penalty with each repeated token."""
    dry_allowed_length: int = 2
    """Length of a repetition from which on DRY's penalty grows; shorter ones are free."""
    dry_penalty_last_n: int = 64
    """Number of last tokens that DRY searches for repetitions; -1: all, 0: none."""
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    """Texts that end a repetition for DRY; giving some replaces the usual ones."""
    top_n_sigma: float = 0.0
    """Leave out tokens whose logits are more than n standard deviations below the largest (0 or -1: none)."""
    top_k: int = 40
    """Choose among the k most likely tokens (0 or -1: all)."""
    tfs_z: float = 1.0
    """Leave out the flat tail of the sorted probabilities, where their bends add up to share z (1: nothing)."""
    typical_p: float = 1.0
    """Choose among tokens of typical surprise, up to probability p (1: all)."""
    top_p: float = 0.95
    """Choose among the most likely tokens, until their probabilities add up to p (1: all)."""
    top_a: float = 0.0
    """Leave out tokens less likely than a times the square of the largest probability (0: none)."""
    min_p: float = 0.05
    """Leave out tokens less than p times as likely as the most likely one (0: none)."""
    epsilon_cutoff: float = 0.0
    """Leave out tokens less likely than this probability (0: none)."""
    eta_cutoff: float = 0.0
    """Leave out tokens less likely than this probability, or than its root by e^entropy, if less (0: none)."""
    xtc_probability: float = 0.0
    """How often the most likely tokens are left out (0: never)."""
    xtc_threshold: float = 0.1
    """From which probability on a token may be left out by `xtc_probability` (above 0.5: none is)."""
    smoothing_factor: float = 0.0
    """Makes near tokens more alike and far ones less likely: distances from the largest logit are squared, and
    multiplied by this (0: off)."""
    smoothing_curve: float = 1.0
    """Above 1, `smoothing_factor` works by the cube of the distance, too."""
    temperature: float = 0.8
    """Randomness of the choice; 0: always the most likely token (greedy)."""
    dynatemp_range: float = 0.0
    """Dynamic temperature: how far it moves with the entropy, up and down (0: off)."""
    dynatemp_exponent: float = 1.0
    """Dynamic temperature: exponent of the entropy's share."""
    mirostat: int = 0
    """Keep the mean surprise constant, by Mirostat 1 or 2; no other step then leaves out tokens (0: off)."""
    mirostat_tau: float = 5.0
    """Target surprise of `mirostat`, in bits."""
    mirostat_eta: float = 0.1
    """Learning rate of `mirostat`."""
    adaptive_target: float = -1.0
    """Choose tokens whose probability is near this one (-1: off)."""
    adaptive_decay: float = 0.9
    """How long `adaptive_target` remembers: about 1 / (1 - decay) tokens."""
    seed: int | None = None
    """Seed of random numbers, to repeat an answer; None or -1: a new one each time."""
    samplers: Sequence[str] | None = None
    """The steps that run, in this order; None: all that are on, in the usual order."""
    logits_processors: Sequence[Callable[[Any, Any], Any]] = ()
    """Functions of (ids of prompt and answer so far, int32; logits, float32 [n_vocab]), called before each token. They
    change the logits, or return others."""

    def __post_init__(self) -> None:
        settle(self)
        if self.top_n_sigma == -1:
            object.__setattr__(self, "top_n_sigma", 0.0)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
