"""Masks of a step's rows, computed by another thread while the step runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import BackendError, PyllmError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from pyllm.constraints.constraint import Constraint

_MAX_THREADS = 4


class Masks(NamedTuple):
    """What the rows of a step may become. int32 [n_rows, n_words]: bit i of word w of a row is token 32 w + i.

    Rows without a constraint have all bits set. `errors` has the error of a row whose constraint has no mask; its bits
    mean nothing, and its sequence ends with that error.
    """

    bits: NDArray[np.int32]
    errors: dict[int, PyllmError]


class MaskPool:
    """Computes masks beside a step. Belongs to one of an engine's lanes; the thread that steps calls it.

        pool.begin([seq.constraint for each output row of the step, in order])   # None: without
        rows = executable.run(batch, …)         # llguidance works without the GIL meanwhile
        masks = pool.get()                      # None where no row is constrained
        token = sampler(logits, seen, mask=masks.bits[row])
        seq.constraint.advance(token)           # then .finished, then .forced()

    Between `begin` and `get` nothing else may use the constraints. A step that fails or is interrupted needs its `get`
    (or the next `begin`, which waits for it) all the same.
    """

    def __init__(self, n_vocab: int) -> None:
        """`n_vocab`: length of a row of logits; tokens beyond a constraint's own vocabulary are forbidden by it."""
        self.n_words = -(-n_vocab // 32)
        self._bits = np.zeros((0, self.n_words), np.int32)
        self._running: Future[Masks] | None = None
        self._process = 0
        self._thread: ThreadPoolExecutor | None = None
        self._many: LLExecutor | None = None

    def begin(self, constraints: Sequence[Constraint | None], drafts: Sequence[int | None] = ()) -> None:
        """Start computing the masks of rows; returns at once.

        `drafts`: for each row None, or a token with which its constraint, the one of the row before, is advanced first;
        they are taken back in the end."""
        self._wait()
        ahead = {i: draft for i, draft in enumerate(drafts) if draft is not None}
        # What a draft begins may need a mask.
        rows = [(i, c) for i, c in enumerate(constraints) if c is not None and (i in ahead or not c.free)]
        if rows:
            self._running = self._worker().submit(self._fill, len(constraints), rows, ahead)

    def get(self) -> Masks | None:
        """The masks begun last, valid until the next `begin`. None where none was begun, or no row needs one."""
        return self._wait()

    def close(self) -> None:
        """End the thread."""
        self._wait()
        if self._thread is not None and self._process == os.getpid():
            self._thread.shutdown()
        self._thread = None

    def _wait(self) -> Masks | None:
        running, self._running = self._running, None
        if running is None or self._process != os.getpid():
            return None
        return running.result()

    def _worker(self) -> ThreadPoolExecutor:
        """The thread; another one in a process that was forked, where threads are gone."""
        if self._thread is None or self._process != os.getpid():
            self._process = os.getpid()
            self._thread = ThreadPoolExecutor(1, "pyllm-masks")
            self._many = None
        return self._thread

    def _fill(self, n_rows: int, rows: list[tuple[int, Constraint]], ahead: dict[int, int]) -> Masks:
        if len(self._bits) < n_rows:
            self._bits = np.zeros((n_rows, self.n_words), np.int32)
        bits = self._bits[:n_rows]
        bits.fill(-1)
        errors: dict[int, PyllmError] = {}
        alone = {i for d in ahead for i in (d - 1, d)}
        together = [
            (i, c.matcher) for i, c in rows if i not in alone and c.matcher is not None and c.n_words == self.n_words
        ]
        if len(together) > 1:
            self._fill_many(bits, together)
        else:
            together = []
        done = {i for i, _ in together}
        advanced: list[Constraint] = []
        for i, constraint in rows:
            try:
                if i in ahead:
                    constraint.advance(ahead[i])
                    advanced.append(constraint)
                if i in done:
                    constraint.check(bits[i])
                elif not constraint.free:
                    constraint.mask(bits[i])
            except PyllmError as error:
                errors[i] = error
            except BaseException as error:  # a panic of llguidance is no Exception; others' rows are not at fault
                errors[i] = BackendError(f"a mask could not be made; {type(error).__name__}")
        for constraint in advanced:
            with suppress(PyllmError):  # its next mask will tell
                constraint.rollback(1)
        return Masks(bits, errors)

    def _fill_many(self, bits: NDArray[np.int32], matchers: list[tuple[int, LLMatcher]]) -> None:
        if self._many is None:
            from llguidance import LLExecutor

            self._many = LLExecutor(min(_MAX_THREADS, max(1, (os.cpu_count() or 1) // 2)))
        rows = [(matcher, i) for i, matcher in matchers]
        self._many.unsafe_compute_mask_ptr(rows, bits.ctypes.data, self.n_words * 4, len(bits))
