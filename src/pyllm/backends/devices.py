"""Devices that a model may use: GPUs, and the processor for the rest.

Backends report theirs (`Backend.gpus`, `Backend.shares_models`). On a machine without a GPU nothing is imported for it:
the packages are only looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pyllm.errors import BackendError

if TYPE_CHECKING:
    from pyllm.backends.base import Backend, DeviceInfo
    from pyllm.config import PlacementOptions

AUTO = "auto"
_NO_GPU = ("none", "cpu")


def choose(backend: str, options: PlacementOptions) -> list[DeviceInfo]:
    """Devices for a model's layers, GPUs first, the processor last.

    `backend`: "auto" (all GPUs, and the cpu), a backend with GPUs (these, and the cpu for the rest), or one that is
    used alone ("cpu", "reference"). `options.devices` names some of them; with "auto" also devices that are not GPUs
    but take layers like one. Raises BackendError where the backend is not available, and for an unknown device.
    """
    if backend != AUTO and not _shares_models(backend):
        device = _usable(backend)[0]
        if {name.lower() for name in options.devices} - {device.name, *_NO_GPU}:
            names = ", ".join(options.devices)
            raise BackendError(f"backend {backend!r} is used alone, not with {names}; leave out one or the other")
        return [device]
    if backend == AUTO:
        gpus = list_gpus(options.devices)
    else:
        gpus = [replace(d, is_gpu=True) for d in _usable(backend)]
    if options.devices:
        gpus = _named(options.devices, gpus)
    if not gpus:
        return [_usable("cpu")[0]]
    return [*gpus, *_processor()]


def list_gpus(names: Sequence[str] = ()) -> list[DeviceInfo]:
    """GPUs of this machine that a backend can use, plus devices named in `names` that are not GPUs (mlx's CPU
    build)."""
    found: list[DeviceInfo] = []
    for backend in importable():
        named = [word.lower() for word in names if word.lower().startswith(backend.name)]
        there = backend.devices() if named and backend.installed() and backend.shares_models() else backend.gpus()
        found += [replace(device, is_gpu=True) for device in there if device.is_gpu or device.name in named]
    return found


def importable() -> Iterator[Backend]:
    """All backends but those that cannot be imported; `pyllm doctor` says why they cannot."""
    from pyllm import backends

    for name in backends.names():
        try:
            yield backends.get(name)
        except BackendError:
            continue


def _shares_models(backend: str) -> bool:
    from pyllm import backends

    return backends.get(backend).shares_models()


def _usable(backend: str) -> Sequence[DeviceInfo]:
    """A backend's devices, at least one. Raises BackendError with the reason where there is none."""
    from pyllm import backends

    chosen = backends.get(backend)
    found = chosen.devices()
    if not found:
        raise BackendError(f"backend {backend!r} cannot be used here: {chosen.probe().reason}")
    return found


def _processor() -> Sequence[DeviceInfo]:
    """The cpu, where its backend is available; a GPU that holds the whole model does not need it."""
    from pyllm import backends

    try:
        return backends.get("cpu").devices()[:1]
    except BackendError:
        return []


def _named(names: Sequence[str], gpus: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    """The GPUs of these names, in that order."""
    if len(names) == 1 and names[0].lower() in _NO_GPU:
        return []
    by_name = {device.name: device for device in gpus}
    missing = [name for name in names if name.lower() not in by_name]
    if missing:
        there = f"there are {', '.join(by_name)}" if by_name else "there is none; `pyllm doctor` says why"
        raise BackendError(f"there is no GPU {', '.join(missing)} here: {there}")
    return [by_name[name] for name in dict.fromkeys(name.lower() for name in names)]
