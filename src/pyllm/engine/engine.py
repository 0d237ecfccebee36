"""The engine: schedule → run → sample → commit, for all requests at once."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from math import inf
from time import perf_counter
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Executable
from pyllm.cache import CacheFolder, PagePool, StatePool
from pyllm.engine import process, scoring
from pyllm.engine.admission import Admission
from pyllm.engine.answer import Answer
from pyllm.engine.encoding import Encoder
from pyllm.engine.generation import Generation, as_ours
from pyllm.engine.keeper import Keeper
from pyllm.engine.lanes import Lane
from pyllm.engine.pump import Pump
from pyllm.engine.request import FinishReason, GeneratedToken, GenerationRequest, check_request, check_tokens
from pyllm.engine.rows import SequenceRows
from pyllm.engine.scheduler import Load, Scheduler
from pyllm.engine.scoring import RowCallback
from pyllm.engine.sequence import Consumer, Sequence
from pyllm.engine.slices import Slices
from pyllm.engine.speculation import Drafter, Speculation
from pyllm.engine.transformer import Plain, Transformer
from pyllm.engine.wakes import Wakes
from pyllm.errors import ClosedError, RequestError
from pyllm.sampling import Sampler

T = TypeVar("T")
R = TypeVar("R")


class Engine:
    """Runs many requests at a time on an executable, with prefix sharing.

    A thread of its own computes while there is work. All methods may be called from any thread. After a fork, the child
    process starts a thread of its own; answers that were running stay with the parent.
    """

    def __init__(
        self,
        executable: Executable,
        *,
        n_ctx: int,
        n_vocab: int,
        max_waiting: int | None = None,
        drafters: Many[Drafter] = (),
        folder: CacheFolder | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """`n_ctx`: most tokens of one sequence; limited by the executable's pages. `max_waiting`: most requests that
        wait for others to end; None: any number. `drafters`: guess next tokens, which steps then verify; they are
        closed with the engine. `folder`: keeps the prefix cache beyond this process. `encoder`: reads prompts, after
        which answers begin with its start token; it is closed with the engine."""
        options = executable.options
        self.executable, self._encoder = executable, encoder
        self.n_vocab = n_vocab
        self.n_ctx = min(n_ctx, options.n_pages * options.page_size)
        self.pool = PagePool(options.n_pages, options.page_size)
        side = executable.side
        states = StatePool(options.n_slots, self.pool) if executable.program.slots else None
        self._speculation = Speculation(drafters) if drafters else None
        side_options = None if side is None else side.options
        self.scheduler = Scheduler(
            self.pool, options, side_options, states, self._speculation, executable.program.whole
        )
        self._lanes = [
            Lane(exe, n_vocab, i, self._speculation) for i, exe in enumerate((executable, side)) if exe is not None
        ]
        self._slices = Slices()
        self._admission = Admission(max_waiting)
        self._numbers = itertools.count()
        self._pump = Pump(self)
        self._keeper = Keeper(folder, self.pool, self.scheduler.states, executable, self._pump.wake)
        self._arrived: deque[Sequence] = deque()
        """Any thread may append."""
        self._live: dict[int, Sequence] = {}
        self._wakes = Wakes()
        """Readers with something to read, woken after each step."""
        self._gate = threading.RLock()  # re-entrant: a finalizer may come by here in the thread that holds it
        self._in_run: list[Sequence] | None = None
        self._idle = False
        """Whether there was nothing to compute, so that a reader who takes an item must wake the pump."""
        self._closed = False
        process.watch(self)

    @overload
    def submit(self, request: GenerationRequest) -> Generation[GeneratedToken]: ...
    @overload
    def submit(self, request: GenerationRequest, transformer: Transformer[T]) -> Generation[T]: ...
    def submit(self, request: GenerationRequest, transformer: Transformer[Any] | None = None) -> Generation[Any]:
        """Admit a request; it is computed from now on, up to `request.unread` items ahead of its reader.

        `transformer` turns tokens into the items that are read; without one, these are the tokens.

        Raises RequestError, ContextFullError (the prompt alone is too long), QueueFullError, ClosedError.
        """
        return self.submit_all([(request, transformer or Plain())])[0]

    def submit_all(self, requests: Iterable[tuple[GenerationRequest, Transformer[T]]]) -> list[Generation[T]]:
        """Admit several requests together, or none where one is refused. Raises as `submit`."""
        self._check_open()
        self._check_head()
        if self.executable.program.whole:
            raise RequestError(
                "tokens of this model see later ones, so it does not generate from left to right; logits() and embed() "
                "work"
            )
        made = [self._answer(request, transformer) for request, transformer in requests]
        scheduler = self.scheduler
        self._admission.check(len(made), self._n_waiting, scheduler.max_seqs - len(scheduler.running))
        # First, so that an interrupt drops them.
        generations: list[Generation[T]] = [Generation(seq, answer, self) for seq, answer in made]
        self.start(*(seq for seq, _ in made if seq.finish_reason is None))
        return generations

    def logits(self, tokens: Many[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 [n_tokens, n_vocab]: row i are the logits of the token after tokens[i]. Raises as `iter_logits`."""
        self._check_head()
        return scoring.all_rows(self, tokens, hidden=False)

    def iter_logits(self, tokens: Many[int] | NDArray[np.integer]) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` in blocks of one step each, [at most max_rows, n_vocab], computed on demand.

        Raises RequestError, ContextFullError, ClosedError; BackendError while iterating.
        """
        self._check_head()
        return scoring.blocks(self, tokens)

    def score(
        self,
        sequences: Iterable[tuple[Many[int] | NDArray[np.integer], RowCallback]],
        *,
        first: int = 0,
    ) -> Iterator[int]:
        """Score sequences side by side; each one's `take` gets its logits, from token `first` on, block by block.

        Blocks are not copied: `take` is called by the computing thread between two steps, and must not keep them.
        Yields the number of each sequence when it is done, in order. Raises as `iter_logits`, and what `take` raises.
        """
        self._check_head()
        return scoring.side_by_side(self, ((tokens, take, first) for tokens, take in sequences), hidden=False)

    def read_hidden(self, sequences: Iterable[scoring.Wanted]) -> Iterator[int]:
        """As `score`, of final hidden states, normed; each sequence says from which token on it wants them."""
        return scoring.side_by_side(self, sequences, hidden=True)

    def hidden(self, tokens: Many[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 [n_tokens, n_embd]: each token's final hidden state, normed. Raises as `iter_logits`."""
        return scoring.all_rows(self, tokens, hidden=True)

    def close(self) -> None:
        """Free everything, the executable included. Running and later requests get a ClosedError."""
        self._closed = True
        self.stop()
        self._pump.call(self._free)
        self._pump.end()

    def end(self) -> None:
        """End the thread for good, where the interpreter ends; what is running stops in the middle."""
        self._pump.end()

    def check(self) -> None:
        """Raise AssertionError where the engine's internal state is inconsistent."""
        self._pump.call(self._check)

    def call(self, function: Callable[[], R]) -> R:
        """Call a function in the computing thread between two steps, and wait for its result; a step that is paused
        goes on afterwards. Raises what it raises, and ClosedError."""
        self._check_open()
        results: list[R] = []
        self._pump.call(lambda: results.append(function()))
        return results[0]

    def between_steps(self, function: Callable[[], object]) -> None:
        """Call a function in the computing thread between two steps, and wait for it. Raises what it raises.

        A step that is paused is dropped before, and begun anew afterwards."""

        def call() -> None:
            self.scheduler.abandon(self.scheduler.under_way)
            function()

        self._pump.call(call)

    def memory_beside(self) -> list[dict[str, int]]:
        """Bytes that guessing and an encoder hold, each by purpose, as `Executable.memory` has them."""
        return [part.memory() for part in (self._speculation, self._encoder) if part is not None]

    def load(self) -> Load:
        """What there is to do, as of now; any thread may ask."""
        scheduler, pool = self.scheduler, self.pool
        return Load(len(scheduler.running), self._n_waiting, 1 - pool.n_available / pool.n_pages)

    # What readers call.

    def sequence_of(self, tokens: Many[int] | NDArray[np.integer], consumer: Consumer, first_row: int = 0) -> Sequence:
        """A sequence that is only read, for `start`. Raises RequestError, ContextFullError, ClosedError."""
        self._check_open()
        if self._encoder is not None:
            raise RequestError("an encoder reads this model's prompts, and gives no rows of them; use complete()")
        ids = check_tokens(tokens, self.n_ctx, self.n_vocab)
        if not 0 <= first_row < len(ids):
            raise RequestError(f"rows from token {first_row} on are wanted of {len(ids)} tokens")
        o = self.executable.options
        if self.executable.program.whole and (len(ids) > o.max_tokens or len(ids) - first_row > o.max_rows):
            raise RequestError(
                f"{len(ids)} tokens, and rows from token {first_row} on, do not fit into one step of {o.max_tokens} "
                f"tokens and {o.max_rows} rows, as this model needs them; a larger n_batch and n_rows would do"
            )
        return Sequence(next(self._numbers), ids, consumer, first_row)

    def start(self, *sequences: Sequence) -> None:
        """Admit sequences."""
        self._arrived.extend(sequences)
        if self._closed:  # in the meantime
            self._pump.call(self._free)
        elif sequences:
            self._pump.wake()

    @property
    def closed(self) -> bool:
        return self._closed

    def drop(self, seq: Sequence) -> None:
        """Cancel a sequence. Finalizers call this too, at any point."""
        seq.cancelled = seq.consumer.mailbox.closed = True
        self.stop()
        wakes = Wakes()
        seq.consumer.mailbox.notify(wakes)
        wakes.ring()
        self._pump.nudge()

    def resume(self) -> None:
        """A reader has taken something."""
        if self._idle:
            self._pump.wake()

    def stop(self) -> None:
        """Interrupt the running step if no consumer wants its results."""
        with self._gate:
            steps = self._in_run
            if steps is not None and (self._closed or self._pump.ended or all(seq.cancelled for seq in steps)):
                self.executable.interrupt()
                if self._encoder is not None:
                    self._encoder.interrupt()

    # Helpers of any thread.

    def _answer(self, request: GenerationRequest, transformer: Transformer[Any]) -> tuple[Sequence, Answer]:
        check_request(request, self.n_ctx)
        tokens = prompt = check_tokens(request.tokens, self.n_ctx, self.n_vocab)
        if self._encoder is not None:
            tokens = np.array([self._encoder.start], np.int32)
            if request.prompt_logprobs is not None:
                raise RequestError("an encoder reads the prompt, so its tokens have no probabilities (prompt_logprobs)")
        sampler = Sampler(request.sampling, self.n_vocab, request.vocabulary, request.stop_ids)
        answer = Answer(request, len(tokens), sampler, self.n_ctx, transformer)
        first_row = len(tokens) - 1 if request.prompt_logprobs is None else 0
        seq = Sequence(
            next(self._numbers),
            tokens,
            answer,
            first_row,
            capacity=answer.capacity,
            n_prefix=request.n_prefix,
            priority=request.priority,
            deadline=inf if request.timeout is None else perf_counter() + request.timeout,
        )
        if self._encoder is not None:
            seq.source, answer.shares = prompt, False
        if answer.n_most == 0 and request.prompt_logprobs is None:
            answer.finish("length")
            seq.finish("length")
        return seq, answer

    @property
    def _n_waiting(self) -> int:
        return len(self.scheduler.waiting) + len(self._arrived) + len(self._keeper.fetching)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the model was closed")

    def _check_head(self) -> None:
        if self.executable.program.logits is None:
            raise RequestError("the model has no output head, so it gives embeddings and no text; use embed()")

    # Only for the pump's thread.

    def step(self) -> bool:
        """Compute one step of all requests; False where there is nothing to compute. Raises nothing."""
        try:
            return self._step()
        except BaseException as error:
            # No request's fault: the state may be inconsistent, so all of them end, and pages hold nothing any more.
            self._end_all(as_ours(error))
            return True
        finally:
            self._wakes.ring()

    def _step(self) -> bool:
        self._idle = True
        began = perf_counter()
        self._receive()
        if self._closed:
            self._keeper.end()
            self._end_all(ClosedError("the model was closed"))
        for seq in self._live.values():
            seq.back_pressured = seq.consumer.back_pressured
        steps = self.scheduler.schedule()
        if not steps and not self.scheduler.apart:
            if not all(seq.back_pressured or seq in self._keeper.fetching for seq in self._live.values()):
                raise RuntimeError("nothing can run, yet a sequence is waited for")
            return self._keeper.keep() or self._keeper.has_found
        self._idle = False
        if steps:
            self._compute(steps)
        if self.scheduler.apart:
            self._read_prompts(steps)
        self._keeper.keep_beside(perf_counter() - began)
        return True

    def _compute(self, steps: list[Sequence]) -> None:
        """Compute a step at once, and commit it."""
        lane = self._lanes[self.scheduler.apart]
        if not self._encode(steps):
            return
        began = perf_counter()
        if found := self._run(steps, lambda: lane.run(steps)):
            self._commit(lane, steps, found)
            if self.scheduler.apart and self._slices.before:
                self._slices.note_step(perf_counter() - began)
            else:
                seconds = perf_counter() - began
                self.scheduler.pace.note(*lane.size, seconds)
                if self._speculation is not None:
                    self._speculation.note(*lane.size, seconds)

    def _read_prompts(self, beside: list[Sequence]) -> None:
        """Compute prompts for a slice of time between two steps; to the step's end, where nobody follows the answers
        beside."""
        scheduler, slices, lane = self.scheduler, self._slices, self._lanes[0]
        followed = any(seq.consumer.paced for seq in beside)
        seconds = slices.seconds(scheduler.pace.usual(self._lanes[1].size[0])) if followed else inf
        compute = lane.proceed if scheduler.under_way else lane.begin
        if seconds is None or not (prompts := scheduler.under_way or scheduler.schedule_prompts(slices.chunk)):
            return
        encoded = self._encode(prompts)
        began = perf_counter()
        found = self._run(prompts, lambda: compute(prompts, seconds)) if encoded else None
        if found == []:
            slices.note(perf_counter() - began)
            return
        scheduler.under_way = []
        if found:
            self._commit(lane, prompts, found)

    def _encode(self, steps: list[Sequence]) -> bool:
        """Have the encoder read what sequences of a step begin with; False where that failed, or was interrupted."""
        encoder, unread = self._encoder, [seq for seq in steps if seq.source is not None and not seq.encoded]
        if encoder is None or not unread:
            return True

        def read() -> list[SequenceRows]:
            for seq in unread:
                assert seq.source is not None
                encoder.read(seq.source, seq.pages)
                seq.encoded = True
            return []

        return self._run(steps, read) is not None

    def _receive(self) -> None:
        """Admit new sequences and release cancelled ones."""
        while self._arrived:
            seq = self._arrived.popleft()
            self._live[seq.number] = seq
            if not self._keeper.fetch(seq):
                self.scheduler.add(seq)
        for seq in self._keeper.receive(len(self.scheduler.running)):
            self.scheduler.add(seq)
        now = perf_counter()
        ended = [seq for seq in self._live.values() if seq.cancelled or seq.deadline <= now]
        # A paused step holds the pages of its sequences: it goes on while any of them is wanted.
        held = [] if all(seq in ended for seq in self.scheduler.under_way) else self.scheduler.under_way
        for seq in ended:
            if seq not in held:
                self._finish(seq, "cancelled" if seq.cancelled else "timeout")

    def _run(self, steps: list[Sequence], compute: Callable[[], list[SequenceRows]]) -> list[SequenceRows] | None:
        """Compute a step; returns its rows, or None where it failed, or was interrupted (it is then run again if
        wanted).

        State changes only after success, so an exception leaves nothing to undo.
        """
        with self._gate:
            self._in_run = steps
        try:
            if not self._closed and not all(seq.cancelled for seq in steps):
                return compute()
            self.scheduler.abandon(steps)
        except KeyboardInterrupt:
            self.scheduler.abandon(steps)
        except Exception as error:
            for seq in steps:
                self._finish(seq, "cancelled", as_ours(error))
        finally:
            with self._gate:
                self._in_run = None
        return None

    def _commit(self, lane: Lane, steps: list[Sequence], found: list[SequenceRows]) -> None:
        rows = list(zip(steps, found, strict=True))
        lane.choose(rows)
        for seq in steps:
            self.scheduler.commit(seq)
        while rows := [(seq, own.rest()) for seq, own in rows if own.n and not seq.cancelled and self._take(seq, own)]:
            lane.choose(rows, again=True)  # a draft was right, so its row is as good as the next step's

    def _take(self, seq: Sequence, rows: SequenceRows) -> bool:
        """Have a sequence take its rows; whether there is one more, of the draft that it just took."""
        try:
            reason = seq.consumer.take(seq, rows)
        except Exception as error:
            self._finish(seq, "cancelled", as_ours(error))
            return False
        if reason is not None:
            self._finish(seq, reason)
            return False
        if seq.row_at_hand:
            self.scheduler.accept(seq)
            return True
        self.scheduler.settle(seq)
        if seq.n_tokens > seq.consumer.limit:
            self.scheduler.shift(seq, seq.consumer.n_keep)
        seq.consumer.mailbox.notify(self._wakes)
        return False

    def _finish(self, seq: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        if seq.finish_reason is None:
            if error is None:
                seq.consumer.finish(reason)
            seq.finish(reason, error)
            self._admission.note_end()
        self.scheduler.remove(seq)
        self._keeper.forget(seq)
        self._live.pop(seq.number, None)
        seq.consumer.mailbox.notify(self._wakes)

    def _end_all(self, error: Exception) -> None:
        for seq in [*self._live.values(), *self._arrived]:
            if seq.finish_reason is None:
                seq.finish("cancelled", error)
            seq.consumer.mailbox.notify(self._wakes)
        self._live.clear()
        self._arrived.clear()
        self._keeper.fetching.clear()
        self.scheduler.clear()
        for lane in self._lanes:
            lane.forget()

    def _free(self) -> None:
        self._receive()
        self._keeper.end()
        self._end_all(ClosedError("the model was closed"))
        self._wakes.ring()
        for lane in self._lanes:
            lane.close()
        if self._speculation is not None:
            self._speculation.close()
        if self._encoder is not None:
            self._encoder.close()
        self.executable.close()

    def _check(self) -> None:
        self._receive()
        self.scheduler.check()
        scheduled = {*self.scheduler.running, *self.scheduler.waiting}
        assert scheduled | self._keeper.fetching == set(self._live.values())

    def after_fork(self) -> None:
        """Begin anew in a process that was forked: its parent's thread is not here, nor are those that wait for it."""
        self._pump = Pump(self)
        self._keeper.begin(self._pump.wake)
        self._gate = threading.RLock()
        self._in_run = None
        self._wakes = Wakes()
        self._end_all(ClosedError("the process was forked: its parent computes this answer"))
