"""Drafts for the answers of a step: asked of drafters, as long as pays, and learned from."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.drafter import Drafter
from pyllm.engine.speculation.lengths import Acceptance, Prospect, StepTimes, best_rate, lengths
from pyllm.records import dataclass

_FIRST_PROBE, _LAST_PROBE, _PROBE = 48, 500, 3
"""Steps without guesses after which a sequence gets some, several times as many after each probe up to the last, and
how many guesses these are. A drafter whose guesses take time reads what it has missed, so there are few probes."""
_SIZES = 64
"""Tokens of a step up to which times are told apart."""


@dataclass(slots=True)
class _Guesses:
    """What is known of one drafter's guesses for a sequence, and the last ones, which the next tokens will judge."""

    acceptance: Acceptance
    kind: int = 0
    at: int = 0
    tokens: Many[int] = ()
    offered: int = 0
    asked: int = 0
    """How many there should have been; where the drafter stopped before, the next one counts as wrong."""
    waited: int = 0
    """Steps in which guesses did not seem worth it."""
    probe_at: int = _FIRST_PROBE
    """After how many of those some are made all the same."""


class _Source:
    """A drafter, and how likely its guesses are right."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.acceptance = Acceptance(drafter.priors)

    def prospect(self, seq: Sequence, own: _Guesses, seconds: float) -> Prospect:
        """What it could guess now. `seconds`: of one more token of its guesses."""
        self._judge(seq, own)
        offer = self.drafter.offer(seq)
        own.kind, own.at, own.tokens, own.asked = offer.kind, seq.n_tokens, (), 0
        own.offered = min(offer.n, seq.consumer.most_drafts(seq))
        return Prospect(own.acceptance.likelihood(offer.kind), own.offered, seconds)

    def is_due(self, own: _Guesses) -> bool:
        """Whether guesses that don't seem worth it are to be verified, to learn whether they have become so."""
        if self.drafter.is_free or not own.offered:
            return False
        own.waited += 1
        if own.waited < own.probe_at or own.probe_at > _LAST_PROBE:
            return False
        own.probe_at *= 3
        return True

    def _judge(self, seq: Sequence, own: _Guesses) -> None:
        """Learn from the tokens that came after the last guesses."""
        came: list[int] = seq.tokens[own.at : min(seq.n_tokens, own.at + len(own.tokens))].tolist()
        right = 0
        for guess, token in zip(own.tokens, came, strict=False):
            if guess != token:
                break
            right += 1
        if came:
            wrong = int(right < len(came) or len(came) == len(own.tokens) < own.asked)
            own.acceptance.note(own.kind, right, wrong)
            self.acceptance.note(own.kind, right, wrong)


class Speculation:
    """Chooses drafts for steps. Belongs to an engine; its computing thread calls it."""

    def __init__(self, drafters: Many[Drafter]) -> None:
        """`drafters`: each sequence gets the guesses that promise most at the time; of equal ones, the first's."""
        self._sources = [_Source(drafter) for drafter in drafters]
        self._times = StepTimes(_SIZES)
        self._guesses: dict[int, list[_Guesses]] = {}
        """By sequence, for each drafter."""

    @property
    def reads_features(self) -> bool:
        """Whether a drafter follows each step."""
        return any(source.drafter.reads_features for source in self._sources)

    def follow(self, steps: Many[Sequence], batch: Batch, features: NDArray[np.float32]) -> None:
        """Have drafters read a step along (`Drafter.follow`)."""
        for source in self._sources:
            if source.drafter.reads_features:
                source.drafter.follow(steps, batch, features)

    def propose(
        self, answers: Many[Sequence], most: int, room: Callable[[Sequence, int], int]
    ) -> list[tuple[Sequence, list[int]]]:
        """Drafts for sequences that each have one token in the next step; together at most so many tokens. `room`: how
        many of so many there is room for in a sequence's pages."""
        seconds = [source.drafter.seconds(len(answers)) for source in self._sources]
        guesses: dict[int, list[_Guesses]] = {}
        prospects: list[Prospect] = []
        chosen: list[int] = []
        for seq in answers:
            known = self._guesses.get(seq.number) or [_Guesses(source.acceptance.of_one()) for source in self._sources]
            guesses[seq.number] = known
            found = [s.prospect(seq, own, cost) for s, own, cost in zip(self._sources, known, seconds, strict=True)]
            best = 0
            if len(found) > 1:
                rates = [best_rate(prospect, len(answers), most, self._times) for prospect in found]
                best = max(range(len(found)), key=rates.__getitem__)
            chosen.append(best)
            prospects.append(found[best])
        self._guesses = guesses
        ns = lengths(prospects, most, self._times)
        left = most - sum(ns)
        drafts: list[tuple[Sequence, list[int]]] = []
        for i, source in enumerate(self._sources):
            asked: list[tuple[Sequence, _Guesses, int]] = []
            for seq, n, source_of in zip(answers, ns, chosen, strict=True):
                own = guesses[seq.number][i]
                verified = n if source_of == i else 0
                if not n and left and source.is_due(own):
                    verified = min(_PROBE, own.offered, left)
                    left -= verified
                verified = room(seq, verified) if verified else 0
                own.asked = verified or min(own.offered, source.drafter.is_free)
                if own.asked:
                    asked.append((seq, own, verified))
            drafts += _drafted(source, asked)
        return drafts

    def note(self, n_generated: int, n_others: int, seconds: float) -> None:
        """A step of so many generated tokens, drafts among them, and others took so long."""
        if n_generated and not n_others:
            self._times.note(n_generated, seconds)

    def memory(self) -> dict[str, int]:
        """Bytes that drafters hold, by purpose."""
        held = [source.drafter.memory() for source in self._sources]
        return {purpose: sum(one.get(purpose, 0) for one in held) for purpose in {p for one in held for p in one}}

    def close(self) -> None:
        for source in self._sources:
            source.drafter.close()


def _drafted(source: _Source, asked: Many[tuple[Sequence, _Guesses, int]]) -> list[tuple[Sequence, list[int]]]:
    """A drafter's guesses: so many of each sequence's are verified, further ones only compared with what comes."""
    drafts = source.drafter.draft([(seq, own.asked) for seq, own, _ in asked])
    found: list[tuple[Sequence, list[int]]] = []
    for (seq, own, n), draft in zip(asked, drafts, strict=True):
        own.tokens = draft
        if n and (n := seq.consumer.admits(seq, draft[:n])) > 0:
            found.append((seq, draft[:n]))
    return found
