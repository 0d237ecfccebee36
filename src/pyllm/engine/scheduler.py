"""Scheduling: the sequences of the next step, their tokens, and their pages."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from pyllm.cache import PagePool, StatePool
from pyllm.config import ExecutionOptions
from pyllm.engine.pace import Pace
from pyllm.engine.sequence import Sequence, common_tokens
from pyllm.engine.speculation import Speculation
from pyllm.engine.states import States
from pyllm.records import dataclass

_WHOLE = 3
"""Tokens that can be cut so that no part is one token alone, and a rest of which can be."""
_by_rank = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class Load:
    """How much an engine has to do."""

    n_running: int
    """Sequences that are computed."""
    n_waiting: int
    kv_share: float
    """Share of the KV cache's pages that sequences hold; 1 is all."""


class Scheduler:
    """Running and waiting sequences, both in order of arrival.

    Each step takes one token of every sequence in decode, then prompts, oldest first, until the step is full. A
    sequence starts when there are pages for all its known tokens; it waits where an older one is computing a common
    prefix. When pages run out, the youngest is preempted: it gives up its pages and is computed again later.
    Back-pressured sequences are preempted first.

    Where steps can be paused (`side`: what fits into one while another is paused), and an answer is followed as it
    comes, prompts are apart: `schedule` gives what generates, and `schedule_prompts` a step of prompts alone, which is
    under way while further steps are scheduled.
    """

    def __init__(
        self,
        pool: PagePool,
        options: ExecutionOptions,
        side: ExecutionOptions | None = None,
        states: StatePool | None = None,
        speculation: Speculation | None = None,
        whole: bool = False,
    ) -> None:
        """`states`: slots for a model with recurrent states. `speculation`: adds drafts. `whole`: a sequence is never
        cut; it is computed in a step that has room for all of it."""
        self.pool = pool
        self._side = side
        self._speculation = speculation
        self._whole = whole
        self._max_drafts = options.max_drafts
        self.max_tokens = options.max_tokens
        self.max_rows = options.max_rows
        self.max_seqs = min(options.max_seqs, options.max_rows, options.max_tokens)
        self.states = None if states is None else States(states, pool.page_size, self.max_seqs)
        self.pace = Pace()
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.under_way: list[Sequence] = []
        """The step of prompts alone, until it is done or dropped; emptied when one of them gives up its pages."""
        self.apart = False
        """Whether prompts are apart from the step scheduled last."""

    def add(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_by_rank)

    def remove(self, seq: Sequence) -> None:
        """Remove a sequence and release its pages."""
        if seq in self.running:
            self._stop(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)

    def schedule(self) -> list[Sequence]:
        """The next step: sequences with their `n_step` tokens and `n_rows` output rows; decode comes first."""
        steps: list[Sequence] = []
        forced: list[Sequence] = []
        prompts: list[Sequence] = []
        for seq in self.running.copy():
            if not seq.running or seq.back_pressured or seq in self.under_way or not self._grow(seq):
                continue
            if _is_prompt(seq):
                prompts.append(seq)
            elif seq.remaining == 1 and seq.generates:
                seq.n_step, seq.n_rows, seq.n_draft = 1, seq.rows_of(1), 0
                steps.append(seq)
            else:
                forced.append(seq)
        followed = any(seq.consumer.paced for seq in chain(steps, forced))
        more = bool(prompts or self.waiting)
        self.apart = self._side is not None and (bool(self.under_way) or (followed and more))
        tokens, rows = self.max_tokens, self.max_rows
        if self._side and self.apart:
            tokens, rows = self._side.max_tokens, self._side.max_rows
        # Forced tokens of an answer are few, and its reader waits for them as for any other.
        tokens, rows = tokens - len(steps), rows - sum(seq.n_rows for seq in steps)
        answers = steps.copy()
        tokens, rows = self._add(steps, iter(forced), tokens, rows)
        n_drafts = self._draft(answers, min(tokens, rows))
        tokens, rows = tokens - n_drafts, rows - n_drafts
        if more and not self.apart:
            if followed:
                tokens = min(tokens, self.pace.limit(len(steps) + n_drafts))
            self._add(steps, chain(prompts, self._admitted()), tokens, rows)
        if self.states:
            self.states.plan(steps, len(self.running))
        return steps

    def schedule_prompts(self, tokens: int) -> list[Sequence]:
        """A step of prompts alone, of at most so many tokens, which is under way from now on."""
        steps: list[Sequence] = []
        prompts = (
            seq
            for seq in self.running.copy()
            if seq.running and not seq.back_pressured and _is_prompt(seq) and self._grow(seq)
        )
        self._add(steps, chain(prompts, self._admitted()), min(tokens, self.max_tokens), self.max_rows)
        self.under_way = steps
        if self.states:
            self.states.plan(steps, len(self.running))
        return steps

    def abandon(self, steps: list[Sequence]) -> None:
        """Forget a step that was not computed; its sequences are scheduled anew."""
        if steps is self.under_way:
            self.under_way = []
        if self.states:
            for seq in steps:
                self.states.abandon(seq)

    def commit(self, seq: Sequence) -> None:
        """Record that a sequence's tokens of the step are computed, drafts apart; publishes full pages."""
        seq.n_computed += seq.n_step - seq.n_draft
        seq.n_drafted += seq.n_draft
        self._publish(seq)
        if self.states:
            self.states.commit(seq)

    def accept(self, seq: Sequence) -> None:
        """Record that more tokens are computed: drafts that were right."""
        self._publish(seq)
        if self.states:
            self.states.advance(seq)

    def settle(self, seq: Sequence) -> None:
        """Record that no more drafts of a step will be right."""
        if self.states and seq.saves:
            self.accept(seq)
            self.states.abandon(seq)

    def _publish(self, seq: Sequence) -> None:
        """Publish full pages of computed tokens."""
        if not seq.consumer.shares:
            return
        size = self.pool.page_size
        while (seq.n_published + 1) * size <= seq.n_computed:
            i = seq.n_published
            page = self.pool.publish(seq.pages[i], seq.parent, seq.tokens[i * size : (i + 1) * size])
            if page != seq.pages[i]:
                seq.pages[i] = page
                seq.n_listed = min(seq.n_listed, i)
            seq.n_published = i + 1

    def shift(self, seq: Sequence, n_keep: int) -> None:
        """Drop the older half of a sequence's tokens after the first `n_keep`; the rest is computed again."""
        n_keep = min(n_keep, seq.n_tokens - 2)
        n_forget = (seq.n_tokens - n_keep) // 2
        rest = seq.tokens[n_keep + n_forget : seq.n_tokens].copy()
        seq.n_tokens = seq.n_given = n_keep + len(rest)
        seq.next_row = seq.n_tokens - 1
        seq.tokens[n_keep : seq.n_tokens] = rest
        self._forget(seq, n_keep // self.pool.page_size)

    def clear(self) -> None:
        """Forget all sequences, and the content of all pages."""
        self.pool.clear()
        if self.states:
            self.states.pool.clear()
        self.running.clear()
        self.waiting.clear()
        self.under_way = []

    def check(self) -> None:
        """Raise AssertionError where internal state is inconsistent."""
        size = self.pool.page_size
        self.pool.check([seq.pages for seq in self.running])
        if self.states:
            self.states.check(self.running)
        assert len(self.running) <= self.max_seqs, "more sequences are running than fit into a step"
        for group in (self.running, self.waiting):
            assert group == sorted(group, key=_by_rank), "sequences are not in order of arrival"
        for seq in self.running:
            assert seq.running
            assert seq.n_published * size <= seq.n_computed < seq.n_tokens, "computed tokens do not add up"
            assert seq.n_computed <= len(seq.pages) * size, "a computed token is in no page"
        assert all(seq in self.running for seq in self.under_way), "what is under way holds no pages"
        for seq in self.waiting:
            assert not seq.running
            assert not seq.pages, "a waiting sequence holds pages"
            assert seq.n_computed == 0

    def _add(self, steps: list[Sequence], sequences: Iterator[Sequence], tokens: int, rows: int) -> tuple[int, int]:
        """Add as much of sequences as fits into so many tokens and rows; returns what is left of both."""
        while tokens > 0 and (seq := next(sequences, None)) is not None:
            n = self._cut(seq, min(seq.remaining, tokens, seq.most(rows)))
            if n > 0:
                seq.n_step, seq.n_rows = n, seq.rows_of(n)
                steps.append(seq)
                tokens -= n
                rows -= seq.n_rows
        return tokens, rows

    def _draft(self, answers: list[Sequence], most: int) -> int:
        """Add drafts to the answers of a step, at most so many; returns their number."""
        if self._speculation is None or not answers:
            return 0
        n = 0
        most = min(most, self._max_drafts, self.states.room(len(self.running)) if self.states else most)
        for seq, draft in self._speculation.propose(answers, most, self._room):
            seq.guess(draft)
            n += len(draft)
        return n

    def _room(self, seq: Sequence, n: int) -> int:
        """How many of n drafts its pages hold, with more of those that nobody needs."""
        size = self.pool.page_size
        wanted = -(-(seq.n_tokens + n) // size) - len(seq.pages)
        if wanted > 0:
            seq.pages += self.pool.allocate(min(wanted, max(0, self.pool.n_available - len(self.running))))
        return min(n, len(seq.pages) * size - seq.n_tokens)

    def _cut(self, seq: Sequence, n: int) -> int:
        """At most n of a sequence's next tokens, without cutting one off alone: a backend may compute a single token in
        another way than several. Whole sequences are not cut at all."""
        if self._whole:
            return n if n == seq.remaining else 0
        room = min(self.max_tokens - len(self.running), seq.most(self.max_rows - len(self.running)))
        if room < min(_WHOLE, seq.remaining):
            return n  # steps so small cut anywhere
        rest = seq.remaining - n
        if n == 1 and rest:
            return 0
        return n if rest != 1 else n - 1 if n > 2 else 0

    def _admitted(self) -> Iterator[Sequence]:
        """Start waiting sequences one by one, on demand, while there is room."""
        for seq in self.waiting.copy():
            if len(self.running) >= self.max_seqs and not self._preempt_back_pressured():
                return
            if seq.back_pressured or self._follows(seq):
                continue
            if not self._start(seq):
                return
            yield seq

    def _start(self, seq: Sequence) -> bool:
        """Give a waiting sequence its pages and start it; False where there are too few pages."""
        pool = self.pool
        size = pool.page_size
        while True:
            # Tokens whose rows are wanted are always computed, the last among them; no shared page is ever written.
            shared = pool.match(seq.tokens[: seq.n_tokens], seq.next_row // size) if seq.consumer.shares else []
            n_matched = len(shared)
            if self.states:
                del shared[self.states.begin(seq, shared) :]
            wanted = -(-seq.n_held // size) - len(shared)
            # Running sequences may soon need a page each.
            spare = pool.n_available - sum(map(pool.is_idle, shared)) - len(self.running)
            if wanted <= spare:
                break
            if not self._preempt_back_pressured():
                return False
        pool.acquire(shared)
        seq.pages = shared
        seq.n_published = len(shared)
        seq.n_computed = len(shared) * size
        if self.states:
            self.states.start(seq)
        seq.pages += pool.allocate(wanted)
        if seq.started_at is None:
            seq.n_cached, seq.n_matched = seq.n_computed, n_matched * size
        seq.running = True
        seq.leader = None
        self.waiting.remove(seq)
        insort(self.running, seq, key=_by_rank)
        return True

    def _follows(self, seq: Sequence) -> bool:
        """Whether a running prompt will soon publish pages that this sequence needs; then it waits for them."""
        if not seq.consumer.shares:
            return False
        if (leader := seq.leader) is not None and _leads(leader, seq.common):
            return True
        size = self.pool.page_size
        seq.leader = None
        for other in self.running:
            if other.consumer.shares and other.remaining > 1:
                common = min(common_tokens(other, seq), seq.next_row) // size
                if _leads(other, common):
                    seq.leader, seq.common = other, common
                    if self.states:
                        self.states.want(other, common)
                    return True
        return False

    def _grow(self, seq: Sequence) -> bool:
        """Allocate pages for all known tokens of a running sequence; False where it was preempted instead."""
        wanted = -(-seq.n_held // self.pool.page_size) - len(seq.pages)
        if wanted <= 0:
            return True
        while self.pool.n_available < wanted:
            # Only younger sequences are preempted, which are not in the step yet, or this one itself.
            if not self._preempt_back_pressured():
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is seq:
                    return False
        seq.pages += self.pool.allocate(wanted)
        return True

    def _preempt_back_pressured(self) -> bool:
        for seq in reversed(self.running):
            if seq.back_pressured:
                self._preempt(seq)
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        self._stop(seq)
        self.add(seq)

    def _stop(self, seq: Sequence) -> None:
        if seq in self.under_way:
            self.abandon(self.under_way)
        self.running.remove(seq)
        seq.running = False
        self._forget(seq, 0)

    def _forget(self, seq: Sequence, n_pages: int) -> None:
        """Release all pages but the first, which are published, and with recurrent states those behind the last
        checkpoint."""
        n_pages = min(n_pages, seq.n_published)
        if self.states:
            n_pages = self.states.go_back(seq, n_pages)
        self.pool.release(seq.pages[n_pages:])
        del seq.pages[n_pages:]
        seq.n_published = n_pages
        seq.n_computed = n_pages * self.pool.page_size
        seq.n_draft = 0
        seq.row = -1
        seq.encoded = False


def _is_prompt(seq: Sequence) -> bool:
    """Whether its next tokens are a prompt's; else it made them itself, or they follow from what it made."""
    return seq.n_computed < seq.n_prompt and not (seq.remaining == 1 and seq.generates)


def _leads(leader: Sequence, common: int) -> bool:
    """Whether a sequence will soon publish more of the first `common` pages."""
    return leader.running and not leader.back_pressured and leader.n_published < common and leader.remaining > 1
