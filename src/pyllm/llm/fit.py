"""Prediction of a model's memory: weights, KV cache and work memory by layer and device, without loading it.

Sizes come from the backends, which plan the program as for running it and allocate nothing. The process's own memory is
measured now: this process, with the model's tokenizer and all imports that running needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import TemplateError, TokenizerError
from pyllm.jit.memory import resident
from pyllm.llm.loading import Model, capacities, encoder_options, of_program, record
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.archs import Architecture
    from pyllm.archs.heads import HeadModel
    from pyllm.backends.base import DeviceInfo
    from pyllm.backends.placement import Placement
    from pyllm.gguf.tensor import TensorInfo
    from pyllm.program import Program

_TYPICAL = 120 << 20


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that guesses for another one, or a head of it, and its capacities (`speculating.beside`)."""

    file: Model
    options: ExecutionOptions
    head: HeadModel | None = None


@dataclass(frozen=True, slots=True)
class LayerFit:
    """Bytes of a layer on its devices."""

    name: str
    """"embedding", "0", "1", …, "output"."""
    weights: int
    kv: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """Bytes of a device's part of the model."""

    device: DeviceInfo
    weights: int
    kv: int
    work: int
    other: int
    """Bytes of libraries and contexts; for the CPU, all memory of the process beside the model's part."""
    held: int = 0
    """The part of `other` that this process holds already, so that it is not in the free memory."""

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.work + self.other

    @property
    def fits(self) -> bool:
        """Whether it fits the free memory, if that is known."""
        return self.device.memory_free is None or self.total - self.held <= self.device.memory_free

    @property
    def is_unified(self) -> bool:
        """Whether its memory is the host's, and counted in the process's figure as well."""
        return _is_unified(self.device)


@dataclass(frozen=True, slots=True)
class Fit:
    """The prediction: peaks with a full context, full prefill steps and all sequences in decode."""

    layers: tuple[LayerFit, ...]
    devices: tuple[DeviceFit, ...]
    """GPUs first; the CPU, whose figure is the process's, is always included."""
    n_gpu_layers: int
    n_layers: int

    @property
    def process(self) -> int:
        """Peak memory of the process, bytes."""
        return self.devices[-1].total

    @property
    def fits(self) -> bool:
        return all(device.fits for device in self.devices)


def fit(
    file: Model,
    n_ctx: int,
    options: ExecutionOptions,
    backend: str = "auto",
    placement: PlacementOptions | None = None,
    draft: Draft | None = None,
) -> Fit:
    """Place a model as `load` would, and predict its memory; with that of a draft model beside it.

    `options` as from `loading.execution_options`. Raises ModelError, BackendError, RequestError.
    """
    from pyllm.backends import devices

    placement = placement or PlacementOptions()
    chosen = devices.choose(backend, placement)
    with ExitStack() as stack:
        kept = _prepared(file, chosen, stack)
        found = _fit(file, n_ctx, options, placement, chosen, draft)
        del kept
    return found


def parts(
    file: Model,
    n_ctx: int,
    options: ExecutionOptions,
    backend: str = "auto",
    placement: PlacementOptions | None = None,
    draft: Draft | None = None,
) -> tuple[DeviceFit, ...]:
    """The model's own part of each device's memory, as `fit` predicts it: weights, cache and work memory, and what a
    device's libraries take; not the process's other memory. Quicker than `fit`: nothing is loaded. Raises as `fit`.
    """
    from pyllm.backends import devices

    placement = placement or PlacementOptions()
    chosen = devices.choose(backend, placement)
    placed = _place(file, n_ctx, options, placement, chosen, draft)
    return _beside(placed, draft, n_ctx, placement, chosen)


def _fit(
    file: Model,
    n_ctx: int,
    options: ExecutionOptions,
    placement: PlacementOptions,
    chosen: Sequence[DeviceInfo],
    draft: Draft | None,
) -> Fit:
    model = _place(file, n_ctx, options, placement, chosen, draft)
    architecture, tensors, options, placed, _ = model
    used = _beside(model, draft, n_ctx, placement, chosen)
    beside = resident() or _TYPICAL  # the plans that backends have just made are the ones that they would keep
    return Fit(
        layers=_layers(architecture.program, placed.device_of_op, tensors, options, chosen),
        devices=_with_process(used, chosen, beside),
        n_gpu_layers=min(placed.n_gpu_layers, architecture.n_layers + 1),
        n_layers=architecture.n_layers,
    )


_Placed = tuple["Architecture", Mapping[str, "TensorInfo"], ExecutionOptions, "Placement", tuple[DeviceFit, ...]]


def _place(
    file: Model,
    n_ctx: int,
    options: ExecutionOptions,
    placement: PlacementOptions,
    chosen: Sequence[DeviceInfo],
    draft: Draft | None = None,
) -> _Placed:
    """The model placed on the chosen devices, its capacities, and what its parts take there; with what the head of
    `draft` reads."""
    from pyllm import backends
    from pyllm.backends.placement import cut, place

    features = None if draft is None or draft.head is None else draft.head.features
    architecture, tensors = record(file, n_ctx, features=features)
    program = architecture.program
    options = capacities(options, program, n_ctx)
    chosen = of_program(program, chosen)
    placed = place(program, tensors, replace(placement, devices=()), chosen, options)
    by_device = cut(program, placed.device_of_op).programs
    used = tuple(_device_fit(d, by_device[d.name], tensors, options) for d in chosen if d.name in by_device)
    if program.encoder is not None:
        needed = backends.get(chosen[0].backend).memory_beside(
            program.encoder, tensors, encoder_options(options, n_ctx), program, tensors
        )
        more = (needed[purpose] for purpose in ("weights", "kv", "work"))
        used = (_more(used[0], *more),)
    return architecture, tensors, options, placed, used


def _beside(
    model: _Placed,
    draft: Draft | None,
    n_ctx: int,
    placement: PlacementOptions,
    chosen: Sequence[DeviceInfo],
) -> tuple[DeviceFit, ...]:
    """The devices' parts with those of a draft model or a head, whose libraries are there already."""
    used = model[-1]
    if draft is None:
        return used
    found: Sequence[DeviceFit]
    if draft.head is not None:
        found = [_head_fit(model, draft, draft.head, n_ctx)]
    else:
        found = _place(draft.file, n_ctx, draft.options, placement, chosen)[-1]
    more = {f.device.name: f for f in found}
    both = [_more(f, m.weights, m.kv, m.work) if (m := more.pop(f.device.name, None)) else f for f in used]
    return tuple(sorted([*both, *more.values()], key=lambda f: not f.device.is_gpu))


def _more(f: DeviceFit, weights: int, kv: int, work: int) -> DeviceFit:
    """A device's part with another one's bytes."""
    return replace(f, weights=f.weights + weights, kv=f.kv + kv, work=f.work + work)


def _head_fit(model: _Placed, draft: Draft, head: HeadModel, n_ctx: int) -> DeviceFit:
    """What a head takes on its device, beside the model's part."""
    from pyllm import backends

    architecture, its, options, placed, used = model
    device = head_device([f.device for f in used])
    program, tensors = head.record(n_ctx)
    options = replace(draft.options, max_seqs=options.max_seqs, max_rows=options.max_seqs, device=device.index)
    backend = backends.get(device.backend)
    if len(set(placed.device_of_op)) == 1:
        needed = backend.memory_beside(program, tensors, options, architecture.program, its)
    else:
        needed = backend.memory_needed(program, tensors, options)
    return DeviceFit(device, needed["weights"], needed["kv"], needed["work"], needed.get("other", 0))


def head_device(devices: Sequence[DeviceInfo]) -> DeviceInfo:
    """The device of a head, of those that a model uses: the last GPU, which has the output matrix, or the host."""
    gpus = [device for device in devices if device.is_gpu]
    return (gpus or list(devices))[-1]


def _device_fit(
    device: DeviceInfo, program: Program, tensors: Mapping[str, TensorInfo], options: ExecutionOptions
) -> DeviceFit:
    needed = _needed(device, program, tensors, options)
    return DeviceFit(device, needed["weights"], needed["kv"], needed["work"], needed.get("other", 0))


def _needed(
    device: DeviceInfo, program: Program, tensors: Mapping[str, TensorInfo], options: ExecutionOptions
) -> dict[str, int]:
    from pyllm import backends

    if not device.is_gpu or _is_unified(device):
        # Output rows that no step uses are never touched, so they take no memory of the process.
        options = replace(options, max_rows=options.max_seqs + options.max_drafts)
    options = replace(options, device=device.index)
    return backends.get(device.backend).memory_needed(program, tensors, options)


def _is_unified(device: DeviceInfo) -> bool:
    from pyllm import backends

    return backends.get(device.backend).unified_memory


def _layers(
    program: Program,
    homes: Sequence[str],
    tensors: Mapping[str, TensorInfo],
    options: ExecutionOptions,
    devices: Sequence[DeviceInfo],
) -> tuple[LayerFit, ...]:
    """Figures of each layer: the program is cut between all layers, as if each had a device of its own."""
    from pyllm.backends.placement import cut

    infos = {device.name: device for device in devices}
    pieces = cut(program, [f"{op.layer} {home}" for op, home in zip(program.ops, homes, strict=True)]).programs
    sums: dict[int, tuple[int, int, tuple[str, ...]]] = {}
    for piece, part in pieces.items():
        layer, home = piece.split(" ", 1)
        needed = _needed(infos[home], part, tensors, options)
        weights, kv, names = sums.get(int(layer), (0, 0, ()))
        sums[int(layer)] = weights + needed["weights"], kv + needed["kv"], (*names, home)
    titles = {-1: "embedding", program.n_layers: "output"}
    return tuple(
        LayerFit(titles.get(layer, str(layer)), weights, kv, tuple(sorted(set(names))))
        for layer, (weights, kv, names) in sorted(sums.items())
    )


def _with_process(used: Sequence[DeviceFit], chosen: Sequence[DeviceInfo], beside: int) -> tuple[DeviceFit, ...]:
    """Figures of the devices, the process's last: the host's part adds to the process's other memory."""
    from pyllm import backends

    host = [f for f in used if not f.device.is_gpu]
    gpus = [f for f in used if f.device.is_gpu]
    device = host[0].device if host else next((d for d in chosen if not d.is_gpu), None)
    device = device or backends.get("reference").devices()[0]
    process = DeviceFit(
        device,
        weights=sum(f.weights for f in host),
        kv=sum(f.kv for f in host),
        work=sum(f.work for f in host),
        other=beside + sum(f.other for f in host) + sum(f.total for f in gpus if f.is_unified),
        held=beside,
    )
    return (*gpus, process)


def _prepared(file: Model, devices: Sequence[DeviceInfo], stack: ExitStack) -> list[Any]:
    """Bring this process to the state before it allocates a model: tokenizer and template loaded, all imports done, a
    first kernel loaded, cards opened (until `stack` ends)."""
    from pyllm import backends, chat, tokenizers

    for name in ("pyllm.engine", "pyllm.llm", "numpy.random"):  # the last one is for sampling
        import_module(name)
    for device in devices:
        stack.enter_context(backends.get(device.backend).warm_up(device.index))
    try:
        tokenizer = tokenizers.from_gguf(file.metadata)
        return [tokenizer, chat.from_gguf(file.metadata, tokenizer)]
    except (TokenizerError, TemplateError):
        return []  # a model without them runs, too
