"""Steps on mlx. Few tokens: a compiled function of a step's arrays, one for each shape of step. More tokens: op by op,
evaluated in pieces of about 50 ms, between which a step can be interrupted.

A compiled step cannot be interrupted, so shapes whose compiled step took more than 0.1 s run op by op.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Crossing, Executable, slot_bytes
from pyllm.backends.mlx import device, metal
from pyllm.backends.mlx.errors import device_errors
from pyllm.backends.mlx.lowering import Inputs, Lowering, Reads, Step
from pyllm.backends.mlx.recurrent import Group, kernel_works, plan_groups
from pyllm.backends.mlx.worker import Worker
from pyllm.backends.pages import check_size, joined
from pyllm.backends.plan.graph import last_uses
from pyllm.errors import ClosedError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Cached, Program, Recurrent, Value, inputs
from pyllm.records import dataclass

_COMPILED_TOKENS = 16
"""Most tokens of a compiled step."""
_FUNCTIONS = 64
"""Compiled steps kept."""
_PIECE, _TOO_LONG = 0.05, 0.1
"""Seconds: of work between two checks for interrupts; longest of a compiled step."""

T = TypeVar("T")
StepFunction = Callable[[list[mx.array], Inputs, list[Any], list[Any]], tuple[list[mx.array], list[Any], list[Any]]]


@dataclass(frozen=True, slots=True)
class MLXCrossing(Crossing):
    """A computed value in mlx's memory."""

    array: mx.array

    def host(self) -> NDArray[np.float32]:
        return np.asarray(self.array)


@dataclass(frozen=True, slots=True)
class _StagePlan:
    """Values that a stage reads and leaves, by id, its KV caches and recurrent states."""

    needs: tuple[int, ...]
    """Values of earlier stages, or received ones."""
    leaves: frozenset[int]
    """Values computed in the stage and read later."""
    caches: tuple[int, ...]
    states: tuple[int, ...]


class MLXExecutable(Executable):
    """Weights and KV are constants and arguments of compiled steps. `caches[i]`: keys and values of KV cache i, each
    [slots, n_kv_heads, dim]. `states[i][slot]`: recurrent state i; it takes memory from the first save on."""

    def __init__(self, lowering: Lowering, compiled: bool) -> None:
        """Packs the weights. `compiled`: steps of few tokens are compiled. Raises BackendError, OutOfMemoryError."""
        self._most_compiled = _COMPILED_TOKENS if compiled else 0
        self.lowering, self.program, self.options = lowering, lowering.program, lowering.options
        self._stream, self._worker = device.take_stream(), Worker()
        self._interrupted = self._closed = False
        self._functions: OrderedDict[tuple[Any, ...], StepFunction | None] = OrderedDict()
        self._pace: dict[int, tuple[int, float]] = {}
        """By size of a step (bits of its number of tokens): ops of a piece, and seconds of the step."""
        self._values: dict[int, mx.array] = {}
        self._step: tuple[Reads, tuple[Group, ...], Inputs] = ({}, (), {})
        self._of_output_rows = self.program.of_output_rows()
        self._plans = _plan_stages(self.program)
        self.n_traces = 0
        """Compiled steps so far."""
        try:
            with device_errors("taking weights and cache"), mx.stream(self._stream):
                device.keep_free(lowering.sizes()["work"])
                device.keep_resident()
                lowering.pack()
                self.caches = self._new_caches()
                self._zeros = [mx.zeros(spec.shape) for spec in self.program.slots]
                mx.eval(self._zeros)
                self.states = [[zeros] * self.options.n_slots for zeros in self._zeros]
                if self.states:
                    kernel_works()  # a compiled step cannot try it
            self.page_bytes = sum(int(a.nbytes) for cache in self.caches for a in cache) // self.options.n_pages
            self.slot_bytes = slot_bytes(self.program)
            self.page_format = f"mlx 1, {'metal' if metal.available() else 'cpu'}"
        except BaseException:
            self.close()
            raise

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("the executable was closed")
        if stage == 0:
            self._interrupted = False
        return self._worker.run(lambda: self._run_stage(stage, batch, given, wanted), self.interrupt)

    def _run_stage(
        self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]
    ) -> list[Crossing]:
        few = batch.n_tokens <= self._most_compiled
        try:
            with device_errors("in a step"), mx.stream(self._stream):
                if stage == 0:
                    reads, arrays = self.lowering.inputs(batch, rounded=few)
                    groups = plan_groups(batch) if self.program.slots else ()
                    self._values, self._step = {}, (reads, groups, {name: mx.array(a) for name, a in arrays.items()})
                self._take(stage, given)
                ids = tuple(value.id for value in wanted)
                if few and self._pace.get(batch.n_tokens.bit_length(), (0, 1.0))[1] < _TOO_LONG:
                    out = self._run_compiled(stage, batch, ids)
                else:
                    out = self._run_plainly(stage, batch, ids)
        except Exception:
            self._recover()
            raise
        return [MLXCrossing(array) for array in out]

    def read_page(self, page: int) -> NDArray[np.uint8]:
        def read() -> NDArray[np.uint8]:
            with device_errors("reading a page"), mx.stream(self._stream):
                return _bytes_of(a[self._slots(page)] for cache in self.caches for a in cache)

        return self._between(read)

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.page_bytes)

        def write() -> None:
            start = 0
            with device_errors("writing a page"), mx.stream(self._stream):
                for i, cache in enumerate(self.caches):
                    for a in cache:
                        dtype = np.float16 if a.dtype == mx.float16 else np.float32
                        n = int(a.nbytes) // self.options.n_pages
                        part = data[start : start + n].view(dtype).reshape(self.options.page_size, *a.shape[1:])
                        a[self._slots(page)] = mx.array(part)
                        start += n
                    mx.eval(self.caches[i])

        self._between(write)

    def read_slot(self, slot: int) -> NDArray[np.uint8]:
        def read() -> NDArray[np.uint8]:
            with device_errors("reading states"), mx.stream(self._stream):
                return _bytes_of(states[slot] for states in self.states)

        return self._between(read)

    def write_slot(self, slot: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.slot_bytes, "slot")

        def write() -> None:
            start = 0
            with device_errors("writing states"), mx.stream(self._stream):
                for states, zeros in zip(self.states, self._zeros, strict=True):
                    states[slot] = mx.array(data[start : start + zeros.nbytes].view(np.float32).reshape(zeros.shape))
                    start += zeros.nbytes

        self._between(write)

    def _slots(self, page: int) -> slice:
        return slice(page * self.options.page_size, (page + 1) * self.options.page_size)

    def _between(self, work: Callable[[], T]) -> T:
        """Do some work in the thread of the steps, between two."""
        if self._closed:
            raise ClosedError("the executable was closed")
        return self._worker.run(work, lambda: None)

    def interrupt(self) -> None:
        self._interrupted = True

    def memory(self) -> dict[str, int]:
        weights = sum(m.n_bytes for m in self.lowering.matrices.values())
        weights += sum(int(v.nbytes) for v in self.lowering.vectors.values())
        kv = sum(int(a.nbytes) for cache in self.caches for a in cache)
        kv += self.slot_bytes * (len(self.states[0]) if self.states else 0)
        return {"weights": weights, "kv": kv, "work": int(mx.get_cache_memory())}

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        if self._closed:
            raise ClosedError("the executable was closed")
        with device_errors("taking weights"), mx.stream(self._stream):
            self.lowering.replace(weights)
        self._worker.run(self._functions.clear, self.interrupt)  # weights are constants of theirs

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._worker.close()
        self.lowering.close()
        self._functions.clear()
        self._values, self._step, self.caches, self.states = {}, ({}, (), {}), [], []
        device.return_stream(self._stream)
        mx.clear_cache()

    # --- steps

    def _take(self, stage: int, given: Sequence[Crossing]) -> None:
        for value, crossing in zip(self.program.stages[stage].receives, given, strict=True):
            if isinstance(crossing, MLXCrossing):
                self._values[value.id] = crossing.array
            else:
                self._values[value.id] = mx.array(crossing.host())

    def _run_compiled(self, stage: int, batch: Batch, wanted: tuple[int, ...]) -> list[mx.array]:
        """Run a step as a compiled function; the first step of a shape runs op by op."""
        reads, groups, arrays = self._step
        key = (stage, wanted, batch.n_tokens, batch.n_rows, groups, *reads.values())
        if key not in self._functions:
            self._functions[key] = None
            if len(self._functions) > _FUNCTIONS:
                self._functions.popitem(last=False)
            return self._run_plainly(stage, batch, wanted)
        self._functions.move_to_end(key)
        function = self._functions[key]
        is_new = function is None
        if function is None:
            function = self._functions[key] = self._compile(stage, wanted, reads, groups, batch.n_rows)
        self._check_interrupt()
        plan = self._plans[stage]
        began = time.perf_counter()
        needs, states = [self._values[i] for i in plan.needs], self._states_before(plan, batch)
        results, caches, saved = function(needs, arrays, [self.caches[i] for i in plan.caches], [*states.values()])
        for i, cache in zip(plan.caches, caches, strict=True):
            self.caches[i] = tuple(cache)
        del caches
        mx.eval(results, [self.caches[i] for i in plan.caches], saved)
        self._keep(batch, dict(zip(plan.states, saved, strict=True)))
        if not is_new:  # else the time was that of compiling
            self._note(batch, len(self.program.ops), time.perf_counter() - began)
        ids = (*wanted, *sorted(plan.leaves))
        self._values.update(zip(ids, results, strict=True))
        return results[: len(wanted)]

    def _compile(
        self, stage: int, wanted: tuple[int, ...], reads: Reads, groups: tuple[Group, ...], n_rows: int
    ) -> StepFunction:
        plan, part = self._plans[stage], self.program.stages[stage]
        self.n_traces += 1

        def function(
            needs: list[mx.array], arrays: Inputs, caches: list[Any], states: list[Any]
        ) -> tuple[list[mx.array], list[Any], list[Any]]:
            held = {i: tuple(cache) for i, cache in zip(plan.caches, caches, strict=True)}
            before, values = dict(zip(plan.states, states, strict=True)), dict(zip(plan.needs, needs, strict=True))
            step = Step(self.lowering, arrays, reads, groups, n_rows, held, before, values)
            for op in self.program.ops[part.start : part.stop]:
                step.do(op, op.out.id in self._of_output_rows)
            results = [step.values[i] for i in (*wanted, *sorted(plan.leaves))]
            return results, [list(held[i]) for i in plan.caches], [step.saved[i] for i in plan.states]

        compiled: StepFunction = mx.compile(function)
        return compiled

    def _run_plainly(self, stage: int, batch: Batch, wanted: tuple[int, ...]) -> list[mx.array]:
        """Op by op, in pieces."""
        plan, part = self._plans[stage], self.program.stages[stage]
        reads, groups, arrays = self._step
        caches, states = dict(enumerate(self.caches)), self._states_before(plan, batch)
        step = Step(self.lowering, arrays, reads, groups, batch.n_rows, caches, states, dict(self._values))
        kept, last_use = {*wanted, *plan.leaves, *self._values}, last_uses(self.program.ops[part.start : part.stop])
        at_once = self._pace.get(batch.n_tokens.bit_length(), (1, 0.0))[0]
        touched: list[Sequence[mx.array]] = []
        began = piece_began = time.perf_counter()
        n = 0
        stop = self._stop_at(stage, wanted)
        for at in range(part.start, stop):
            op = self.program.ops[at]
            if n >= at_once:
                mx.eval(list(step.values.values()), touched)
                now = time.perf_counter()
                at_once = _paced(at_once, now - piece_began)
                touched, n, piece_began = [], 0, now
            if n == 0:
                self._check_interrupt()
            step.do(op, op.out.id in self._of_output_rows)
            if isinstance(op, Cached):
                touched.append(self.caches[op.cache])
            elif isinstance(op, Recurrent):
                touched.append(step.saved[op.state])
            for spent in last_use[at - part.start] - kept:
                step.values.pop(spent, None)
            n += 1
        out = [step.values[i] for i in wanted]
        mx.eval(out, [step.values[i] for i in plan.leaves if i in step.values], touched)
        self._keep(batch, step.saved)
        self._note(batch, at_once, time.perf_counter() - began)
        self._values.update((i, step.values[i]) for i in (*wanted, *plan.leaves) if i in step.values)
        return out

    def _states_before(self, plan: _StagePlan, batch: Batch) -> dict[int, list[mx.array]]:
        """A stage's recurrent states before each sequence. The old states of saves are given up."""
        slots = batch.state_in[: batch.n_seqs].tolist()
        before = {i: [self.states[i][slot] if slot >= 0 else self._zeros[i] for slot in slots] for i in plan.states}
        self._keep(batch, {i: [self._zeros[i]] * batch.n_saves for i in plan.states})
        return before

    def _keep(self, batch: Batch, states: Mapping[int, Sequence[mx.array]]) -> None:
        """Put the states of saves into their slots."""
        for i, saved in states.items():
            for slot, state in zip(batch.save_slot[: batch.n_saves].tolist(), saved, strict=True):
                self.states[i][slot] = state

    def _stop_at(self, stage: int, wanted: tuple[int, ...]) -> int:
        """The op before which the stage may end: in the last stage, nothing after the wanted values is needed."""
        part = self.program.stages[stage]
        if stage < len(self.program.stages) - 1 or not wanted:
            return part.stop
        computed = [at for at in range(part.start, part.stop) if self.program.ops[at].out.id in wanted]
        return max(computed, default=part.stop - 1) + 1

    def _note(self, batch: Batch, at_once: int, seconds: float) -> None:
        self._pace[batch.n_tokens.bit_length()] = at_once, seconds

    def _check_interrupt(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _new_caches(self) -> list[tuple[mx.array, mx.array]]:
        dtype = mx.float16 if self.options.kv_dtype == "f16" else mx.float32
        slots = self.options.n_pages * self.options.page_size
        caches = [
            (mx.zeros((slots, spec.n_kv_heads, spec.head_dim), dtype),
             mx.zeros((slots, spec.n_kv_heads, spec.v_head_dim), dtype))
            for spec in self.program.kv
        ]  # fmt: skip
        mx.eval(caches)
        return caches

    def _recover(self) -> None:
        """After an error of the device, make caches valid again; those whose content is lost are empty."""
        self._values = {}
        with mx.stream(self._stream):
            for i, cache in enumerate(self.caches):
                try:
                    mx.eval(cache)
                except (RuntimeError, MemoryError):
                    self.caches[i] = tuple(mx.zeros(a.shape, a.dtype) for a in cache)


def _bytes_of(arrays: Iterable[mx.array]) -> NDArray[np.uint8]:
    """A copy of arrays of float32 or float16, one after another."""
    return joined([np.asarray(a).reshape(-1).view(np.uint8) for a in arrays])


def _paced(at_once: int, seconds: float) -> int:
    """Ops of the next piece, by the time of the last one."""
    if seconds > 2 * _PIECE:
        return max(1, int(at_once * _PIECE / seconds))
    return 2 * at_once if seconds < _PIECE / 2 else at_once


def _plan_stages(program: Program) -> list[_StagePlan]:
    parts = [program.ops[s.start : s.stop] for s in program.stages]
    used = [{v.id for op in part for v in inputs(op)} for part in parts]
    made = [{op.out.id for op in part} for part in parts]
    plans = []
    for i, part in enumerate(parts):
        later = set().union(*used[i + 1 :])
        sent = {v.id for stage in program.stages[i + 1 :] for v in stage.sends}
        caches = tuple(dict.fromkeys(op.cache for op in part if isinstance(op, Cached)))
        states = tuple(op.state for op in part if isinstance(op, Recurrent))
        own = {v.id for v in program.stages[i].sends}
        needs, leaves = tuple(sorted((used[i] | own) - made[i])), frozenset(made[i] & (later | sent))
        plans.append(_StagePlan(needs, leaves, caches, states))
    return plans
