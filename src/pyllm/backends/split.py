"""A model split over devices: one executable for each part, run stage by stage."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyllm import backends
from pyllm.backends.base import (
    Batch,
    Crossing,
    DeviceInfo,
    Executable,
    ImportanceSums,
    check_replacement,
)
from pyllm.backends.pages import check_size, joined
from pyllm.backends.placement import Placement, Plan, cut, memory_needed, place
from pyllm.config import ExecutionOptions, PlacementOptions, Progress
from pyllm.errors import ClosedError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.memory import check_free
from pyllm.program import Program, Value
from pyllm.records import dataclass
from pyllm.sampling.top_logits import TopLogits


class PartOutOfMemoryError(OutOfMemoryError):
    """A device's part does not fit its memory."""

    def __init__(self, message: str, device: str) -> None:
        super().__init__(message)
        self.device = device


def compile(
    plan: Plan, tensors: Mapping[str, TensorInfo], execution: ExecutionOptions, devices: Sequence[DeviceInfo]
) -> Executable:
    """Compile each part on its device; with a single device, returns that backend's own executable.

    GPUs are compiled first: they run out of memory soonest. The host's part is checked before, since filling GPUs may
    take minutes. Raises BackendError and PartOutOfMemoryError; then nothing is held.
    """
    if len(plan.programs) > 1:
        _check_host(plan, tensors, execution, devices)
    infos = {device.name: device for device in devices}
    names = sorted(plan.programs, key=lambda name: not infos[name].is_gpu)
    weights = {name: sum(tensors[t].n_bytes for t in plan.programs[name].weights() if t in tensors) for name in names}
    total, before = max(1, sum(weights.values())), 0
    parts: dict[str, Executable] = {}
    with ExitStack() as undo:
        for name in names:
            progress = _share_of(execution.progress, before / total, weights[name] / total)
            options = replace(execution, device=infos[name].index, progress=progress)
            try:
                parts[name] = backends.get(infos[name].backend).compile(plan.programs[name], tensors, options)
            except OutOfMemoryError as error:
                raise PartOutOfMemoryError(f"{name}: {error}" if len(names) > 1 else str(error), name) from error
            undo.callback(parts[name].close)
            before += weights[name]
        executable = parts[names[0]] if len(parts) == 1 else SplitExecutable(plan, parts, tensors, execution)
        undo.pop_all()
    return executable


def compile_placed(
    program: Program,
    tensors: Mapping[str, TensorInfo],
    options: PlacementOptions,
    devices: Sequence[DeviceInfo],
    execution: ExecutionOptions,
) -> tuple[Executable, Placement]:
    """Place a program and compile it; returns the executable and the placement.

    Where a GPU runs out of memory despite the estimate, "auto" tries again with fewer layers. Otherwise raises
    OutOfMemoryError with the number of layers that would fit. Raises what `place` and `compile` raise.
    """
    tried = options
    while True:
        placement = place(program, tensors, tried, devices, execution)
        try:
            return compile(cut(program, placement.device_of_op), tensors, execution, devices), placement
        except PartOutOfMemoryError as error:
            n, on_gpu = placement.n_gpu_layers, any(d.name == error.device and d.is_gpu for d in devices)
            if not n or all(d.is_gpu for d in devices) or not (on_gpu or error.device in options.devices):
                raise
            n = min(n, program.n_layers + 1)  # any number beyond the head means all
            if options.n_gpu_layers != "auto":
                advice = _advice(program, tensors, options, devices, execution, n - 1)
                raise OutOfMemoryError(f"{error}; {advice}") from error
            tried = replace(tried, n_gpu_layers=n - max(1, n // 8))


def _advice(
    program: Program,
    tensors: Mapping[str, TensorInfo],
    options: PlacementOptions,
    devices: Sequence[DeviceInfo],
    execution: ExecutionOptions,
    most: int,
) -> str:
    """Advice for the message: how many layers on GPUs, at most `most`, would fit, the CPU's part included."""
    found = place(program, tensors, replace(options, n_gpu_layers="auto"), devices, execution)
    n = min(found.n_gpu_layers, most)
    placement = place(program, tensors, replace(options, n_gpu_layers=n), devices, execution)
    try:
        _check_host(cut(program, placement.device_of_op), tensors, execution, devices)
    except PartOutOfMemoryError:
        return "with fewer layers on GPUs, the CPU's part does not fit"
    return f"{n} {'layer' if n == 1 else 'layers'} on GPUs (-ngl {n}) should fit"


def _check_host(
    plan: Plan, tensors: Mapping[str, TensorInfo], execution: ExecutionOptions, devices: Sequence[DeviceInfo]
) -> None:
    """Raise PartOutOfMemoryError where a part in host memory takes more than is free."""
    hosts = {device.name for device in devices if not device.is_gpu}
    parts = {name: part for name, part in plan.programs.items() if name in hosts}
    for name, sizes in memory_needed(Plan(parts, ()), tensors, execution, devices).items():
        try:
            check_free(sizes)
        except OutOfMemoryError as error:
            raise PartOutOfMemoryError(f"{name}: {error}", name) from error


def _share_of(progress: Progress | None, start: float, share: float) -> Progress | None:
    """Progress of a part as progress of the whole compilation."""
    if progress is None:
        return None
    report = progress
    return lambda what, done: report(what, start + share * done)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One stage of a step: its inputs, and the values that others read."""

    part: Executable
    stage: int
    receives: tuple[Value, ...]
    wanted: tuple[Value, ...]


class SplitExecutable(Executable):
    """Parts of one program on several devices. A value is sent once to each device that reads it.

    `parts` are by device. An error in one part leaves the others intact: the next step starts anew on all.
    """

    def __init__(
        self,
        plan: Plan,
        parts: Mapping[str, Executable],
        tensors: Mapping[str, TensorInfo],
        options: ExecutionOptions,
    ) -> None:
        self.parts, self.options = dict(parts), options
        self.program = next(iter(plan.programs.values()))
        self._tensors = dict(tensors)
        self._schedule = plan.schedule
        self._turns: dict[tuple[int, ...], list[_Turn]] = {}
        self._closed = self._running = self._stop = False
        self._lock = threading.RLock()  # a signal handler may interrupt the thread that holds it
        sender = {v.id: part for part in self.parts.values() for stage in part.program.stages for v in stage.sends}
        self._last = sender[(self.program.logits or self.program.hidden).id]
        self.n_candidates = self._last.n_candidates
        holders = [part for part in self.parts.values() if part.program.kv]
        if all(part.page_bytes for part in holders):
            self.page_bytes = sum(part.page_bytes for part in holders)
        keepers = [part for part in self.parts.values() if part.program.slots]
        if all(part.slot_bytes for part in keepers):
            self.slot_bytes = sum(part.slot_bytes for part in keepers)
        self.page_format = "; ".join(f"{name}: {_cached(part)}" for name, part in self.parts.items())

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("the model was closed")
        key = tuple(v.id for v in wanted)
        if key not in self._turns:
            self._turns[key] = self._plan_turns(wanted)
        with self._lock:
            self._running, self._stop = True, False
        values: dict[int, Crossing] = {}
        try:
            for turn in self._turns[key]:
                if self._stop:
                    raise KeyboardInterrupt
                crossings = turn.part.run_stage(turn.stage, batch, [values[v.id] for v in turn.receives], turn.wanted)
                values.update((v.id, crossing) for v, crossing in zip(turn.wanted, crossings, strict=True))
        finally:
            with self._lock:
                self._running = False
        if self._stop:
            raise KeyboardInterrupt
        return [values[v.id] for v in wanted]

    def candidates(self, logits: Crossing) -> TopLogits:
        return self._last.candidates(logits)

    def _plan_turns(self, wanted: Sequence[Value]) -> list[_Turn]:
        """The stages up to the last one that computes something wanted or stores a state."""
        needed = {v.id for v in wanted}
        turns: list[_Turn] = []
        for name, number in reversed(self._schedule):
            part = self.parts[name]
            stage = part.program.stages[number]
            sends = tuple(v for v in stage.sends if v.id in needed)
            stores = any(op.keeps_state for op in part.program.ops[stage.start : stage.stop])
            if turns or sends or stores:
                turns.append(_Turn(part, number, stage.receives, sends))
                needed |= {v.id for v in stage.receives}
        return turns[::-1]

    def read_page(self, page: int) -> NDArray[np.uint8]:
        if not self.page_bytes:
            return super().read_page(page)
        return joined([part.read_page(page) for part in self.parts.values() if part.page_bytes])

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.page_bytes)
        start = 0
        for part in self.parts.values():
            if part.page_bytes:
                part.write_page(page, data[start : start + part.page_bytes])
                start += part.page_bytes

    def read_slot(self, slot: int) -> NDArray[np.uint8]:
        if not self.slot_bytes:
            return super().read_slot(slot)
        return joined([part.read_slot(slot) for part in self.parts.values() if part.slot_bytes])

    def write_slot(self, slot: int, data: NDArray[np.uint8]) -> None:
        check_size(data, self.slot_bytes, "slot")
        start = 0
        for part in self.parts.values():
            if part.slot_bytes:
                part.write_slot(slot, data[start : start + part.slot_bytes])
                start += part.slot_bytes

    def interrupt(self) -> None:
        with self._lock:
            self._stop = self._running
            for part in self.parts.values():  # one may still compute what the last stage sends
                part.interrupt()

    def memory(self) -> dict[str, int]:
        """Sums over all devices; `memory_by_device` lists them."""
        out: dict[str, int] = {}
        for sizes in self.memory_by_device().values():
            for purpose, n in sizes.items():
                out[purpose] = out.get(purpose, 0) + n
        return out

    def memory_by_device(self) -> dict[str, dict[str, int]]:
        return {name: part.memory() for name, part in self.parts.items()}

    def importance(self) -> ImportanceSums:
        out: ImportanceSums = {}
        for part in self.parts.values():
            for name, (sums, counts) in part.importance().items():
                before = out.get(name)
                out[name] = (sums, counts) if before is None else (before[0] + sums, before[1] + counts)
        return out

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        """Replace weights in every part that has them. All parts are checked before any is changed."""
        if self._closed:
            raise ClosedError("the model was closed")
        used = {name: set(part.program.weights()) & weights.keys() for name, part in self.parts.items()}
        for name, tensor in weights.items():
            check_replacement(self._tensors[name] if any(name in names for names in used.values()) else None, tensor)
        for name, names in used.items():
            if names and type(self.parts[name]).replace is Executable.replace:
                self.parts[name].replace({})  # says that it cannot
        for device, names in used.items():
            if names:
                self.parts[device].replace({name: weights[name] for name in names})
        self._tensors.update(weights)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._turns.clear()
        with ExitStack() as closing:  # a failing one does not keep the others open
            for part in self.parts.values():
                closing.callback(part.close)


def _cached(part: Executable) -> str:
    """Of which layers a part's pages and slots are, and in what form."""
    layers = sorted({op.layer for op in part.program.ops if op.keeps_state})
    return f"{part.page_format}, layers {','.join(map(str, layers))}" if layers else "none"
