"""The contract between the engine and whatever computes: `Backend` compiles a program, `Executable` runs batches.

KV memory belongs to the executable and is divided into pages of `page_size` positions, the same page number in every
layer; which page holds what is the engine's business (`pyllm.cache`). A batch is ragged: any mix of sequences, each
with any number of tokens.

A model may be split over devices (`placement`, `split`): each executable then has a part of it, in stages, and values
cross from one to the other as `Crossing`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.config import ExecutionOptions, KVDtype
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value

ImportanceSums = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""By weight: sums of squared inputs [n_matrices, columns], tokens in them [n_matrices]; n_matrices: experts, or 1."""


class Batch:
    """One step's work in flat, preallocated arrays. Tokens of one sequence are adjacent, their positions consecutive.

    Sequences that continue with generated tokens come before those that bring tokens of a prompt: a backend may compute
    the two in different ways. What a token becomes does not depend on what else is in the batch: exactly on the cpu and
    reference backends, up to rounding on others, which may pick kernels by the number of tokens.

    tokens      int32 [max_tokens]           token ids
    positions   int32 [max_tokens]           position of each token in its sequence
    seqs        int32 [max_tokens]           row of `page_tables` (and of `spans`) of each token
    spans       int32 [max_seqs, 2]          first token and number of tokens of each sequence in this batch
    page_tables int32 [max_seqs, max_pages]  page_tables[s, p // page_size] holds position p of sequence s
    rows        int32 [max_rows]             tokens whose logits are wanted, ascending
    """

    def __init__(self, options: ExecutionOptions) -> None:
        o = options
        self.page_size = o.page_size
        self.tokens = np.zeros(o.max_tokens, np.int32)
        self.positions = np.zeros(o.max_tokens, np.int32)
        self.seqs = np.zeros(o.max_tokens, np.int32)
        self.spans = np.zeros((o.max_seqs, 2), np.int32)
        self.page_tables = np.zeros((o.max_seqs, o.n_pages), np.int32)
        self.rows = np.zeros(o.max_rows, np.int32)
        self.n_tokens = self.n_generated = self.n_seqs = self.n_rows = 0

    def clear(self) -> None:
        self.n_tokens = self.n_generated = self.n_seqs = self.n_rows = 0

    def add(
        self,
        tokens: Sequence[int] | NDArray[np.integer],
        position: int,
        pages: Sequence[int] | NDArray[np.integer],
        want: Literal["none", "last", "all"] | Sequence[int] = "last",
        generated: bool = False,
    ) -> None:
        """Append a sequence's next tokens, the first at `position`. `pages` must cover position + len(tokens).

        `want` names the tokens whose logits are wanted: indices within `tokens`, or a word. `generated` sequences come
        first. Raises ValueError where the batch's capacity would be exceeded; the batch is unchanged then.
        """
        n, t, s = len(tokens), self.n_tokens, self.n_seqs
        rows = (
            range(0) if want == "none" else range(n - 1, n) if want == "last" else range(n) if want == "all" else want
        )
        if n < 1 or t + n > len(self.tokens) or s >= len(self.spans) or self.n_rows + len(rows) > len(self.rows):
            raise ValueError(f"{n} tokens and {len(rows)} rows do not fit into the batch")
        if len(pages) * self.page_size < position + n or len(pages) > self.page_tables.shape[1]:
            raise ValueError(f"{len(pages)} pages do not hold positions up to {position + n}")
        if generated and t > self.n_generated:
            raise ValueError("sequences with generated tokens come before those with prompts")
        self.tokens[t : t + n] = tokens
        self.positions[t : t + n] = np.arange(position, position + n)
        self.seqs[t : t + n] = s
        self.spans[s] = t, n
        self.page_tables[s, : len(pages)] = pages
        self.rows[self.n_rows : self.n_rows + len(rows)] = [t + r for r in rows]
        self.n_tokens, self.n_seqs, self.n_rows = t + n, s + 1, self.n_rows + len(rows)
        if generated:
            self.n_generated = self.n_tokens


@dataclass(frozen=True, slots=True)
class Probe:
    """What a backend says of itself on this machine."""

    name: str
    available: bool
    reason: str = ""
    """Why it is not available, and what would make it so; empty when it is."""
    device: str = ""
    """The processor or card, in words."""
    memory_free: int | None = None
    """Bytes that weights and cache may take, where known."""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that a backend computes on."""

    name: str
    """As it is spelled on the command line: "cpu", "cuda0", "cuda1", "mlx0"."""
    backend: str
    index: int
    """Its number within the backend: `ExecutionOptions.device`."""
    description: str
    memory_free: int | None
    """Bytes, where known."""
    memory_total: int | None
    is_gpu: bool
    """Takes layers unless told otherwise."""


class Crossing(ABC):
    """A value that a stage sends: float32 [tokens or wanted rows, width], valid until its producer's next step.

    A backend has a subclass of its own, and may take values of its own kind without a detour through the host.
    """

    @abstractmethod
    def host(self) -> NDArray[np.float32]:
        """The value, waiting for the device that computes it. Asked again, the same. Errors of that device are raised
        here: BackendError, and KeyboardInterrupt where the step was interrupted."""


@dataclass(frozen=True, slots=True)
class HostCrossing(Crossing):
    """A value in the host's memory."""

    array: NDArray[np.float32]

    def host(self) -> NDArray[np.float32]:
        return self.array


@dataclass(frozen=True, slots=True)
class Candidates:
    """The most likely tokens of each row, and what makes probabilities of their logits: exp(logit - log_sum)."""

    ids: NDArray[np.int32]
    """[n_rows, n]; of equal logits the lower id comes first."""
    logits: NDArray[np.float32]
    """[n_rows, n], descending; NaN counts as -inf and is given as it."""
    log_sum: NDArray[np.float32]
    """[n_rows]: log of the sum of exp over all logits of the row; NaN where NaN or inf is among them."""


class Executable(ABC):
    """A program, or a device's part of one, with its weights and KV memory, ready to run.

    Not thread-safe, except `interrupt`.
    """

    program: Program
    options: ExecutionOptions
    n_candidates: int = 0
    """How many candidates it gives for each row; 0: it gives none."""

    @abstractmethod
    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        """Compute one stage of a step: its values `wanted`, in this order, each one of the stage's `sends`.

        `given` are the stage's `receives`, in order. A step calls stages 0, 1, … with the same batch and may end early;
        stage 0 begins a new one. In the last stage, what comes after the values wanted need not be computed, where any
        is. Stores the batch's KV. It may return before the device is done: `Crossing.host` waits.

        Raises KeyboardInterrupt when Ctrl-C arrives or `interrupt` is called during the step, within 0.2 s; the
        batch's KV is undefined then, everything else is intact, and the next step works. Token ids and pages must
        be in range: the caller checks (`Batch.add`), kernels do not.
        """

    @overload
    def run(self, batch: Batch, want: Literal["logits", "hidden"] = "logits") -> NDArray[np.float32]: ...
    @overload
    def run(self, batch: Batch, want: Literal["candidates"]) -> Candidates: ...

    def run(
        self, batch: Batch, want: Literal["logits", "hidden", "candidates"] = "logits"
    ) -> NDArray[np.float32] | Candidates:
        """Compute one step of a whole program, as `run_stage` does.

        Returns float32 [n_rows, n_vocab] (or [n_rows, n_embd] of the final normed state), a view that the next step
        overwrites; or candidates, where `n_candidates` is not 0.
        """
        wanted = self.program.hidden if want == "hidden" else self.program.logits
        if wanted is None:
            raise BackendError("the program has no logits; its final states can be had")
        crossing = self.run_stage(0, batch, (), [wanted])[0]
        return self.candidates(crossing) if want == "candidates" else crossing.host()

    def candidates(self, logits: Crossing) -> Candidates:
        """The most likely tokens by logits that this executable has just computed, without bringing all of them here.
        Valid until the next step. Raises BackendError where `n_candidates` is 0."""
        raise BackendError(f"{type(self).__name__} gives no candidates; logits it gives.")

    @abstractmethod
    def interrupt(self) -> None:
        """Stop the step that is running, from any thread; nothing happens when none is."""

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose: "weights", "kv", "work", "other" (libraries, contexts), where there is any."""

    def importance(self) -> ImportanceSums:
        """Sums over the rows of all steps that succeeded, for the weights of every matrix product that was computed.

        An expert's count the rows that it was chosen for; what follows `SelectRows`, the rows whose logits were
        wanted. Raises BackendError unless it was compiled with `collect_importance`, and where the backend cannot.
        """
        raise BackendError(f"{type(self).__name__} does not collect importance; the cpu and reference backends can.")

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        """Take other values for these matrices and tables, of the shapes and formats that they had.

        What KV holds was computed with the old ones. Raises BackendError where a tensor is none of the program's, is
        of another shape or format, or where the backend cannot; nothing is replaced then.
        """
        raise BackendError(f"{type(self).__name__} cannot replace weights; the cpu and reference backends can.")

    @abstractmethod
    def close(self) -> None:
        """Free weights, cache and threads. Calling it again does nothing."""


def check_replacement(old: TensorInfo | None, new: TensorInfo) -> None:
    """Raise BackendError unless `new` may take the place of `old`."""
    if old is None:
        raise BackendError(f"There is no matrix {new.name} to replace.")
    if (new.shape, new.format, new.n_bytes) != (old.shape, old.format, old.n_bytes):
        raise BackendError(
            f"{new.name} is {old.format} {list(old.shape)}; {new.format} {list(new.shape)} cannot replace it."
        )


class Backend(ABC):
    """A way to compute, and what it says of itself: no other room knows one by its name.

    Found by name: `pyllm.backends.<name>` has `BACKEND`, or an entry point of the group `pyllm.backends`.
    """

    name: str
    requires: tuple[str, ...] = ()
    """Packages that it imports when it computes."""
    install: str = ""
    """The command that brings them."""
    kv_dtypes: tuple[KVDtype, ...] = ("f16", "f32")
    """What its KV memory can hold."""
    unified_memory: bool = False
    """Its devices have the process's own memory, although they are GPUs."""
    collects_importance: bool = False
    """Its executables have `importance`."""
    replaces_weights: bool = False
    """Its executables have `replace`."""
    exact_in_company: bool = False
    """What else is in a batch changes no bit of what a token becomes; else it may, up to rounding."""

    def installed(self) -> bool:
        """Whether the packages that it requires are there; none is imported."""
        return all(find_spec(package) is not None for package in self.requires)

    @abstractmethod
    def probe(self) -> Probe:
        """Is it here, why not, what does it run on. Must be quick and must not raise."""

    def devices(self) -> list[DeviceInfo]:
        """What it can compute on now, in the order of their numbers; none where it is not available. Never raises."""
        probe = self.probe()
        if not probe.available:
            return []
        return [DeviceInfo(self.name, self.name, 0, probe.device, probe.memory_free, None, False)]

    def gpus(self) -> list[DeviceInfo]:
        """The GPUs among `devices`. Every start asks: what is needed to look for them is imported only where there may
        be one. Never raises."""
        return [device for device in self.devices() if device.is_gpu] if self.installed() else []

    def shares_models(self) -> bool:
        """Whether its devices take layers of a model beside the processor, as GPUs do. Else it is used alone."""
        return bool(self.gpus())

    def warm_up(self, index: int) -> AbstractContextManager[object]:
        """While the context is open, the process has what running on a device takes beside a model: libraries, kernels,
        the device's own. `pyllm fit` measures the process meanwhile."""
        return nullcontext()

    @abstractmethod
    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        """Pack the weights and pick kernels, of a whole program or a part, on device `options.device`.

        Raises BackendError, OutOfMemoryError; nothing is held then. Reports progress through `options.progress`, where
        one is given.
        """

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        """Bytes that `compile` would take on the device, by purpose as in `Executable.memory`; takes none.

        Unless a backend knows better: tensors as they lie in the file, and KV by its shape. Raises BackendError as
        `compile` does.
        """
        missing = [name for name in program.weights() if name not in weights]
        if missing:
            raise BackendError(f"the program needs tensors that were not given: {', '.join(missing[:8])}")
        return {
            "weights": sum(weights[name].n_bytes for name in program.weights()),
            "kv": kv_bytes(program, options),
            "work": 0,
        }

    def check(self, program: Program, options: ExecutionOptions) -> None:
        """Raise BackendError where it cannot do what is asked for: collect importance, KV memory of this type."""
        if options.collect_importance and not self.collects_importance:
            raise BackendError(f"backend {self.name!r} does not collect importance; the cpu and reference backends can")
        if program.kv and options.kv_dtype not in self.kv_dtypes:
            raise BackendError(
                f"backend {self.name!r} has no KV cache in {options.kv_dtype}; it has {', '.join(self.kv_dtypes)}"
            )


def kv_bytes(program: Program, options: ExecutionOptions) -> int:
    """Bytes of a program's KV memory without any padding; q8_0 has a half's scale for every 32 numbers."""
    columns = sum(spec.n_kv_heads * (spec.head_dim + spec.v_head_dim) for spec in program.kv)
    bits = {"f16": 16, "f32": 32, "q8_0": 272 / 32}[options.kv_dtype]
    return int(options.n_pages * options.page_size * columns * bits / 8)
