"""The contract between the engine and a backend: `Backend` compiles a program, `Executable` runs batches.

The executable owns the KV cache, in pages of `page_size` positions; a page has the same number in every layer. It owns
the recurrent states, in slots; a slot holds all states of a sequence after some token. The engine assigns pages and
slots to sequences (`pyllm.cache`). A batch is ragged: any mix of sequences, each with any number of tokens.

A model may be split over devices (`placement`, `split`): each executable then holds a part of the program, in stages,
and values pass between devices as `Crossing`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from importlib.util import find_spec
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from pyllm.config import ExecutionOptions, KVDtype
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value
from pyllm.program.ops.attention import Attention
from pyllm.records import dataclass
from pyllm.sampling.top_logits import TopLogits

ImportanceSums = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""By weight: sums of squared inputs [n_matrices, columns], tokens counted [n_matrices]; n_matrices: experts, or 1."""


class Batch:
    """One step's tokens in flat, preallocated arrays. Tokens of one sequence are adjacent, their positions consecutive.

    Sequences in decode come before those in prefill: a backend may compute the two by different kernels. Their first
    `n_generated` tokens are those, one of each sequence, or several: its last token and drafts of the next, which get
    the results that they would get one by one, on the cpu backend to the bit. A token's result does not depend on the
    rest of the batch: to the bit on the cpu and reference backends, up to rounding on others, which may choose kernels
    by the number of tokens.

    tokens      int32 [max_tokens]           token ids
    positions   int32 [max_tokens]           position of each token in its sequence
    seqs        int32 [max_tokens]           row of `page_tables` (and of `spans`) of each token
    spans       int32 [max_seqs, 2]          first token and number of tokens of each sequence in this batch
    page_tables int32 [max_seqs, max_pages]  page_tables[s, p // page_size] holds position p of sequence s
    rows        int32 [max_rows]             output rows: tokens whose logits are returned, ascending

    For programs with recurrent states, which a step reads from `state_in` and writes to no slot but those of its saves:
    an error leaves nothing to undo, and any number of sequences may begin at one slot.

    state_in    int32 [max_seqs]             slot with the state before the sequence's first token; -1: zeros
    saves       int32 [max_seqs, 2]          first save and number of saves of each sequence
    save_after  int32 [max_saves]            tokens of the sequence in this batch that a save includes; ascending, the
                                             last is all of them
    save_slot   int32 [max_saves]            where it is written; distinct, none a `state_in` of this batch

    For programs with an encoder, whose keys and values of a sequence's source lie in the sequence's pages:

    sources     int32 [max_seqs]             tokens of each sequence's source
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
        self.sources = np.zeros(o.max_seqs, np.int32)
        self.n_slots = o.n_slots
        self.state_in = np.zeros(o.max_seqs, np.int32)
        self.saves = np.zeros((o.max_seqs, 2), np.int32)
        self.save_after = np.zeros(o.max_saves, np.int32)
        self.save_slot = np.zeros(o.max_saves, np.int32)
        self.n_tokens = self.n_generated = self.n_seqs = self.n_rows = self.n_saves = 0

    def clear(self) -> None:
        self.n_tokens = self.n_generated = self.n_seqs = self.n_rows = self.n_saves = 0

    def add(
        self,
        tokens: Sequence[int] | NDArray[np.integer],
        position: int,
        pages: Sequence[int] | NDArray[np.integer],
        want: Literal["none", "last", "all"] | Sequence[int] = "last",
        generated: bool = False,
        state_in: int = -1,
        saves: Sequence[tuple[int, int]] = (),
        source: int = 0,
    ) -> None:
        """Append a sequence's next tokens, the first at `position`. `pages` must cover position + len(tokens).

        `want` names the output rows: indices within `tokens`, or a word. `generated`: the sequence is in decode; such
        sequences come first. `saves`: pairs (tokens included, slot) of states to keep. `source`: tokens of its
        source. Raises ValueError where the batch's capacity would be exceeded; the batch is then unchanged.
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
        if self.n_saves + len(saves) > len(self.save_slot):
            raise ValueError(f"{len(saves)} saves do not fit into the batch")
        self.tokens[t : t + n] = tokens
        self.positions[t : t + n] = np.arange(position, position + n)
        self.seqs[t : t + n] = s
        self.spans[s] = t, n
        self.page_tables[s, : len(pages)] = pages
        self.rows[self.n_rows : self.n_rows + len(rows)] = [t + r for r in rows]
        self.n_tokens, self.n_seqs, self.n_rows = t + n, s + 1, self.n_rows + len(rows)
        if generated:
            self.n_generated = self.n_tokens
        self.sources[s] = source
        self.state_in[s], self.saves[s] = state_in, (self.n_saves, len(saves))
        for after, slot in saves:
            self.save_after[self.n_saves], self.save_slot[self.n_saves] = after, slot
            self.n_saves += 1

    def check(self) -> None:
        """Raise AssertionError where the arrays contradict each other."""
        n, at = self.n_tokens, 0
        assert 0 < n <= len(self.tokens), f"{n} tokens"
        assert 0 < self.n_seqs <= len(self.spans), f"{self.n_seqs} sequences"
        for s, (first, count) in enumerate(self.spans[: self.n_seqs].tolist()):
            assert first == at, "spans must be one after another"
            assert count > 0, "a sequence without tokens"
            assert (self.seqs[at : at + count] == s).all(), "tokens of another sequence within a span"
            assert (np.diff(self.positions[at : at + count]) == 1).all(), "positions must be consecutive"
            assert at >= self.n_generated or at + count <= self.n_generated, "a span is generated, or it is not"
            at += count
        assert at == n, "spans must cover all tokens"
        rows = self.rows[: self.n_rows]
        assert (np.diff(rows) > 0).all(), "rows must be ascending"
        assert not len(rows) or (rows[0] >= 0 and rows[-1] < n), "rows must be tokens of the batch"
        assert 0 <= self.n_generated <= n
        pages = self.page_tables[self.seqs[:n], self.positions[:n] // self.page_size]
        places = {*zip(pages.tolist(), (self.positions[:n] % self.page_size).tolist(), strict=True)}
        assert len(places) == n, "two tokens in one place"
        if self.n_slots:
            self._check_slots()

    def _check_slots(self) -> None:
        n, at = self.n_seqs, 0
        read, written = self.state_in[:n], self.save_slot[: self.n_saves]
        assert ((read >= -1) & (read < self.n_slots)).all(), "a slot to read is out of range"
        assert ((written >= 0) & (written < self.n_slots)).all(), "a slot to write is out of range"
        assert not {*read.tolist()} & {*written.tolist()}, "a step reads and writes one slot"
        assert len({*written.tolist()}) == self.n_saves, "two saves in one slot"
        for s, (first, count) in enumerate(self.saves[:n].tolist()):
            after = self.save_after[first : first + count]
            assert first == at, "saves must be one after another"
            assert count > 0, "a sequence's last state is not saved"
            assert after[0] > 0, "a save before any token"
            assert (np.diff(after) > 0).all(), "saves must be ascending"
            assert after[-1] == self.spans[s, 1], "a sequence's last state is not saved"
            assert (read[s] == -1) == (self.positions[self.spans[s, 0]] == 0), "states are zeros at position 0 alone"
            at += count


@dataclass(frozen=True, slots=True)
class Probe:
    """A backend's availability on this machine."""

    name: str
    available: bool
    reason: str = ""
    """Why it is not available and what would help; empty when it is available."""
    device: str = ""
    """The processor or card, in words."""
    memory_free: int | None = None
    """Bytes free for weights and cache, where known."""
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
    """Takes layers by default."""


class Crossing(ABC):
    """A value that a stage sends: float32 [tokens or output rows, width], valid until its producer's next step.

    A backend has its own subclass, and may read values of that class without a copy through the host.
    """

    @abstractmethod
    def host(self) -> NDArray[np.float32]:
        """The value in host memory; waits for the device that computes it. Later calls return the same array.

        Raises the device's errors: BackendError, or KeyboardInterrupt where the step was interrupted.
        """


@dataclass(frozen=True, slots=True)
class HostCrossing(Crossing):
    """A value in the host's memory."""

    array: NDArray[np.float32]

    def host(self) -> NDArray[np.float32]:
        return self.array


Want = Literal["logits", "hidden", "candidates", "features", "row_features"]
"""A result of a step: logits or final normed states of the wanted rows, or the most likely tokens alone; what heads
read of every token, or of the wanted rows (`Program.features`)."""


class Executable(ABC):
    """A compiled program, or a device's part of one, with its weights, KV cache and recurrent states.

    Not thread-safe, except `interrupt`.
    """

    program: Program
    options: ExecutionOptions
    n_candidates: int = 0
    """Candidates returned for each output row; 0: `candidates` is not supported."""
    side: Executable | None = None
    """Runs steps of few tokens (its `options`) with the same weights and KV cache, also while a step of this one is
    paused (`begin`). It is not closed by itself. None: steps cannot be paused."""
    page_bytes: int = 0
    """Bytes of a page as `read_page` gives them; 0: pages cannot be read."""
    page_format: str = ""
    """What these bytes, and those of slots, depend on beside program and options: layout, processor. Where it is equal,
    so is the result."""
    slot_bytes: int = 0
    """Bytes of a slot as `read_slot` gives them; 0: slots cannot be read, or there are none."""

    @abstractmethod
    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        """Compute one stage of a step; returns the values `wanted`, in this order, which are among the stage's `sends`.

        `given` are the stage's `receives`, in order. A step calls stages 0, 1, … with the same batch and may end early;
        stage 0 begins a new step. In the last stage, ops after the last wanted value may be skipped, if any value is
        wanted. Stores the batch's keys, values and states. May return before the device is done: `Crossing.host` waits.

        Raises KeyboardInterrupt within 0.2 s when Ctrl-C arrives or `interrupt` is called during the step; the KV
        cache of the batch's positions and its saves are then undefined, all else is intact, and the next step works.
        Token ids, pages and slots must be in range: the caller checks (`Batch.add`), kernels do not.
        """

    @overload
    def run(self, batch: Batch, want: Literal["logits", "hidden"] = "logits") -> NDArray[np.float32]: ...
    @overload
    def run(self, batch: Batch, want: Literal["candidates"]) -> TopLogits: ...

    def run(self, batch: Batch, want: Want = "logits") -> NDArray[np.float32] | TopLogits:
        """Compute one step of a whole program, as `run_stage` does.

        Returns logits, float32 [n_rows, n_vocab]; or final hidden states, float32 [n_rows, n_embd]; or candidates,
        where `n_candidates` is not 0. Arrays are views that the next step overwrites.
        """
        return self.run_all(batch, (want,))[0]

    def run_all(
        self, batch: Batch, wants: Sequence[Want], given: Sequence[NDArray[np.float32]] = ()
    ) -> list[NDArray[np.float32] | TopLogits]:
        """Compute one step and give several of its results, in the order of `wants`; each as `run` gives it. `given`:
        values that the program receives, [n_tokens, width]."""
        crossings = [HostCrossing(values) for values in given]
        return self._results(wants, self.run_stage(0, batch, crossings, self._wanted(wants)))

    def begin(
        self, batch: Batch, wants: Sequence[Want], seconds: float
    ) -> list[NDArray[np.float32] | TopLogits] | None:
        """Begin a step and compute it for about so long: `run_all`'s results, or None where it is paused then.

        A step that goes on later needs the batch's arrays as they were, and its pages to itself. Another step of this
        executable, new weights, an error or an interrupt drops a paused one, and it may be left as it is: the KV cache
        of its positions is then undefined. Raises as `run_stage`, and BackendError where `side` is None.
        """
        raise BackendError(f"{type(self).__name__} cannot pause steps")

    def proceed(self, seconds: float) -> list[NDArray[np.float32] | TopLogits] | None:
        """Go on with the paused step for about so long, as `begin` does. Raises BackendError where none is paused."""
        raise BackendError(f"{type(self).__name__} cannot pause steps")

    def _wanted(self, wants: Sequence[Want]) -> list[Value]:
        program = self.program
        row_features, features = program.features or (None, None)
        named = {"hidden": program.hidden, "row_features": row_features, "features": features}
        values = [named.get(want, program.logits) for want in wants]
        wanted = [value for value in values if value is not None]
        if len(wanted) < len(values):
            raise BackendError("the program has no logits or no features of heads; its final states can be had")
        return wanted

    def _results(self, wants: Sequence[Want], crossings: Sequence[Crossing]) -> list[NDArray[np.float32] | TopLogits]:
        return [
            self.candidates(crossing) if want == "candidates" else crossing.host()
            for want, crossing in zip(wants, crossings, strict=True)
        ]

    def candidates(self, logits: Crossing) -> TopLogits:
        """The most likely tokens by the logits of this step, without copying all logits to the host.

        Valid until the next step. Raises BackendError where `n_candidates` is 0.
        """
        raise BackendError(f"{type(self).__name__} gives no candidates; logits work")

    def beside(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> Executable | None:
        """Compile another program that uses this one's packed weights, where it has the same tensors; it is closed
        before this one. None: the backend packs weights for each program. Raises as `Backend.compile`."""
        return None

    @abstractmethod
    def interrupt(self) -> None:
        """Stop the running step, from any thread; without one, nothing happens."""

    @abstractmethod
    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose: "weights", "kv" (with recurrent states), "work", "other" (libraries, contexts)."""

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """A copy of a page's keys and values in all layers, uint8 [page_bytes]. Between steps; a paused one goes on."""
        raise BackendError(f"{type(self).__name__} gives no pages; its prefix cache lasts as long as the model")

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """Replace a page's content by what `read_page` gave, here or in an executable of the same program, options and
        `page_format`. Raises BackendError where the size is another."""
        self.read_page(page)  # says that it cannot

    def read_slot(self, slot: int) -> NDArray[np.uint8]:
        """A copy of the recurrent states in a slot, uint8 [slot_bytes]; as `read_page`."""
        raise BackendError(f"{type(self).__name__} gives no states; its prefix cache lasts as long as the model")

    def write_slot(self, slot: int, data: NDArray[np.uint8]) -> None:
        """Replace a slot's states by what `read_slot` gave; as `write_page`."""
        self.read_slot(slot)  # says that it cannot

    def importance(self) -> ImportanceSums:
        """Sums of squared inputs over the rows of all successful steps, for the weights of every matrix product.

        An expert's sums count the rows routed to it; products after `SelectRows` count the output rows. Raises
        BackendError unless the program was compiled with `collect_importance` by a backend that supports it.
        """
        raise BackendError(f"{type(self).__name__} does not collect importance; the cpu and reference backends can")

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        """Replace the values of these matrices and tables; shapes and formats stay.

        The KV cache still holds results of the old values. Raises BackendError where a tensor is not the program's, has
        another shape or format, or where the backend cannot replace weights; then nothing is replaced.
        """
        raise BackendError(f"{type(self).__name__} cannot replace weights; the cpu and reference backends can")

    @abstractmethod
    def close(self) -> None:
        """Free weights, cache and threads. Further calls do nothing."""


def check_replacement(old: TensorInfo | None, new: TensorInfo) -> None:
    """Raise BackendError unless `new` may take the place of `old`."""
    if old is None:
        raise BackendError(f"there is no matrix {new.name} to replace")
    if (new.shape, new.format, new.n_bytes) != (old.shape, old.format, old.n_bytes):
        raise BackendError(
            f"{new.name} is {old.format} {list(old.shape)}; {new.format} {list(new.shape)} cannot replace it"
        )


class Backend(ABC):
    """A backend, described by its own attributes: no other package depends on a backend's name.

    Found by name: `pyllm.backends.<name>` has `BACKEND`, or an entry point of the group `pyllm.backends`.
    """

    name: str
    requires: tuple[str, ...] = ()
    """Packages that it imports at run time."""
    install: str = ""
    """The command that installs them."""
    kv_dtypes: tuple[KVDtype, ...] = ("f16", "f32")
    """Types of numbers that its KV cache supports."""
    unified_memory: bool = False
    """Its GPUs share the host's memory."""
    collects_importance: bool = False
    """Its executables support `importance`."""
    replaces_weights: bool = False
    """Its executables support `replace`."""
    keeps_recurrent_states: bool = False
    """It runs programs with recurrent states."""
    reads_sources: bool = False
    """It has attention to a source (`Batch.sources`), which models with encoder and decoder need."""
    exact_in_company: bool = False
    """A token's result does not depend on the rest of its batch, to the bit; False: up to rounding."""

    def installed(self) -> bool:
        """Whether the required packages are installed; none is imported."""
        return all(find_spec(package) is not None for package in self.requires)

    @abstractmethod
    def probe(self) -> Probe:
        """Whether it runs here, why not, and on what. Must be quick and must not raise."""

    def devices(self) -> list[DeviceInfo]:
        """Its devices, by index; none where the backend is not available. Never raises."""
        probe = self.probe()
        if not probe.available:
            return []
        return [DeviceInfo(self.name, self.name, 0, probe.device, probe.memory_free, None, False)]

    def gpus(self) -> list[DeviceInfo]:
        """The GPUs among `devices`. Called at every start, so it imports nothing where the required packages are
        missing. Never raises."""
        return [device for device in self.devices() if device.is_gpu] if self.installed() else []

    def shares_models(self) -> bool:
        """Whether its devices can take some of a model's layers beside the CPU; else it is used alone."""
        return bool(self.gpus())

    def warm_up(self, index: int) -> AbstractContextManager[object]:
        """A context in which the process holds the memory that a device takes beside a model: libraries, kernels,
        the driver's own. `pyllm fit` measures the process in it."""
        return nullcontext()

    @abstractmethod
    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        """Pack the weights and choose kernels for a program, or a part of one, on device `options.device`.

        Raises BackendError and OutOfMemoryError; then nothing is held. Reports to `options.progress`, if given.
        """

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        """Bytes that `compile` would take on the device, by purpose as in `Executable.memory`; allocates nothing.

        This default counts the tensors' bytes in the file and the KV cache by its shape. Raises BackendError as
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

    def memory_beside(
        self,
        program: Program,
        weights: Mapping[str, TensorInfo],
        options: ExecutionOptions,
        other: Program,
        its_weights: Mapping[str, TensorInfo],
    ) -> dict[str, int]:
        """Bytes that `Executable.beside` of another program's executable would take, as `memory_needed` gives them."""
        return self.memory_needed(program, weights, options)

    def check(self, program: Program, options: ExecutionOptions) -> None:
        """Raise BackendError where an option is not supported: collecting importance, the type of the KV cache; or
        where the program has recurrent states and the backend or the options have no slots for them."""
        if options.collect_importance and not self.collects_importance:
            raise BackendError(f"backend {self.name!r} does not collect importance; the cpu and reference backends can")
        if program.slots and not self.keeps_recurrent_states:
            raise BackendError(
                f"backend {self.name!r} has no recurrent states; the cpu, cuda, mlx and reference backends have them"
            )
        if not self.reads_sources and any(isinstance(op, Attention) and op.reach == "source" for op in program.ops):
            raise BackendError(
                f"backend {self.name!r} has no attention to a source; the cpu, mlx and reference backends have it"
            )
        if program.slots and not options.n_slots:
            raise BackendError("the program has recurrent states, and needs slots for them (n_slots)")
        if program.kv and options.kv_dtype not in self.kv_dtypes:
            raise BackendError(
                f"backend {self.name!r} has no KV cache in {options.kv_dtype}; it has {', '.join(self.kv_dtypes)}"
            )


def kv_bytes(program: Program, options: ExecutionOptions) -> int:
    """Bytes of a program's KV cache without padding, and of its recurrent states; q8_0 has a float16 scale for every
    32 numbers."""
    columns = sum(spec.n_kv_heads * (spec.head_dim + spec.v_head_dim) for spec in program.kv)
    bits = {"f16": 16, "f32": 32, "q8_0": 272 / 32}[options.kv_dtype]
    return int(options.n_pages * options.page_size * columns * bits / 8) + options.n_slots * slot_bytes(program)


def slot_bytes(program: Program) -> int:
    """Bytes of a slot, without padding: all recurrent states of a sequence, in float32."""
    return 4 * sum(spec.n_numbers for spec in program.slots)
