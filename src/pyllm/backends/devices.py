"""Which devices a model may use: the GPUs that are there, and the processor for the rest.

Backends say what they have (`Backend.gpus`, `Backend.shares_models`). A machine without a GPU notices nothing: a
package that is not installed is not imported, only looked for.
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
    """The devices that a model's layers may be placed on, GPUs first, the processor last.

    `backend`: "auto" (all GPUs that are there, and the cpu), one with GPUs (these, and the cpu for what does not fit),
    or one that is used alone ("cpu", "reference"). `options.devices` picks some of them, and with "auto" also what is
    no GPU but stands in for one. Raises BackendError where the backend is not available, and for a device that is not
    there.
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
    """The GPUs of this machine that a backend can use, and what stands in for one and is one of `names`."""
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
    """The cpu, where its backend can be used: with a GPU that holds everything, it need not."""
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
