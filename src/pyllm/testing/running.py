"""Ragged batches, run on a backend and on the reference backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyllm import backends
from pyllm.backends.base import Batch, Executable
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program.ops.embed import Embed
from pyllm.testing.models import Model

F32 = NDArray[np.float32]

OPTIONS = ExecutionOptions(
    n_pages=16, page_size=16, max_tokens=96, max_seqs=4, max_rows=96, kv_dtype="f32", n_threads=2
)


SLOTS_PER_PAGE = 64
"""Slots of each sequence's first page; no step of a test is longer."""


def nmse(got: F32, wanted: F32) -> float:
    """mean((got - wanted)^2) / mean(wanted^2)."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.mean((a - b) ** 2) / np.mean(b**2))


@dataclass(frozen=True)
class Step:
    """A sequence's next tokens in one batch."""

    tokens: Sequence[int]
    position: int
    pages: Sequence[int]
    want: Literal["none", "last", "all"] | Sequence[int] = "all"
    generated: bool = False
    also_after: Sequence[int] = ()
    """Positions within the tokens after which the state is saved too, from the sequence's begin on."""

    def state_in(self) -> int:
        """The slot of the state before its tokens."""
        return self._slot(self.position) if self.position else -1

    def saves(self) -> list[tuple[int, int]]:
        """What it saves, for `Batch.add`."""
        ends = [*self.also_after, self.position + len(self.tokens)]
        return [(end - self.position, self._slot(end)) for end in ends]

    def _slot(self, end: int) -> int:
        """The slot of the state after `end` tokens: one of those that belong to the sequence's first page."""
        return self.pages[0] * SLOTS_PER_PAGE + end % SLOTS_PER_PAGE


def compiled(
    backend: str, model: Model, tensors: Mapping[str, TensorInfo], options: ExecutionOptions = OPTIONS
) -> Executable:
    """Compile a model on a backend, with slots where it has recurrent states; the caller closes it."""
    return backends.get(backend).compile(model.program, tensors, with_slots(model, options))


def with_slots(model: Model, options: ExecutionOptions) -> ExecutionOptions:
    """The same with slots for `Step`s, where the model has recurrent states."""
    if not model.program.slots or options.n_slots:
        return options
    return replace(options, n_slots=options.n_pages * SLOTS_PER_PAGE)


def run(exe: Executable, steps: Iterable[Step], want: Literal["logits", "hidden"] = "logits") -> F32:
    """Run one batch of these sequences; returns a copy of the result."""
    return exe.run(batch_of(exe, steps), want).copy()


def batch_of(exe: Executable, steps: Iterable[Step]) -> Batch:
    """A batch of these sequences."""
    batch = Batch(exe.options)
    for step in steps:
        states = (step.state_in(), step.saves()) if exe.program.slots else ()
        batch.add(step.tokens, step.position, step.pages, step.want, step.generated, *states)
    batch.check()
    return batch


def random_tokens(n: int, n_vocab: int, seed: int = 0) -> list[int]:
    """Random token ids by a seed."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, n_vocab, n)]


def ragged_batches(n_vocab: int, seed: int = 0) -> list[list[Step]]:
    """Batches as from an engine: a prompt; two prompts in chunks of odd sizes beside single tokens; pages out of order,
    unshared."""
    a, b, c = (random_tokens(n, n_vocab, seed + i) for i, n in enumerate((37, 21, 9)))
    pa, pb, pc = [9, 2, 11], [5, 1], [15, 3]
    return [
        [Step(a[:33], 0, pa)],
        [Step(a[33:34], 33, pa), Step(b[:17], 0, pb, "last"), Step(c[:1], 0, pc)],
        [Step(a[34:37], 34, pa), Step(b[17:18], 17, pb), Step(c[1:9], 1, pc, [0, 3, 7])],
        [Step(b[18:21], 18, pb)],
    ]


def run_both(
    backend: str,
    model: Model,
    fmt: str = "F32",
    batches: Sequence[Sequence[Step]] | None = None,
    options: ExecutionOptions = OPTIONS,
    want: Literal["logits", "hidden"] = "logits",
    tensors: Mapping[str, TensorInfo] | None = None,
) -> list[tuple[F32, F32]]:
    """(result of `backend`, result of the reference) for each batch in turn, with float32 KV caches."""
    tensors = model.tensors(fmt) if tensors is None else tensors
    batches = ragged_batches(n_tokens(model)) if batches is None else batches
    got = run_all(compiled(backend, model, tensors, options), batches, want)
    wanted = run_all(compiled("reference", model, tensors, replace(options, kv_dtype="f32")), batches, want)
    return list(zip(got, wanted, strict=True))


def run_all(
    exe: Executable, batches: Iterable[Sequence[Step]], want: Literal["logits", "hidden"] = "logits"
) -> list[F32]:
    """Results of all batches; closes the executable."""
    try:
        return [run(exe, batch, want) for batch in batches]
    finally:
        exe.close()


def assert_close(pairs: Iterable[tuple[F32, F32]], limit: float) -> None:
    """Assert NMSE of each pair of at most `limit`, and finite values."""
    for i, (got, wanted) in enumerate(pairs):
        assert got.shape == wanted.shape, f"batch {i}: shape {got.shape}, not {wanted.shape}"
        assert np.isfinite(wanted).all(), f"batch {i}: the reference is not finite"
        assert np.isfinite(got).all(), f"batch {i}: not finite"
        error = nmse(got, wanted)
        assert error <= limit, f"batch {i}: NMSE {error:.2e} > {limit:.0e}"


def n_tokens(model: Model) -> int:
    """Rows of the model's token table."""
    table = next(op.table for op in model.program.ops if isinstance(op, Embed))
    return model.shapes[table][0]
