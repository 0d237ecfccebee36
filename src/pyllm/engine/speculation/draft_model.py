"""Guesses by another, smaller model of the same vocabulary, which reads along."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Executable
from pyllm.cache import ROOT, PagePool
from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.drafter import Drafter, Offer
from pyllm.engine.speculation.lengths import StepTimes
from pyllm.engine.speculation.likely import likely, want

MOST = 8
"""Tokens of a draft at most."""
_CHUNK = 64
"""Tokens that it reads between two steps beside answers that are followed."""


class Shadow:
    """What the model has read of a sequence: the KV of the first n_computed of `tokens`, in its own pages."""

    __slots__ = ("n_computed", "n_published", "pages", "seq", "tokens")

    def __init__(self, seq: Sequence, pages: list[int], page_size: int) -> None:
        """`pages`: shared ones that hold the beginning."""
        self.seq = seq
        self.tokens = np.zeros(len(seq.tokens) + MOST, np.int32)
        self.pages = pages
        self.n_published = len(pages)
        self.n_computed = self.n_published * page_size
        self.tokens[: self.n_computed] = seq.tokens[: self.n_computed]


class DraftModel(Drafter):
    """Its most likely tokens, one after another, of all sequences together; as long as it is sure of them."""

    priors = (0.75,)
    is_free = False

    def __init__(self, executable: Executable, n_vocab: int, close: Callable[[], None]) -> None:
        """`n_vocab`: tokens that both models have. `close` frees the model, the executable included."""
        options = executable.options
        self.executable = executable
        self._n_vocab = n_vocab
        self._close = close
        self._batch = Batch(options)
        self.pool = PagePool(options.n_pages, options.page_size)
        self._shadows: dict[int, Shadow] = {}
        self._times = StepTimes(options.max_seqs)

    def offer(self, seq: Sequence) -> Offer:
        return Offer(0, MOST)

    def seconds(self, n_seqs: int) -> float:
        return self._times.seconds(n_seqs)

    def draft(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        self._release_ended()
        shadows = [self._shadow(seq) for seq, _ in wanted]
        drafts: list[list[int]] = [[] for _ in wanted]
        going = self._read(wanted, shadows)
        for i, token, _ in going:
            drafts[i].append(token)  # the first one in any case, so that it is known whether it is right
        left = [i for i, _, sure in going if sure]
        while left := [i for i in left if len(drafts[i]) < wanted[i][1] and self._has_room(shadows[i], drafts[i])]:
            began = perf_counter()
            self._batch.clear()
            for i in left:
                self._add(shadows[i], drafts[i][-1:])
            found = self._run()
            self._times.note(len(left), perf_counter() - began)
            for i, (token, sure) in zip(left.copy(), found, strict=True):
                if sure:
                    drafts[i].append(token)
                else:
                    left.remove(i)
        return drafts

    def memory(self) -> dict[str, int]:
        return self.executable.memory()

    def close(self) -> None:
        self._shadows.clear()
        self._close()

    def _read(self, wanted: Many[tuple[Sequence, int]], shadows: list[Shadow]) -> list[tuple[int, int, bool]]:
        """Read what is new of sequences; gives the next token of each that is read to its end, and whether it is
        likely."""
        options = self.executable.options
        room = options.max_tokens
        if any(seq.consumer.paced for seq, _ in wanted):
            room = min(room, max(_CHUNK, len(wanted)))
        found: list[tuple[int, int, bool]] = []
        few = sorted(range(len(wanted)), key=lambda i: wanted[i][0].n_tokens - shadows[i].n_computed)
        self._batch.clear()
        whole: list[int] = []
        for i in few:
            seq, shadow = wanted[i][0], shadows[i]
            n = min(seq.n_tokens - shadow.n_computed, room - self._batch.n_tokens)
            if n <= 0 or not self._grow(shadow, shadow.n_computed + n):
                continue
            ends = shadow.n_computed + n == seq.n_tokens
            self._add(shadow, seq.tokens[shadow.n_computed : shadow.n_computed + n], want=ends)
            if ends:
                whole.append(i)
        if not self._batch.n_tokens:
            return found
        began, n_tokens = perf_counter(), self._batch.n_tokens
        tokens = self._run()
        if n_tokens <= 2 * len(whole):
            self._times.note(len(whole), perf_counter() - began)
        for i in few:
            self._publish(shadows[i], wanted[i][0])
        return [(i, token, sure) for i, (token, sure) in zip(whole, tokens, strict=True)]

    def _add(self, shadow: Shadow, tokens: Many[int] | NDArray[np.int32], want: bool = True) -> None:
        n, at, batch = len(tokens), shadow.n_computed, self._batch
        generated = n == 1 and batch.n_generated == batch.n_tokens
        batch.add(tokens, at, shadow.pages, "last" if want else "none", generated)
        shadow.tokens[at : at + n] = tokens
        shadow.n_computed = at + n

    def _run(self) -> list[tuple[int, bool]]:
        """Compute the batch: each row's most likely token, and whether it is likely."""
        (rows,) = self.executable.run_all(self._batch, [want(self.executable)])
        return likely(rows, self._batch.n_rows, self._n_vocab)

    def _shadow(self, seq: Sequence) -> Shadow:
        """What is known of a sequence, without what it doesn't hold (any more)."""
        shadow, size = self._shadows.get(seq.number), self.pool.page_size
        if shadow is None:
            # The last token is always read: its row is wanted.
            pages = self.pool.match(seq.tokens[: seq.n_tokens], (seq.n_tokens - 1) // size)
            self.pool.acquire(pages)
            shadow = self._shadows[seq.number] = Shadow(seq, pages, size)
        n = min(shadow.n_computed, seq.n_tokens - 1)
        wrong = np.flatnonzero(shadow.tokens[:n] != seq.tokens[:n])
        shadow.n_computed = int(wrong[0]) if len(wrong) else n
        if shadow.n_computed < shadow.n_published * size:  # the context was shifted
            self._cut(shadow, shadow.n_computed // size)
        return shadow

    def _cut(self, shadow: Shadow, n_pages: int) -> None:
        self.pool.release(shadow.pages[n_pages:])
        del shadow.pages[n_pages:]
        shadow.n_published = min(shadow.n_published, n_pages)
        shadow.n_computed = min(shadow.n_computed, n_pages * self.pool.page_size)

    def _grow(self, shadow: Shadow, n: int) -> bool:
        """Have pages for n tokens; False where there are too few."""
        wanted = -(-n // self.pool.page_size) - len(shadow.pages)
        if wanted > 0:
            if wanted > self.pool.n_available:
                return False
            shadow.pages += self.pool.allocate(wanted)
        return True

    def _has_room(self, shadow: Shadow, draft: list[int]) -> bool:
        """Whether there is a place for the KV of a draft's last token."""
        n = shadow.n_computed + 1
        return n < len(shadow.tokens) and n <= self.pool.n_pages * self.pool.page_size and self._grow(shadow, n)

    def _publish(self, shadow: Shadow, seq: Sequence) -> None:
        """Publish full pages of tokens that are the sequence's, for prompts that begin alike."""
        size = self.pool.page_size
        while (shadow.n_published + 1) * size <= min(shadow.n_computed, seq.n_tokens):
            i = shadow.n_published
            parent = shadow.pages[i - 1] if i else ROOT
            shadow.pages[i] = self.pool.publish(shadow.pages[i], parent, seq.tokens[i * size : (i + 1) * size])
            shadow.n_published = i + 1

    def _release_ended(self) -> None:
        """Give up the pages of sequences that don't run any more; published ones may be found again."""
        for number, shadow in list(self._shadows.items()):
            if not shadow.seq.running:
                self.pool.release(shadow.pages)
                del self._shadows[number]
