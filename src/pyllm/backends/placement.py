"""Placement of ops on devices, and the program of each device.

`place` gives every op a device, with llama.cpp's options: the last layers go to GPUs, patterns move the ops of certain
weights. `cut` makes a program with stages for each device, and the order in which stages run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pyllm import backends
from pyllm.backends.base import DeviceInfo, kv_bytes
from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import BackendError, RequestError
from pyllm.gguf.tensor import TensorInfo, file_name
from pyllm.program import Cached, Op, Program, Recurrent, Stage, Value, inputs, weight_names
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.store import StoreKV
from pyllm.records import dataclass

SPARE = 0.03
"""Share of a GPU's free memory that "auto" keeps free, for other processes and for fragmentation."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The name of the device that computes each op, in the program's order."""

    device_of_op: tuple[str, ...]
    n_gpu_layers: int
    """Layers on GPUs, counted from the end, the output head as one; one more includes the token table."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A part of the program for each device, and the order of their stages: (device, number of its stage)."""

    programs: Mapping[str, Program]
    schedule: tuple[tuple[str, int], ...]


def place(
    program: Program,
    tensors: Mapping[str, TensorInfo],
    options: PlacementOptions,
    devices: Sequence[DeviceInfo],
    execution: ExecutionOptions,
) -> Placement:
    """Choose a device for each op. `devices` are all available ones, the CPU among them.

    "auto" takes as many layers as fit the free memory of every GPU, as its backend counts it, and all layers where no
    other device could take the rest. Several GPUs share the layers by `tensor_split`; without it, their bytes by free
    memory. An op without weights runs on its layer's device, or where all its inputs were moved to. Raises RequestError
    for invalid patterns, for patterns without a match and for a number of shares that is not that of the GPUs;
    BackendError for unknown devices.
    """
    site = _Site.of(options, devices)
    moves = _moves(program, options, site)
    by_size = len(site.gpus) > 1 and not options.tensor_split
    sizes = _sizes(program, tensors, moves, execution) if by_size else {}

    def placed(n: int) -> tuple[str, ...]:
        return _follow(program, _layers(program, n, site, sizes), moves)

    most = program.n_layers + 2 if site.gpus else 0
    if options.n_gpu_layers == "auto" and site.host is not None:
        n = _most_that_fit(most, lambda n: fits(cut(program, placed(n)), tensors, execution, site.others))
    else:
        n = most if isinstance(options.n_gpu_layers, str) else min(_whole(options.n_gpu_layers, program), most)
    return Placement(placed(n), n)


def cut(program: Program, device_of_op: Sequence[str]) -> Plan:
    """The parts of a program, and the order of their stages.

    A stage takes every op of its device that does not wait for another device; a value is sent to a device at most
    once.
    """
    names = list(dict.fromkeys(device_of_op))
    if len(names) == 1:
        return Plan({names[0]: program}, ((names[0], 0),))
    parts = {name: _Part() for name in names}
    home = {op.out.id: name for op, name in zip(program.ops, device_of_op, strict=True)}
    left = [(op, name, inputs(op)) for op, name in zip(program.ops, device_of_op, strict=True)]
    done: set[int] = set()
    schedule = []
    while left:
        name, later = left[0][1], []
        part = parts[name]
        schedule.append((name, part.begin()))
        for item in left:
            op, where, reads = item
            if where == name and all(v.id in done or v.id in part.own for v in reads):
                part.add(op, [v for v in reads if home[v.id] != name])
            else:
                later.append(item)
        done |= part.own
        left = later
    wanted = {v.id for v in program.results}.union(*(part.received for part in parts.values()))
    return Plan({name: part.program(program, wanted) for name, part in parts.items()}, tuple(schedule))


def memory_needed(
    plan: Plan, tensors: Mapping[str, TensorInfo], execution: ExecutionOptions, devices: Sequence[DeviceInfo]
) -> dict[str, dict[str, int]]:
    """Bytes that each device's part takes, by purpose. Raises BackendError."""
    infos = {device.name: device for device in devices}
    out = {}
    for name, part in plan.programs.items():
        info = infos[name]
        out[name] = backends.get(info.backend).memory_needed(part, tensors, replace(execution, device=info.index))
    return out


def fits(
    plan: Plan, tensors: Mapping[str, TensorInfo], execution: ExecutionOptions, devices: Sequence[DeviceInfo]
) -> bool:
    """Whether the parts of these devices fit their free memory; other devices are not checked."""
    free = {device.name: device.memory_free for device in devices}
    some = Plan({name: part for name, part in plan.programs.items() if free.get(name) is not None}, ())
    needed = memory_needed(some, tensors, execution, devices)
    return all(sum(sizes.values()) <= (1 - SPARE) * (free[name] or 0) for name, sizes in needed.items())


@dataclass(frozen=True, slots=True)
class _Site:
    """Host and GPUs of a placement, with each GPU's share of the layers."""

    host: DeviceInfo | None
    gpus: tuple[DeviceInfo, ...]
    """GPUs that take layers, in order."""
    shares: tuple[float, ...]
    """Each GPU's share of the layers; the sum is 1."""
    devices: tuple[DeviceInfo, ...]

    @property
    def others(self) -> list[DeviceInfo]:
        return [device for device in self.devices if device != self.host]

    @classmethod
    def of(cls, options: PlacementOptions, devices: Sequence[DeviceInfo]) -> _Site:
        named = [_find(name, devices) for name in options.devices]
        host = next((d for d in devices if d.name == "cpu"), None)
        host = host or next((d for d in devices if not d.is_gpu and d not in named), None)
        gpus = [d for d in named or devices if d != host and (named or d.is_gpu)]
        shares = options.tensor_split
        if shares and gpus and len(shares) != len(gpus):
            raise RequestError(f"give a share of the layers for each GPU, {_names(gpus)}, not {len(shares)}")
        if gpus and not 0 <= options.main_gpu < len(gpus):
            raise RequestError(
                f"there is no GPU {options.main_gpu} for main_gpu; counted from 0 they are {_names(gpus)}"
            )
        if gpus and not shares:
            gpus.append(gpus.pop(options.main_gpu))  # the last one has the output head
            shares = tuple(float(d.memory_free or 0) for d in gpus)
            shares = shares if all(shares) else (1.0,) * len(gpus)
        total = sum(shares)
        return cls(host, tuple(gpus), tuple(s / total for s in shares) if total else (), tuple(devices))

    def device(self, name: str) -> str:
        return _find(name, self.devices).name

    def host_name(self) -> str:
        if self.host is None:
            raise BackendError(
                "there is no CPU backend here for the layers that are not on GPUs; put all layers on GPUs"
            )
        return self.host.name


def _find(name: str, devices: Sequence[DeviceInfo]) -> DeviceInfo:
    for device in devices:
        if device.name == name.lower():
            return device
    raise BackendError(f"there is no device {name!r} among those that are used: {_names(devices)}")


def _names(devices: Sequence[DeviceInfo]) -> str:
    return ", ".join(device.name for device in devices)


def _whole(n: int, program: Program) -> int:
    """The requested number of layers; all layers and the head include the token table."""
    n = max(0, n)
    return program.n_layers + 2 if n > program.n_layers else n


def _sizes(
    program: Program, tensors: Mapping[str, TensorInfo], moves: Mapping[int, str], execution: ExecutionOptions
) -> dict[int, int]:
    """Estimated bytes of each layer on its device, without ops moved elsewhere; -1 is the token table."""
    sizes = dict.fromkeys(range(-1, program.n_layers + 1), 0)
    states = kv_bytes(program, execution) // max(1, len(program.states))
    for i, op in enumerate(program.ops):
        if i not in moves:
            weights = sum(tensors[name].n_bytes for name in weight_names(op) if name in tensors)
            stores = op.keeps_state and not (isinstance(op, Attention) and op.k is None)
            sizes[min(op.layer, program.n_layers)] += weights + states * stores
    return sizes


def _layers(program: Program, n: int, site: _Site, sizes: Mapping[int, int]) -> dict[int, str]:
    """Device of each layer (-1: the token table, n_layers: the head). The last `n` go to GPUs, which share them by
    `sizes`, or by number where `sizes` is empty."""
    first = max(program.n_layers + 1 - n, 0)
    total = sum(sizes.get(layer, 1) for layer in range(first, program.n_layers + 1))
    out, before = {}, 0.0
    for layer in range(program.n_layers + 1):
        size = sizes.get(layer, 1)
        out[layer] = _gpu((before + size / 2) / max(1, total), site) if layer >= first else site.host_name()
        before += size * (layer >= first)
    out[-1] = out[0] if n > program.n_layers + 1 else site.host_name()
    return out


def _gpu(position: float, site: _Site) -> str:
    """The GPU of a position, from 0 to 1, within the layers on GPUs."""
    end = 0.0
    for gpu, share in zip(site.gpus, site.shares, strict=True):
        end += share
        if position < end:
            return gpu.name
    return site.gpus[-1].name


def _moves(program: Program, options: PlacementOptions, site: _Site) -> dict[int, str]:
    """Devices of ops, by number, that do not run on their layer's device."""
    patterns, unused = [], {}
    for text, name in options.override_tensors:
        try:
            patterns.append((re.compile(text), text, site.device(name)))
        except re.error as error:
            raise RequestError(f"{text!r} is not a regular expression: {error}") from None
        unused[text] = name
    out = {}
    for i, op in enumerate(program.ops):
        names = [file_name(name) for name in weight_names(op)]
        found = [(text, device) for regex, text, device in patterns if any(regex.search(name) for name in names)]
        for text, _ in found:
            unused.pop(text, None)
        if found:
            out[i] = found[0][1]
        elif _stays(op, options):
            out[i] = site.host_name()
    if unused:
        text = next(iter(unused))
        raise RequestError(f"no tensor of the model matches {text!r}; names are like blk.0.ffn_down.weight")
    return out


def _stays(op: Op, options: PlacementOptions) -> bool:
    """Whether the options keep an op on the CPU."""
    if isinstance(op, MixtureOfExperts):
        return op.layer < options.n_cpu_moe
    return isinstance(op, Cached) and not options.kv_offload


def _follow(program: Program, layers: Mapping[int, str], moves: Mapping[int, str]) -> tuple[str, ...]:
    """Device of each op: where it was moved to, or its layer's.

    An op without weights or state follows its inputs of the same layer if all were moved to one device, so that an
    activation between moved products does not cross. Attention that reads another op's KV cache runs where the cache
    is.
    """
    out: list[str] = []
    where: dict[int, tuple[int, str]] = {}
    caches: dict[int, str] = {}
    for i, op in enumerate(program.ops):
        device = moves.get(i, layers[min(op.layer, program.n_layers)])
        if isinstance(op, StoreKV):
            caches[op.cache] = device
        elif isinstance(op, Attention):
            device = caches.get(op.cache, device) if op.k is None else device
            caches[op.cache] = device
        if i not in moves and not weight_names(op) and not op.keeps_state:
            sources = {where[v.id] for v in inputs(op)}
            if len(sources) == 1:
                layer, source = next(iter(sources))
                device = source if layer == op.layer else device
        where[op.out.id] = op.layer, device
        out.append(device)
    return tuple(out)


def _most_that_fit(most: int, fit: Callable[[int], bool]) -> int:
    """The largest n up to `most` for which `fit(n)`; fewer layers never take more memory. 0 is taken to fit."""
    if fit(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def _renumbered(op: Op, caches: list[int], slots: list[int]) -> Op:
    """The op of a part that has these states of the whole."""
    if isinstance(op, Cached):
        return replace(op, cache=caches.index(op.cache))
    return replace(op, state=slots.index(op.state)) if isinstance(op, Recurrent) else op


class _Part:
    """A device's ops and stages, under construction."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.starts: list[int] = []
        self.receives: list[list[Value]] = []
        self.own: set[int] = set()
        self.received: set[int] = set()

    def begin(self) -> int:
        """Begin a stage; returns its number."""
        self.starts.append(len(self.ops))
        self.receives.append([])
        return len(self.starts) - 1

    def add(self, op: Op, foreign: Sequence[Value]) -> None:
        """Add an op to the stage, with the values of other devices that it reads."""
        for v in foreign:
            if v.id not in self.received:
                self.received.add(v.id)
                self.receives[-1].append(v)
        self.ops.append(op)
        self.own.add(op.out.id)

    def program(self, whole: Program, wanted: set[int]) -> Program:
        """The part of `whole`; `wanted` values are sent."""
        caches = list(dict.fromkeys(op.cache for op in self.ops if isinstance(op, Cached)))
        slots = list(dict.fromkeys(op.state for op in self.ops if isinstance(op, Recurrent)))
        ops = tuple(_renumbered(op, caches, slots) for op in self.ops)
        stops = [*self.starts[1:], len(ops)]
        cuts = tuple(
            Stage(start, stop, tuple(given), tuple(op.out for op in ops[start:stop] if op.out.id in wanted))
            for start, stop, given in zip(self.starts, stops, self.receives, strict=True)
        )
        return replace(
            whole,
            ops=ops,
            states=(*(whole.kv[cache] for cache in caches), *(whole.slots[slot] for slot in slots)),
            cuts=cuts,
            given_rows=whole.of_output_rows() & self.received,
        )
