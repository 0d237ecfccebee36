"""CUDA devices, real or emulated, listed without opening one: for `probe`, placement and planning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from pyllm import env
from pyllm.backends.base import DeviceInfo, Probe
from pyllm.backends.cuda import driver
from pyllm.errors import BackendError

if TYPE_CHECKING:
    from pyllm.backends.cuda.launch import Facts
    from pyllm.backends.cuda.launcher import Launcher

_CONTEXT, _CONTEXT_PER_SM = 200 << 20, 2 << 20
"""Bytes that a process's context takes on a card: the driver's own, and stacks of 1 KiB for the 2048 threads that each
multiprocessor can hold."""


class Emulator(Protocol):
    """The emulator of devices, used where the environment asks for it."""

    def devices(self) -> list[DeviceInfo]:
        """All emulated devices. Raises BackendError where the emulator cannot work."""

    def facts(self, index: int) -> Facts:
        """Facts that plans depend on."""

    def open(self, index: int) -> Launcher:
        """The device of this index. Raises BackendError where there is none."""


def emulator() -> Emulator | None:
    """The emulator of `pyllm.testing`, where `PYLLM_CUDA_EMULATOR` asks for it. It depends on this package, which
    therefore imports it by name and only then."""
    if not env.cuda_emulator():
        return None
    return cast(Emulator, importlib.import_module("pyllm.testing.cuda").EMULATOR)


def probe() -> Probe:
    """Whether a device is available, and if not, what would help. Does not raise."""
    try:
        found = _found()
    except BackendError as error:
        return Probe("cuda", False, reason=str(error))
    first = found[0]
    details = {d.name: d.description for d in found} if emulator() else _details()
    return Probe("cuda", True, device=first.description, memory_free=first.memory_free, details=details)


def _details() -> dict[str, str]:
    """Names of cards, and versions of the software."""
    found = {
        f"cuda{c.index}": f"{c.name}, compute capability {c.capability[0]}.{c.capability[1]}, {c.n_sm} multiprocessors"
        for c in driver.cards()
    }
    return found | driver.versions()


def devices() -> list[DeviceInfo]:
    """All devices by index; none where `probe` gives a reason. Does not raise."""
    try:
        return _found()
    except BackendError:
        return []


def overhead(index: int) -> int:
    """Bytes that opening a device takes beside allocations: an estimate for a card, 0 where emulated."""
    if emulator():
        return 0
    return next((_CONTEXT + _CONTEXT_PER_SM * c.n_sm for c in driver.cards() if c.index == index), _CONTEXT)


def facts(index: int) -> Facts:
    """Facts that plans depend on. Raises BackendError for an unknown index."""
    from pyllm.backends.cuda.launch import Facts  # every start looks for cards, few plan for one

    if emulated := emulator():
        return emulated.facts(index)
    for card in driver.cards():
        if card.index == index:
            return Facts(card.n_sm, card.max_shared)
    raise BackendError(f"there is no card cuda{index}")


def _found() -> list[DeviceInfo]:
    """The devices, at least one. Raises BackendError."""
    if emulated := emulator():
        return emulated.devices()
    cards = driver.cards()
    driver.check_cupy()
    return [DeviceInfo(f"cuda{c.index}", "cuda", c.index, c.name, c.memory_free, c.memory_total, True) for c in cards]
