"""An executable for tests of the engine: its logits depend on every token that is visible through the page tables.

It keeps each token in the page where the batch says; what a token sees is read back from there. So a wrong page, a
missed or a doubled token, an overwritten shared page: each gives other logits. With slots, a state is the tokens that
it comes from, which must be those before the sequence's next.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Crossing, Executable, Want
from pyllm.config import ExecutionOptions
from pyllm.engine import Engine, GeneratedToken, Generation, GenerationRequest
from pyllm.engine.transformer import Plain
from pyllm.program import SlotSpec, Value
from pyllm.testing.models import transformer
from pyllm.testing.splitting import SMALL

N_EMBD = 8
GARBAGE = -7


def expected_row(context: list[int] | NDArray[np.int32], n_vocab: int) -> NDArray[np.float32]:
    """Logits after a context."""
    digest = hashlib.blake2b(np.asarray(context, np.int32).tobytes(), digest_size=8).digest()
    return (
        np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).normal(size=n_vocab).astype(np.float32)
    )


def expected_greedy(prompt: list[int], n: int, n_vocab: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(expected_row(tokens, n_vocab).argmax()))
    return tokens[len(prompt) :]


PROGRAM = transformer(SMALL).program
"""What it says that it runs: a program with a head."""


RECURRENT = replace(PROGRAM, states=(*PROGRAM.states, SlotSpec((1,))))


class FakeExecutable(Executable):
    """Checks each batch and counts what it computes; `on_run` is called before each step and may raise.

    `generated` and `given` are the contexts of tokens that were marked as generated, and of all others: what a token
    becomes may depend on the mark, so it must depend on the token's own sequence alone.
    """

    def __init__(self, n_vocab: int = 50, **options: int) -> None:
        self.options = ExecutionOptions(**{"n_pages": 64, "page_size": 4, "max_seqs": 8, "max_tokens": 16, **options})
        self.n_vocab = n_vocab
        self.program = RECURRENT if self.options.n_slots else PROGRAM
        self.states: list[Any] = [GARBAGE] * self.options.n_slots
        self.store = np.full((self.options.n_pages, self.options.page_size), GARBAGE, np.int32)
        self.n_tokens = 0
        self.n_runs = 0
        self.sizes: list[tuple[int, int, int]] = []
        self.asked: list[tuple[str, ...]] = []
        self.generated: set[tuple[int, ...]] = set()
        self.given: set[tuple[int, ...]] = set()
        self.on_run: Callable[[Batch], None] = lambda batch: None
        self.stop = threading.Event()
        self.closed = 0
        self._running = threading.Lock()
        self.page_bytes = self.store[0].nbytes
        self.page_format = "fake"
        self.n_read = self.n_written = 0
        """Pages that were copied out and in."""

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> NoReturn:
        raise AssertionError("the engine runs whole programs")

    def run_all(self, batch: Batch, wants: Sequence[Want], given: Sequence[NDArray[np.float32]] = ()) -> list[Any]:
        assert not given
        assert self._running.acquire(blocking=False), "two threads run steps at once"
        try:
            return self._run(batch, wants)
        finally:
            self._running.release()

    def _run(self, batch: Batch, wants: Sequence[Want]) -> list[Any]:
        assert not self.closed
        self.stop.clear()
        batch.check()
        n, size = batch.n_tokens, self.options.page_size
        assert n <= self.options.max_tokens
        assert batch.n_seqs <= self.options.max_seqs
        assert batch.n_rows <= self.options.max_rows
        slots = batch.page_tables[batch.seqs[:n], batch.positions[:n] // size], batch.positions[:n] % size
        saves = self._saves(batch)
        try:
            self.on_run(batch)
        except BaseException:
            self.store[slots] = GARBAGE
            self.spoil(batch)
            raise
        self.store[slots] = batch.tokens[:n]
        for slot, tokens in saves.items():
            self.states[slot] = tokens
        for t in range(n):
            marked = self.generated if t < batch.n_generated else self.given
            marked.add(tuple(self.context(batch, t).tolist()))
        self.n_runs += 1
        self.n_tokens += n
        self.sizes.append((n, batch.n_seqs, batch.n_rows))
        self.asked.append(tuple(wants))
        return [self._result(batch, want) for want in wants]

    def _saves(self, batch: Batch) -> dict[int, list[int]]:
        """What the step saves, by slot; the states that it begins with must be those of the tokens before."""
        found = {}
        for s, (first, n) in enumerate(batch.spans[: batch.n_seqs].tolist() if self.options.n_slots else ()):
            before = [] if batch.state_in[s] < 0 else self.states[batch.state_in[s]]
            assert before == self.context(batch, first)[:-1].tolist(), "the state is that of other tokens"
            tokens = before + batch.tokens[first : first + n].tolist()
            save, n_saves = batch.saves[s].tolist()
            for i in range(save, save + n_saves):
                found[int(batch.save_slot[i])] = tokens[: len(before) + int(batch.save_after[i])]
        return found

    def spoil(self, batch: Batch) -> None:
        """The step's saves are undefined."""
        for slot in batch.save_slot[: batch.n_saves].tolist():
            self.states[slot] = GARBAGE

    def _result(self, batch: Batch, want: Want) -> Any:
        width = self.n_vocab if want == "logits" else N_EMBD
        tokens = range(batch.n_tokens) if want == "features" else batch.rows[: batch.n_rows].tolist()
        out = np.empty((len(tokens), width), np.float32)
        for r, t in enumerate(tokens):
            out[r] = expected_row(self.context(batch, t), width)
        return out

    def context(self, batch: Batch, t: int) -> NDArray[np.int32]:
        table = batch.page_tables[batch.seqs[t]]
        p = int(batch.positions[t]) + 1
        return self.store[table[: -(-p // self.options.page_size)]].ravel()[:p]

    def read_page(self, page: int) -> NDArray[np.uint8]:
        assert not self._running.locked(), "a page is read within a step"
        self.n_read += 1
        return self.store[page].view(np.uint8).copy()

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        assert not self._running.locked(), "a page is written within a step"
        self.n_written += 1
        self.store[page] = data.view(np.int32)

    def interrupt(self) -> None:
        self.stop.set()

    def memory(self) -> dict[str, int]:
        return {"kv": self.store.nbytes}

    def close(self) -> None:
        self.closed += 1


class PausingExecutable(FakeExecutable):
    """Its steps can be paused: `begin` and `proceed` do one of `n_slices` slices each, and call `on_slice`, which may
    raise. What a paused step will write is garbage meanwhile; where others write there, or change its batch, it cannot
    go on.
    """

    def __init__(self, n_vocab: int = 50, **options: int) -> None:
        super().__init__(n_vocab, **options)
        self.side = FakeSide(self)
        self.n_slices = 3
        self.on_slice: Callable[[Batch], None] = lambda batch: None
        self.n_begun = self.n_dropped = 0
        self.prompts: list[int] = []
        """Tokens of the steps that were begun."""
        self.beside: list[int] = []
        """Tokens of the side's steps."""
        self._paused: tuple[Batch, Sequence[Want], bytes] | None = None
        self._left = 0

    def run_all(self, batch: Batch, wants: Sequence[Want], given: Sequence[NDArray[np.float32]] = ()) -> list[Any]:
        self._drop()
        return super().run_all(batch, wants)

    def begin(self, batch: Batch, wants: Sequence[Want], seconds: float) -> list[Any] | None:
        self._drop()
        assert not self.closed
        batch.check()
        self._paused, self._left = (batch, wants, _content(batch)), self.n_slices
        self.store[self.slots(batch)] = GARBAGE
        self.spoil(batch)
        self.n_begun += 1
        self.prompts.append(batch.n_tokens)
        return self.proceed(seconds)

    def proceed(self, seconds: float) -> list[Any] | None:
        assert self._paused is not None, "no step is paused"
        batch, wants, content = self._paused
        assert _content(batch) == content, "the batch of a paused step has changed"
        self._paused = None
        self.on_slice(batch)
        self._left -= 1
        if self._left > 0 and seconds != inf:
            self._paused = batch, wants, content
            return None
        return super().run_all(batch, wants)

    def beside_paused(self, batch: Batch, wants: Sequence[Want]) -> list[Any]:
        """A step of the side."""
        if self._paused is not None:
            taken = {*zip(*(a.tolist() for a in self.slots(self._paused[0])), strict=True)}
            written = {*batch.save_slot[: batch.n_saves].tolist()}
            if not taken.isdisjoint(zip(*(a.tolist() for a in self.slots(batch)), strict=True)) or (
                not written.isdisjoint(_state_slots(self._paused[0]))
            ):
                self._drop()  # its pages are others' now
        self.beside.append(batch.n_tokens)
        return super().run_all(batch, wants)

    def slots(self, batch: Batch) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        n, size = batch.n_tokens, self.options.page_size
        return batch.page_tables[batch.seqs[:n], batch.positions[:n] // size], batch.positions[:n] % size

    def _drop(self) -> None:
        self.n_dropped += self._paused is not None
        self._paused = None


class FakeSide(FakeExecutable):
    """Steps of few tokens beside a paused one."""

    def __init__(self, main: PausingExecutable) -> None:
        o = main.options
        self.program, self.n_vocab, self._main = main.program, main.n_vocab, main
        self.options = replace(o, max_tokens=min(o.max_tokens, o.max_seqs + 3), max_rows=min(o.max_seqs, o.max_rows))

    def run_all(self, batch: Batch, wants: Sequence[Want], given: Sequence[NDArray[np.float32]] = ()) -> list[Any]:
        o = self.options
        assert batch.n_tokens <= o.max_tokens == len(batch.tokens)
        assert batch.n_rows <= o.max_rows == len(batch.rows)
        return self._main.beside_paused(batch, wants)


def _state_slots(batch: Batch) -> list[int]:
    """Slots that a batch reads or writes."""
    return [*batch.state_in[: batch.n_seqs].tolist(), *batch.save_slot[: batch.n_saves].tolist()]


def _content(batch: Batch) -> bytes:
    """The part of a batch's arrays that its step reads."""
    n, s, r = batch.n_tokens, batch.n_seqs, batch.n_rows
    used = batch.positions[batch.spans[:s].sum(1) - 1] // batch.page_size + 1
    tables = [batch.page_tables[i, :n_pages] for i, n_pages in enumerate(used.tolist())]
    arrays = [batch.tokens[:n], batch.positions[:n], batch.seqs[:n], batch.spans[:s], batch.rows[:r], *tables]
    states = _state_slots(batch), batch.saves[:s].tolist(), batch.save_after[: batch.n_saves].tolist()
    return b"".join(a.tobytes() for a in arrays) + repr((n, s, r, batch.n_generated, *states)).encode()


def submit_all(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation[GeneratedToken]]:
    """Requests that arrive together: the first step takes all of them."""
    return engine.submit_all([(request, Plain()) for request in requests])
