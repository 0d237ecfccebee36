"""A program, or a device's part of one, on a CUDA device: a step is an upload, a graph or single launches, and a
download."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm import env
from pyllm.backends.base import Batch, Crossing, Executable
from pyllm.backends.cuda import candidates, device, kv
from pyllm.backends.cuda.graphs import Steps, shape_of, wait
from pyllm.backends.cuda.launch import Facts, StepArrays, StepShape, View
from pyllm.backends.cuda.lowering import Lowering
from pyllm.backends.pages import check_size
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError, RequestError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value
from pyllm.sampling.top_logits import TopLogits
from pyllm.units import size

if TYPE_CHECKING:
    from pyllm.backends.cuda.launcher import Event, Launcher

F32 = NDArray[np.float32]

_HEADROOM = 96 << 20
"""Bytes beside pyllm's allocations: weights in transit while packing, code of kernels, graphs."""


class DeviceCrossing(Crossing):
    """A value in a device's memory."""

    def __init__(self, source: CUDAExecutable, value: Value, view: View, n_rows: int, ready: Event, last: bool) -> None:
        """`ready`: the event after which the value is complete. `last`: its stage is the last of the step."""
        self.source, self.value, self.view, self.n_rows = source, value, view, n_rows
        self.ready, self.last = ready, last
        self._array: F32 | None = None

    def host(self) -> F32:
        if self._array is None:
            rows = self.source.download(f"send {self.value.id}", self.view, self.n_rows, self.last)
            self._array = rows[:, : self.value.width]
        return self._array


class CUDAExecutable(Executable):
    """Weights, KV cache and work memory of one program; `pyllm.backends.cuda.lowering` plans the launches."""

    def __init__(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions, launcher: Launcher
    ) -> None:
        """Takes ownership of the launcher; closes it in `close`, or when this fails."""
        self.program, self.options = program, options
        self.launcher, self._closed = launcher, False
        self._lock = threading.RLock()  # a signal handler may interrupt the thread that holds it
        self._running = self._interrupted = False
        self._pinned: dict[str, NDArray[np.uint8]] = {}
        self._addresses: list[int] = []
        self._last: Event | None = None
        self._shape: StepShape | None = None
        self._batch_rows = (0, 0)
        try:
            self._low = Lowering(program, weights, options, Facts(launcher.n_sm, launcher.max_shared))
            self._steps = Steps(launcher, self._low.work.planned)
            self.n_candidates = self._low.n_candidates
            self._sizes = self._low.arrange()
            self._check_free()
            at = {what: self._allocate(n) for what, n in self._sizes.items()}
            self._low.place(**at)
            launcher.zero(at["kv"], self._sizes["kv"])
            for buffer in self._low.work.kept:
                launcher.zero(buffer.address, buffer.n_bytes)
            self._upload = _Upload(self._low.arrays, launcher)
            if not env.cuda_emulator():  # there, compiling what may not be used takes longer than a step
                self._steps.compile(self._first_shapes(), options.progress)
            self._low.weights.load(launcher, options.progress)
            self.page_bytes, self.slot_bytes = sum(n for _, n in self._page_parts(0)), sum(self._low.slot_bytes)
            self.page_format = f"cuda 1, {launcher.arch}"
        except BaseException:
            self.close()
            raise

    def _check_free(self) -> None:
        """Raise OutOfMemoryError, before allocating, where memory does not suffice."""
        free, total = self.launcher.memory()
        needed = sum(self._sizes.values()) + _HEADROOM
        if needed > free:
            parts = ", ".join(f"{size(n)} for {what}" for what, n in {**self._sizes, "other": _HEADROOM}.items())
            raise OutOfMemoryError(
                f"{self.launcher.name} has {size(free)} of {size(total)} free; this needs {size(needed)} ({parts}); "
                "a shorter context, fewer layers on the GPU (-ngl) or a smaller quantization takes less"
            )

    def _allocate(self, n_bytes: int) -> int:
        self._addresses.append(self.launcher.allocate(n_bytes) if n_bytes else 0)
        return self._addresses[-1]

    def _first_shapes(self) -> list[StepShape]:
        """Shapes of a first prompt and of decode, whose kernels are compiled before the first step."""
        o, context = self.options, self.options.n_pages * self.options.page_size
        most = o.max_tokens
        return [StepShape(1, 1, 1, 1, context, 1), StepShape(most, 1, 1, 0, context, most)]

    # --- steps

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("the model was closed")
        try:
            if stage == 0:
                self._begin(batch)
            self._check_interrupt()
            return self._run_stage(stage, given, wanted)
        except BaseException:
            self._break_off()
            raise

    def _begin(self, batch: Batch) -> None:
        self._check(batch)
        with self._lock:
            self._interrupted, self._running = False, True
        if self._last is not None:  # an interrupted step may still read what is written now
            wait(self._last.done, self._check_interrupt)
        self._batch_rows = batch.n_tokens, batch.n_rows
        self._shape = shape_of(batch, self.options) if batch.n_tokens else None
        if self._shape:
            self._upload.step(batch)

    def _run_stage(self, stage: int, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        plan, shape = self._low.stages[stage], self._shape
        if shape:
            for value, crossing in zip(plan.stage.receives, given, strict=True):
                self._receive(value, crossing)
            stop = max((plan.ends[v.id] for v in wanted), default=plan.stop) if plan.last else plan.stop
            self._steps.run(plan.first, stop, shape, self._check_interrupt)
        self._last = ready = self.launcher.record()
        if plan.last and not wanted:
            self._end()
        return [DeviceCrossing(self, v, self._low.sent[v.id], self._n_rows(v), ready, plan.last) for v in wanted]

    def _n_rows(self, v: Value) -> int:
        n_tokens, n_rows = self._batch_rows
        return n_rows if self._low.is_by_row(v) else n_tokens

    def _receive(self, value: Value, crossing: Crossing) -> None:
        view, n = self._low.received[value.id], self._n_rows(value)
        if not n:
            return
        if isinstance(crossing, DeviceCrossing):
            self.launcher.stream_wait(crossing.ready)
            self.launcher.copy_peer(view.address, crossing.source.launcher, crossing.view.address, 4 * view.ld * n)
            return
        rows = self._staging(f"receive {value.id}", n, view.ld)
        rows[:, : value.width] = crossing.host()
        self.launcher.upload(view.address, rows)

    def download(self, what: str, view: View, n_rows: int, last: bool = True) -> F32:
        """Rows [n_rows, ld] after all launches so far are done; the next step overwrites them."""
        if self._closed:
            raise ClosedError("the model was closed")
        try:
            rows = self._staging(what, n_rows, view.ld)
            if n_rows:
                self.launcher.download(rows, view.address)
            self._last = self.launcher.record()
            wait(self._last.done, self._check_interrupt)
        except BaseException:
            self._break_off()
            raise
        if last:
            self._end()
        return rows

    def _staging(self, what: str, n_rows: int, ld: int) -> F32:
        """Pinned rows [n_rows, ld], kept from step to step and grown on demand."""
        n_bytes = 4 * n_rows * ld
        if what not in self._pinned or len(self._pinned[what]) < n_bytes:
            self._pinned[what] = self.launcher.pinned(max(1, 1 << (n_bytes - 1).bit_length() if n_bytes else 1))
        return self._pinned[what][:n_bytes].view(np.float32).reshape(n_rows, ld)

    def candidates(self, logits: Crossing) -> TopLogits:
        if not self.n_candidates:
            return super().candidates(logits)
        first, stop = self._low.stages[-1].stop, len(self._low.work.planned)
        if self._shape and not self._closed:
            self._steps.run(first, stop, self._shape, self._check_interrupt)
        stride = candidates.stride(self.n_candidates)
        rows = self.download("candidates", View(self._low.chosen, stride), self._batch_rows[1])
        return candidates.read(rows.view(np.int32), self.n_candidates)

    def profile(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a step of a whole program launch by launch; returns each launch's label and seconds."""
        self._begin(batch)
        try:
            assert self._shape is not None
            return self._steps.profile(0, len(self._low.work.planned), self._shape)
        finally:
            self._end()

    def _check(self, batch: Batch) -> None:
        o = self.options
        if len(batch.tokens) > o.max_tokens or len(batch.spans) > o.max_seqs or len(batch.rows) > o.max_rows:
            raise RequestError("the batch was made for larger steps than this executable was compiled for")
        if batch.n_slots != o.n_slots:
            raise RequestError(f"the batch was made for {batch.n_slots} slots, this executable has {o.n_slots}")
        if batch.page_size != o.page_size:
            raise RequestError(f"the batch has pages of {batch.page_size} positions, the KV cache of {o.page_size}")

    # --- interrupts

    def interrupt(self) -> None:
        with self._lock:
            if self._running:
                self._interrupted = True

    def _check_interrupt(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _break_off(self) -> None:
        """End an interrupted step; its enqueued work still runs, and the next step waits for it."""
        self._end()
        with suppress(BackendError):
            self._last = self.launcher.record()

    def _end(self) -> None:
        with self._lock:
            self._running = self._interrupted = False

    # --- the rest

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        if self._closed:
            raise ClosedError("the model was closed")
        if self._last is not None:
            wait(self._last.done, lambda: None)
        self._low.weights.replace(self.launcher, weights)

    def read_page(self, page: int) -> NDArray[np.uint8]:
        return self._read(self._page_parts(page))

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.page_bytes)
        self._write(self._page_parts(page), data)

    def read_slot(self, slot: int) -> NDArray[np.uint8]:
        return self._read(self._slot_parts(slot))

    def write_slot(self, slot: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.slot_bytes, "slot")
        self._write(self._slot_parts(slot), data)

    def _read(self, parts: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """A copy of parts of the device's memory, given by address and bytes."""
        data, start = np.empty(sum(n for _, n in parts), np.uint8), 0
        for address, n in parts:
            self.launcher.download(data[start : start + n], address)
            start += n
        self.launcher.synchronize()
        return data

    def _write(self, parts: Sequence[tuple[int, int]], data: NDArray[np.uint8]) -> None:
        start = 0
        for address, n in parts:
            self.launcher.upload(address, data[start : start + n])
            start += n
        self.launcher.synchronize()  # the data is the caller's

    def _page_parts(self, page: int) -> list[tuple[int, int]]:
        """Address and bytes of a page's keys and values in each cache."""
        if self._closed:
            raise ClosedError("the model was closed")
        caches = zip(self.program.kv, self._low.caches, strict=True)
        return [part for spec, cache in caches for part in kv.page_parts(spec, self.options, cache, page)]

    def _slot_parts(self, slot: int) -> list[tuple[int, int]]:
        """Address and bytes of a slot's state of each recurrent op."""
        if self._closed:
            raise ClosedError("the model was closed")
        states = zip(self._low.slots, self._low.slot_bytes, strict=True)
        return [(state.address + n * slot, n) for state, n in states]

    @property
    def n_graphs(self) -> int:
        """Graphs captured so far; steps of known shapes add none."""
        return self._steps.n_graphs

    def memory(self) -> dict[str, int]:
        if self._closed:
            return dict.fromkeys(self._sizes, 0)
        return {**self._sizes, "other": device.overhead(self.options.device)}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "_steps"):  # not where planning failed
            self._steps.close()
        try:
            for address in self._addresses:
                self.launcher.release(address)
        finally:
            self.launcher.close()
            self._pinned.clear()  # not before the device is done: copies of a broken-off step may still use it


class _Upload:
    """A step's varying inputs, in pinned memory, uploaded in one copy."""

    def __init__(self, a: StepArrays, launcher: Launcher) -> None:
        self._launcher, self._stride = launcher, a.page_stride
        self._address = a.step.address
        buffers = a.all
        n_bytes = a.page_tables.address + a.page_tables.n_bytes - self._address
        self._ints = launcher.pinned(n_bytes).view(np.int32)
        self._ints[:] = 0
        starts = [(b.address - self._address) // 4 for b in buffers]
        parts = [self._ints[s : s + b.n_bytes // 4] for s, b in zip(starts, buffers, strict=True)]
        self._step, self._tokens, self._positions, self._seqs, self._spans, self._rows, *states, self._pages = parts
        self._state_in, self._saves, self._save_after, self._save_slot = states
        self._pages_at = starts[-1]

    def step(self, batch: Batch) -> None:
        n, n_seqs, n_rows, stride = batch.n_tokens, batch.n_seqs, batch.n_rows, self._stride
        self._step[:] = n, n_rows, n_seqs, batch.n_generated
        self._tokens[:n] = batch.tokens[:n]
        self._positions[:n] = batch.positions[:n]
        self._seqs[:n] = batch.seqs[:n]
        self._spans[: 2 * n_seqs] = batch.spans[:n_seqs].reshape(-1)
        self._rows[:n_rows] = batch.rows[:n_rows]
        if batch.n_slots:
            self._states(batch)
        tables = self._pages[: n_seqs * stride].reshape(n_seqs, stride)
        tables[:, : batch.page_tables.shape[1]] = batch.page_tables[:n_seqs]
        self._launcher.upload(self._address, self._ints[: self._pages_at + n_seqs * stride])

    def _states(self, batch: Batch) -> None:
        n_seqs, n_saves = batch.n_seqs, batch.n_saves
        self._state_in[:n_seqs] = batch.state_in[:n_seqs]
        self._saves[: 2 * n_seqs] = batch.saves[:n_seqs].reshape(-1)
        self._save_after[:n_saves] = batch.save_after[:n_saves]
        self._save_slot[:n_saves] = batch.save_slot[:n_saves]
