"""The engine: schedule → run → sample → commit, for all requests at once."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Candidates, Executable
from pyllm.cache import PagePool
from pyllm.engine.filling import BatchWriter
from pyllm.engine.generation import Generation, again
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest, check_request, check_tokens
from pyllm.engine.rows import Rows, row, wanted
from pyllm.engine.scheduler import Scheduler
from pyllm.engine.sequence import Answer, RowCallback, Scoring, Sequence, StreamedScoring
from pyllm.engine.turn import Turn
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError, PyllmError, RequestError
from pyllm.sampling import Largest, Sampler, logprobs


class Engine:
    """Runs many requests at a time on an executable, with prefix sharing.

    It has no thread of its own: a thread that waits for a result computes the next step, for all requests, when it
    holds the turn; several threads may wait at once. All methods may be called from any thread. `lock` holds the turn:
    within a `with` block no other thread computes.
    """

    def __init__(self, executable: Executable, *, n_ctx: int, n_vocab: int) -> None:
        """`n_ctx`: most tokens of one sequence; limited by the executable's pages."""
        options = executable.options
        self.executable = executable
        self.n_vocab = n_vocab
        self.n_ctx = min(n_ctx, options.n_pages * options.page_size)
        self.pool = PagePool(options.n_pages, options.page_size)
        self.scheduler = Scheduler(self.pool, options)
        self.lock = Turn()
        self._writer = BatchWriter(options)
        self._numbers = itertools.count()
        # Any thread may append to these; the thread with the turn admits or releases them.
        self._arrived: deque[Sequence] = deque()
        self._dropped: deque[Sequence] = deque()
        self._live: dict[int, Sequence] = {}
        self._n_hidden = 0
        self._last_hidden = False
        self._in_run: list[Sequence] | None = None
        self._stopped = False
        """Whether the engine itself interrupted the step."""
        self._intact = True
        """Whether internal state is consistent: False while it changes, and after an interrupt then, until
        `_receive`."""
        self._closed = False

    def submit(self, request: GenerationRequest) -> Generation:
        """Admit a request; it runs while any request's tokens are asked for.

        Raises RequestError, ContextFullError (the prompt alone is too long), ClosedError.
        """
        self._check_open()
        self._check_head()
        check_request(request, self.n_ctx)
        tokens = check_tokens(request.tokens, self.n_ctx, self.n_vocab)
        sampler = Sampler(request.sampling, self.n_vocab)
        seq = Answer(next(self._numbers), tokens, request, sampler, self.n_ctx)
        if seq.n_most == 0:
            seq.finish("length")
        else:
            self._arrived.append(seq)
        return Generation(seq, self._advance, self._drop)

    def logits(self, tokens: Many[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 [n_tokens, n_vocab]: row i are the logits of the token after tokens[i]. Raises as `iter_logits`."""
        return self._all_rows(tokens, hidden=False)

    def iter_logits(self, tokens: Many[int] | NDArray[np.integer]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in blocks of one step each, [at most max_rows, n_vocab], computed on demand.

        Raises RequestError, ContextFullError, ClosedError; BackendError while iterating.
        """
        return self._blocks(self._scoring(tokens, hidden=False))

    def score(
        self,
        sequences: Iterable[tuple[Many[int] | NDArray[np.integer], RowCallback]],
        *,
        first: int = 0,
    ) -> Iterator[int]:
        """Score sequences side by side; each one's `take` gets its logits, from token `first` on, block by block.

        Blocks are not copied: `take` is called by the computing thread while it holds the turn, and must not keep them.
        Yields the number of each sequence when it is done, in order. Raises as `iter_logits`, and what `take` raises.
        """
        waiting, live = enumerate(sequences), deque[tuple[int, StreamedScoring]]()
        try:
            while True:
                # One more than fills a step, so that a step never has room left for the next sequence.
                while not live or len(live) < self._n_side(live[0][1]):
                    number, (tokens, take) = next(waiting, (-1, ((), None)))
                    if take is None:
                        break
                    live.append((number, self._streamed_scoring(tokens, first, take)))
                    self._arrived.append(live[-1][1])
                if not live:
                    return
                number, seq = live[0]
                while seq.finish_reason is None:
                    self._advance(seq)
                if seq.error is not None:
                    raise again(seq.error)
                live.popleft()
                yield number
        finally:
            for _, seq in live:
                if seq.finish_reason is None:
                    self._drop(seq)

    def hidden(self, tokens: Many[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 [n_tokens, n_embd]: each token's final hidden state, normed. Raises as `iter_logits`."""
        return self._all_rows(tokens, hidden=True)

    def close(self) -> None:
        """Free everything, the executable included. Running and later requests get a ClosedError."""
        self._closed = True
        self._stop_run()
        with self.lock:
            self._receive()
            self._end_all()
            self._writer.forget()
            self._intact = True
            self.executable.close()

    def check(self) -> None:
        """Raise AssertionError where the engine's internal state is inconsistent."""
        with self.lock:
            self._receive()
            self._intact = True
            self.scheduler.check()
            assert {*self.scheduler.running, *self.scheduler.waiting} == set(self._live.values())

    # What consumers call.

    def _advance(self, seq: Sequence) -> None:
        """Compute one step, or wait while another thread does; returns when this sequence may have output."""
        turn = self.lock
        me = threading.get_ident()
        held = turn.owner == me
        try:
            if held or turn.claim(me, lambda: seq.ready):
                self._step(seq)
        finally:
            if turn.owner == me and not held:
                turn.owner = None
                turn.wake()
        if self._dropped:
            self._settle()

    def _drop(self, seq: Sequence) -> None:
        """Cancel a sequence. Finalizers call this too, at any point."""
        self._dropped.append(seq)
        seq.cancelled = True
        seq.outputs.clear()
        self._settle()
        self._stop_run()

    def _settle(self) -> None:
        """Release cancelled sequences, unless another thread holds the turn: it releases them afterwards."""
        me = threading.get_ident()
        turn = self.lock
        while self._dropped and turn.try_claim(me):
            try:
                self._receive()
                self._intact = True
            finally:
                turn.owner = None
                turn.wake()

    def _stop_run(self) -> None:
        """Interrupt the running step if no consumer wants its results."""
        turn = self.lock
        with turn.changed:
            steps = self._in_run
            if steps is not None and (self._closed or all(seq.cancelled for seq in steps)):
                self._stopped = True
                self.executable.interrupt()
            turn.changed.notify_all()

    def _check_head(self) -> None:
        if self.executable.program.logits is None:
            raise RequestError("the model has no output head, so it gives embeddings and no text; use embed()")

    def _scoring(self, tokens: Many[int] | NDArray[np.integer], hidden: bool) -> Scoring:
        self._check_open()
        if not hidden:
            self._check_head()
        ids = check_tokens(tokens, self.n_ctx, self.n_vocab)
        return Scoring(next(self._numbers), ids, hidden)

    def _streamed_scoring(
        self, tokens: Many[int] | NDArray[np.integer], first: int, take: RowCallback
    ) -> StreamedScoring:
        self._check_open()
        self._check_head()
        ids = check_tokens(tokens, self.n_ctx, self.n_vocab)
        if not 0 <= first < len(ids):
            raise RequestError(f"rows from token {first} on are wanted of {len(ids)} tokens")
        return StreamedScoring(next(self._numbers), ids, first, take)

    def _n_side(self, seq: Sequence) -> int:
        """Number of sequences of this length computed side by side."""
        options = self.executable.options
        fit = options.n_pages // -(-seq.n_tokens // options.page_size)
        return max(1, min(options.max_seqs, fit, 1 + -(-options.max_tokens // seq.n_tokens)))

    def _blocks(self, seq: Scoring) -> Iterator[NDArray[np.float32]]:
        self._arrived.append(seq)
        given = 0
        try:
            while given < seq.n_tokens:
                seq.wanted = not seq.outputs
                while not seq.outputs:
                    if seq.error is not None:
                        raise again(seq.error)
                    self._advance(seq)
                block = seq.outputs.popleft()
                given += len(block)
                yield block
        finally:
            if seq.finish_reason is None:
                self._drop(seq)

    def _all_rows(self, tokens: Many[int] | NDArray[np.integer], hidden: bool) -> NDArray[np.float32]:
        seq = self._scoring(tokens, hidden)
        rows: NDArray[np.float32] | None = None
        at = 0
        for block in self._blocks(seq):
            if rows is None:
                rows = np.empty((seq.n_tokens, block.shape[1]), np.float32)
            rows[at : at + len(block)] = block
            at += len(block)
        assert rows is not None
        return rows

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model was closed")

    # Only for the thread that holds the turn.

    def _step(self, own: Sequence) -> None:
        self._receive()
        if self._closed:
            self._end_all()
        if not own.ready:
            steps = self._schedule()
            rows = self._run(self._writer.write(steps), steps)
            if rows is not None:
                self._commit(steps, rows)
        self._intact = True

    def _receive(self) -> None:
        """Admit new sequences and release cancelled ones; idempotent if interrupted."""
        if not self._intact:
            self._rebuild()
        self._intact = False
        while self._arrived:
            seq = self._arrived[0]
            if seq.number not in self._live:
                self._live[seq.number] = seq
                self._n_hidden += seq.hidden
                self.scheduler.add(seq)
            self._arrived.popleft()
        while self._dropped:
            self._finish(self._dropped[0], "cancelled")
            self._dropped.popleft()

    def _schedule(self) -> list[Sequence]:
        if not self._n_hidden:
            steps = self.scheduler.schedule()
        else:
            hidden = not self._last_hidden
            if not (steps := self.scheduler.schedule(hidden)):
                hidden = not hidden
                steps = self.scheduler.schedule(hidden)
            self._last_hidden = hidden
        if not steps:
            raise RuntimeError("nothing can run, yet a sequence is waited for")
        now = perf_counter()
        for seq in steps:
            if seq.started_at is None:
                seq.started_at = now
        return steps

    def _run(self, batch: Batch, steps: list[Sequence]) -> Rows | None:
        """Run a step; returns its rows, or None where it failed or was stopped for lack of consumers.

        State changes only after success, so an exception leaves nothing to undo.
        """
        changed = self.lock.changed
        with changed:
            self._stopped = False
            self._in_run = steps
        self._intact = True
        rows: Rows | None = None
        try:
            rows = self.executable.run(batch, wanted(steps, self.executable.n_candidates))
        except KeyboardInterrupt:
            if not self._stopped:
                raise
        except Exception as error:
            self._intact = False
            for seq in steps:
                self._finish(seq, "cancelled", _as_ours(error))
        finally:
            with changed:
                self._in_run = None
        self._intact = False
        return rows

    def _commit(self, steps: list[Sequence], rows: Rows) -> None:
        r = 0
        for seq in steps:
            self.scheduler.commit(seq)
            n = seq.n_rows
            if n and not seq.cancelled:
                try:
                    if isinstance(seq, Answer):
                        self._extend(seq, row(rows, r))
                    elif isinstance(seq, Scoring):
                        assert not isinstance(rows, Candidates), "scoring takes all logits"
                        self._hand_out(seq, rows[r : r + n])
                except Exception as error:
                    self._finish(seq, "cancelled", _as_ours(error))
            r += n

    def _extend(self, seq: Answer, logits: NDArray[np.float32] | Largest) -> None:
        """Sample an answer's next token."""
        request = seq.request
        n = seq.n_tokens
        token = seq.sampler(logits, seq.tokens[:n])
        if seq.first_token_at is None:
            seq.first_token_at = perf_counter()
        if token in request.stop_ids:
            self._finish(seq, "stop")
            return
        if request.logprobs is None:
            made = GeneratedToken(token)
        else:
            made = GeneratedToken(token, *logprobs(logits, token, request.logprobs))
        seq.tokens[n] = token
        # An interrupt cannot come between these three statements: only the last one calls anything.
        seq.n_tokens = n + 1
        seq.n_generated += 1
        seq.outputs.append(made)
        self._end_or_shift(seq)

    def _end_or_shift(self, seq: Answer) -> None:
        if seq.n_generated == seq.n_most:
            self._finish(seq, "length")
        elif seq.n_tokens > seq.limit:
            self.scheduler.shift(seq, seq.request.n_keep)

    def _hand_out(self, seq: Scoring, rows: NDArray[np.float32]) -> None:
        if isinstance(seq, StreamedScoring):
            seq.take(seq.n_given, rows)
        else:
            # A copy: the next step, perhaps another thread's, overwrites the rows.
            seq.outputs.append(rows.copy())
        seq.n_given += len(rows)
        seq.wanted = False
        if seq.n_given == seq.n_tokens:
            self._finish(seq, "stop")

    def _finish(self, seq: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        if seq.finish_reason is None:
            seq.finish(reason, error)
        self.scheduler.remove(seq)
        if self._live.pop(seq.number, None) is not None:
            self._n_hidden -= seq.hidden

    def _end_all(self) -> None:
        for seq in list(self._live.values()):
            self._finish(seq, "cancelled", ClosedError("the model was closed"))

    def _rebuild(self) -> None:
        """Rebuild internal state after an interrupt while it changed: from the tokens, which are always right."""
        self._live = {n: seq for n, seq in self._live.items() if seq.finish_reason is None}
        self._n_hidden = sum(seq.hidden for seq in self._live.values())
        self.scheduler.rebuild(self._live.values())
        for seq in list(self._live.values()):
            if isinstance(seq, Answer) and seq.n_generated:
                self._end_or_shift(seq)
            elif isinstance(seq, Scoring) and seq.n_given == seq.n_tokens:
                self._finish(seq, "stop")


def _as_ours(error: Exception) -> PyllmError:
    if isinstance(error, PyllmError):
        return again(error)  # type: ignore[return-value]
    kind = OutOfMemoryError if isinstance(error, MemoryError) else BackendError
    ours = kind(f"the step failed: {error!r}")
    ours.__cause__ = error
    return ours
