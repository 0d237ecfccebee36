"""CUDA devices without a card: kernels are built by a C++ compiler and run on the processor, for tests.

`PYLLM_CUDA_EMULATOR=n` makes n of them for the cuda backend, which asks `EMULATOR`; with
`PYLLM_CUDA_EMULATOR_STRESS=seed` they reorder and delay work as far as a card may (`stressed`). `open_emulated` gives a
launcher without the backend.
"""

from __future__ import annotations

from pyllm import env
from pyllm.backends.base import DeviceInfo
from pyllm.backends.cuda.launch import Facts
from pyllm.backends.cuda.launcher import Launcher
from pyllm.errors import BackendError
from pyllm.testing.cuda.emulated import MAX_SHARED, MEMORY, N_SM, EmulatedLauncher, compiler_path, open_emulated

__all__ = ["EMULATOR", "EmulatedLauncher", "Emulator", "open_emulated"]


class Emulator:
    """The emulated devices of the environment, as `pyllm.backends.cuda.device.Emulator`."""

    def devices(self) -> list[DeviceInfo]:
        compiler_path()
        return [
            DeviceInfo(f"cuda{i}", "cuda", i, "emulated on the processor", MEMORY, MEMORY, True)
            for i in range(env.cuda_emulator())
        ]

    def facts(self, index: int) -> Facts:
        return Facts(N_SM, MAX_SHARED)

    def open(self, index: int) -> Launcher:
        n = env.cuda_emulator()
        if not 0 <= index < n:
            raise BackendError(f"there is no emulated device cuda{index}; PYLLM_CUDA_EMULATOR={n} makes {n}")
        return open_emulated(index)


EMULATOR = Emulator()
