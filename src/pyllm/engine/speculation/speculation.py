"""Drafts for the answers of a step: asked of the drafter, as long as pays, and learned from."""

from __future__ import annotations

from collections.abc import Sequence as Many

from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.drafter import Drafter
from pyllm.engine.speculation.lengths import Acceptance, Prospect, StepTimes, lengths
from pyllm.records import dataclass

_SIZES = 64
"""Tokens of a step up to which times are told apart."""


@dataclass(slots=True)
class _Guessed:
    """What is known of a sequence's guesses, and the last ones, which its next tokens will judge."""

    acceptance: Acceptance
    kind: int = 0
    at: int = 0
    tokens: Many[int] = ()


class Speculation:
    """Chooses drafts for steps. Belongs to an engine; its computing thread calls it."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self._times = StepTimes(_SIZES)
        self._acceptance = Acceptance(drafter.priors)
        self._guessed: dict[int, _Guessed] = {}
        """By sequence."""

    def propose(self, answers: Many[Sequence], most: int) -> list[tuple[Sequence, list[int]]]:
        """Drafts for sequences that each have one token in the next step; together at most so many tokens."""
        asked: list[tuple[Sequence, _Guessed, int]] = []
        prospects: list[Prospect] = []
        guessed = {}
        for seq in answers:
            own = guessed[seq.number] = self._guessed.get(seq.number) or _Guessed(self._acceptance.of_one())
            self._judge(seq, own)
            offer = self.drafter.offer(seq)
            own.kind, own.at, own.tokens = offer.kind, seq.n_tokens, ()
            asked.append((seq, own, offer.n))
            prospects.append(Prospect(own.acceptance.likelihood(offer.kind), offer.n))
        self._guessed = guessed
        chosen = lengths(prospects, most, self._times, self.drafter.seconds(len(answers)))
        wanted = [
            (seq, own, n, min(offered, max(n, self.drafter.is_free)))
            for (seq, own, offered), n in zip(asked, chosen, strict=True)
        ]
        wanted = [item for item in wanted if item[3]]
        found: list[tuple[Sequence, list[int]]] = []
        drafts = self.drafter.draft([(seq, n) for seq, _, _, n in wanted])
        for (seq, own, n, _), draft in zip(wanted, drafts, strict=True):
            own.tokens = draft
            if n and (n := seq.consumer.admits(seq, draft[:n])) > 0:
                found.append((seq, draft[:n]))
        return found

    def note(self, n_generated: int, n_others: int, seconds: float) -> None:
        """A step of so many generated tokens, drafts among them, and others took so long."""
        if n_generated and not n_others:
            self._times.note(n_generated, seconds)

    def memory(self) -> dict[str, int]:
        return self.drafter.memory()

    def close(self) -> None:
        self.drafter.close()

    def _judge(self, seq: Sequence, own: _Guessed) -> None:
        """Learn from the tokens that came after the last guesses."""
        came: list[int] = seq.tokens[own.at : min(seq.n_tokens, own.at + len(own.tokens))].tolist()
        right = 0
        for guess, token in zip(own.tokens, came, strict=False):
            if guess != token:
                break
            right += 1
        if came:
            wrong = int(right < len(came))
            own.acceptance.note(own.kind, right, wrong)
            self._acceptance.note(own.kind, right, wrong)
