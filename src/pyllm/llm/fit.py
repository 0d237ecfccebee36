"""What a model would take where: weights, KV and work memory by layer and device, before anything is loaded.

Sizes come from the backends themselves, which plan the program as for running it and take no memory. What else the
process takes is measured here and now: this process, with the model's tokenizer and everything that running imports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import TemplateError, TokenizerError
from pyllm.jit.memory import resident
from pyllm.llm.loading import Model, check_placement, record

if TYPE_CHECKING:
    from pyllm.backends.base import DeviceInfo
    from pyllm.gguf.tensor import TensorInfo
    from pyllm.program import Program

_TYPICAL = 120 << 20


@dataclass(frozen=True, slots=True)
class LayerFit:
    """What a layer takes on the devices that compute it. Bytes."""

    name: str
    """"embedding", "0", "1", …, "output"."""
    weights: int
    kv: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """What a device's part of the model takes. Bytes."""

    device: DeviceInfo
    weights: int
    kv: int
    work: int
    other: int
    """Libraries and contexts; of the CPU: all that the process takes beside its part of the model."""
    held: int = 0
    """What this process has of that already, so that it is not part of what is free."""

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.work + self.other

    @property
    def fits(self) -> bool:
        """Whether it is free, as far as that is known."""
        return self.device.memory_free is None or self.total - self.held <= self.device.memory_free

    @property
    def is_unified(self) -> bool:
        """Whether it has the process's own memory, whose figure counts it, too."""
        return _is_unified(self.device)


@dataclass(frozen=True, slots=True)
class Fit:
    """The whole prediction: peaks when the context is full, prompts fill their steps and all sequences generate."""

    layers: tuple[LayerFit, ...]
    devices: tuple[DeviceFit, ...]
    """GPUs first; the CPU, whose figure is that of the process, is always there, even if it computes nothing."""
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
) -> Fit:
    """Place a model as loading it would, and say what it takes.

    `options` as `loading.execution_options` gives them. Raises ModelError, BackendError, RequestError.
    """
    from pyllm.backends import devices

    placement = placement or PlacementOptions()
    check_placement(placement)
    chosen = devices.choose(backend, placement)
    with ExitStack() as stack:
        kept = _prepared(file, chosen, stack)
        found = _fit(file, n_ctx, options, placement, chosen)
        del kept
    return found


def _fit(
    file: Model, n_ctx: int, options: ExecutionOptions, placement: PlacementOptions, chosen: Sequence[DeviceInfo]
) -> Fit:
    from pyllm.backends.placement import cut, place

    architecture, tensors = record(file, n_ctx)
    program = architecture.program
    placed = place(program, tensors, replace(placement, devices=()), chosen, options)
    homes = placed.device_of_op
    by_device = cut(program, homes).programs
    used = [_device_fit(d, by_device[d.name], tensors, options) for d in chosen if d.name in by_device]
    beside = resident() or _TYPICAL  # the plans that backends just made are what they would have kept
    return Fit(
        layers=_layers(program, homes, tensors, options, chosen),
        devices=_with_process(used, chosen, beside),
        n_gpu_layers=min(placed.n_gpu_layers, architecture.n_layers + 1),
        n_layers=architecture.n_layers,
    )


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
        # Rows of logits that no step asks for are never touched, and so take no memory of the process.
        options = replace(options, max_rows=options.max_seqs)
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
    """Each layer's own figures: the program is cut between all layers, as if each ran on a device of its own."""
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
    """The devices' figures, the process's last: what runs on the host adds to what it takes anyway."""
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
    """Bring this process to where it would be before it takes memory for a model: with the model's tokenizer and
    template, everything imported that running imports, a first kernel loaded, and cards opened (until `stack` ends).
    """
    from pyllm import backends, chat, tokenizers

    for name in ("pyllm.engine", "pyllm.llm", "numpy.random"):  # the last is what sampling draws from
        import_module(name)
    for device in devices:
        stack.enter_context(backends.get(device.backend).warm_up(device.index))
    try:
        tokenizer = tokenizers.from_gguf(file.metadata)
        return [tokenizer, chat.from_gguf(file.metadata, tokenizer)]
    except (TokenizerError, TemplateError):
        return []  # a model without them runs, too
