"""One sequence held to a grammar: which tokens may come next, from its beginning on or once something was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.constraints.grammar import WHITE, Grammar, text_literal
from pyllm.constraints.schema import plain
from pyllm.constraints.vocabulary import Vocabulary
from pyllm.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher

Mask = NDArray[np.int32]
"""[n_words]: bit i of word w says whether token 32 w + i may come next."""


class Constraint(Protocol):
    """What the next token of a sequence may be. One thread at a time calls it.

    `matcher` and `check` are for `MaskPool`: with a matcher, the masks of several are computed at once, then checked.
    """

    n_words: int
    """Length of its own masks: of the vocabulary's, where a model has more logits."""

    @property
    def matcher(self) -> LLMatcher | None:
        """What makes the mask, if llguidance does."""

    def check(self, mask: Mask) -> None:
        """Raise RequestError where the mask that the matcher made is none."""

    @property
    def free(self) -> bool:
        """Whether any token may come next, so that no mask is needed."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and only an end token may follow: the sequence ends here."""

    @property
    def allows_end(self) -> bool:
        """Whether the answer may end here."""

    def mask(self, out: Mask) -> None:
        """Write the mask of the next token, int32 [ceil(n_vocab / 32)]. Raises RequestError where the grammar allows
        nothing, or is too complex to tell."""

    def advance(self, token: int) -> None:
        """Append a token. Raises RequestError, with no change, for one that the mask does not allow."""

    def forced(self) -> list[int]:
        """The tokens that alone may come next, in order; none where there is a choice. They are not appended."""

    def rollback(self, n: int) -> None:
        """Take back the last `n` tokens."""


class GrammarConstraint:
    """An answer that a grammar describes from its first token on.

    With a vocabulary that puts a space before texts, the answer's first token may begin with it (`▁{`): the space is no
    part of the text, and the grammar says nothing of it. `continues`: the answer continues a text, where the space is
    part of it, so it has to fit the grammar.
    """

    def __init__(
        self, grammar: Grammar, vocabulary: Vocabulary, *, continues: bool = False, lead: str | None = None
    ) -> None:
        """`lead`: what comes before the grammar's text, in Lark's notation, in place of that space.

        Raises RequestError for a grammar that does not compile.
        """
        if lead is None:
            lead = '" "?' if vocabulary.strips_first and not continues else ""
        self.name = grammar.name
        self._matcher = grammar.matcher(vocabulary, lead)
        self._end_ids, self.n_words = vocabulary.end_ids, vocabulary.n_words
        self._ended = False

    @property
    def matcher(self) -> LLMatcher:
        return self._matcher

    @property
    def free(self) -> bool:
        return False

    @property
    def finished(self) -> bool:
        return self._ended or (self.matcher.is_stopped() and not self.matcher.is_error())

    @property
    def allows_end(self) -> bool:
        return self._ended or self.matcher.is_accepting()

    def mask(self, out: Mask) -> None:
        if len(out) < self.n_words:
            own = np.empty(self.n_words, np.int32)
            self.mask(own)
            out[:] = own[: len(out)]
            return
        out[self.n_words :] = 0
        out = out[: self.n_words]
        self.matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        self.check(out)

    def check(self, mask: Mask) -> None:
        nothing = "NoExtension" in self.matcher.get_error() or not mask.any()
        if nothing:
            raise RequestError(f"{self.name} allows no token here; some rule or $ref has no end, or no token fits it")
        if self.matcher.is_error():
            raise self._error()

    def advance(self, token: int) -> None:
        if token in self._end_ids and self.allows_end:
            self._ended = True
            return
        if self._ended or self.matcher.try_consume_tokens([token]) != 1:
            if self.matcher.is_error():
                raise self._error()
            raise RequestError(f"{self.name} does not allow the token {token} here")

    def forced(self) -> list[int]:
        return [] if self._ended else self.matcher.compute_ff_tokens()

    def rollback(self, n: int) -> None:
        if n and self._ended:
            self._ended = False
            n -= 1
        if n and not self.matcher.rollback(n):
            raise self._error()

    def _error(self) -> RequestError:
        return RequestError(f"{self.name} cannot be followed any further; {plain(self.matcher.get_error())}")


class ArmedConstraint:
    """A constraint that begins when one of some texts has been written: the end of reasoning, the beginning of a call.

    Until then any token may come; `needed` forbids the answer to end before. With `inclusive` the grammar describes the
    text from that trigger's first character on, else what follows its last one and some white space. Where a token that
    completes a trigger goes on as the grammar doesn't, an inclusive one is not begun: the dialect's parser says what
    that text is.
    """

    def __init__(
        self, grammar: Grammar, vocabulary: Vocabulary, triggers: Sequence[str], *, inclusive: bool, needed: bool
    ) -> None:
        """Raises RequestError for a grammar that does not compile."""
        if not triggers or not all(triggers):
            raise ValueError("a constraint that waits needs texts to wait for")
        grammar.matcher(vocabulary)
        self._grammar, self._vocabulary = grammar, vocabulary
        self._triggers = tuple(text.encode() for text in triggers)
        self._inclusive, self._needed = inclusive, needed
        self.n_words = vocabulary.n_words
        self._tokens: list[int] = []
        self._armed_at = 0
        self._inner: GrammarConstraint | None = None

    @property
    def matcher(self) -> LLMatcher | None:
        return None if self._inner is None else self._inner.matcher

    @property
    def free(self) -> bool:
        return self._inner is None and not self._needed

    @property
    def finished(self) -> bool:
        return self._inner is not None and self._inner.finished

    @property
    def allows_end(self) -> bool:
        return not self._needed if self._inner is None else self._inner.allows_end

    def mask(self, out: Mask) -> None:
        if self._inner is not None:
            self._inner.mask(out)
            return
        out.fill(-1)
        if self._needed:
            for token in self._vocabulary.end_ids:
                out.view(np.uint32)[token // 32] &= np.uint32(0xFFFFFFFF ^ 1 << token % 32)

    def check(self, mask: Mask) -> None:
        if self._inner is not None:
            self._inner.check(mask)

    def advance(self, token: int) -> None:
        if self._inner is not None:
            self._inner.advance(token)
            self._tokens.append(token)
            return
        ends = token in self._vocabulary.end_ids
        if ends and self._needed:
            raise RequestError(f"{self._grammar.name} does not allow the token {token} here")
        self._tokens.append(token)
        if not ends:
            self._inner = self._begun()
            self._armed_at = len(self._tokens)

    def forced(self) -> list[int]:
        return [] if self._inner is None else self._inner.forced()

    def rollback(self, n: int) -> None:
        left = len(self._tokens) - n
        if self._inner is not None:
            if left < self._armed_at:
                self._inner = None
            else:
                self._inner.rollback(n)
        del self._tokens[left:]

    def _begun(self) -> GrammarConstraint | None:
        """The constraint that begins with the last token, if that completes a trigger."""
        last = self._vocabulary.token_bytes[self._tokens[-1]]
        reach = max(map(len, self._triggers)) - 1
        first, text = len(self._tokens) - 1, last
        while first and len(text) < reach + len(last):
            first -= 1
            text = self._vocabulary.token_bytes[self._tokens[first]] + text
        before = len(text) - len(last)
        found = [(at, t) for t in self._triggers if (at := text.find(t, max(0, before - len(t) + 1))) >= 0]
        if not found:
            return None
        at, trigger = min(found)
        return self._from_start(first, at) if self._inclusive else self._from_end(last, at + len(trigger) - before)

    def _from_start(self, first: int, at: int) -> GrammarConstraint | None:
        """A grammar that has the trigger, begun `at` bytes after the beginning of the token numbered `first`."""
        while at >= len(piece := self._vocabulary.token_bytes[self._tokens[first]]):
            at -= len(piece)
            first += 1
        return self._with_lead(piece[:at], self._tokens[first:])

    def _from_end(self, last: bytes, end: int) -> GrammarConstraint:
        """A grammar of what follows the trigger, which ends after `end` bytes of the last token."""
        after = self._with_lead(last[:end], self._tokens[-1:], WHITE) if end < len(last) else None
        return after or GrammarConstraint(self._grammar, self._vocabulary, lead=f"/{WHITE}/?")

    def _with_lead(self, lead: bytes, tokens: list[int], white: str = "") -> GrammarConstraint | None:
        """The grammar after a text that is in its first token too; None where the tokens don't fit it."""
        try:
            text = text_literal(lead.decode()) if lead else ""
        except UnicodeDecodeError:
            return None
        made = GrammarConstraint(self._grammar, self._vocabulary, lead=f"{text} /{white}/?" if white else text)
        return made if made.matcher.try_consume_tokens(tokens) == len(tokens) else None
