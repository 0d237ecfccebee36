"""Running one CUDA kernel on numpy arrays: on the emulator, or on a card in tests marked `gpu`.

    device = cuda_tools.emulator()                                  # or cuda_tools.card(); skips where there is none
    cuda_tools.run(device, "norm.cu", "norm_rows", (n, 1, 1), 128, {"WIDTH": 64, …}, x=x, y=y, width=64, eps=1e-6)

Keyword arguments are the kernel's Args in order: an array stands for a pointer to its copy on the device (and holds
what the kernel left there afterwards), None for a null pointer, a Python int or bool for an int, a float for a float.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from pyllm.backends.cuda.launch import fill, struct
from pyllm.backends.cuda.launcher import Launcher
from pyllm.errors import BackendError


@cache
def emulator() -> Launcher:
    """The emulated device that tests share, or skip."""
    from pyllm.testing.cuda.emulated import open_emulated

    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("emulating CUDA takes a C++ compiler")
    return open_emulated()


@cache
def card() -> Launcher:
    """The first card, or skip."""
    pytest.importorskip("cupy")
    from pyllm.backends.cuda.card import CudaLauncher

    try:
        return CudaLauncher(0)
    except BackendError as error:
        pytest.skip(str(error))


DEVICES = [emulator, pytest.param(card, marks=pytest.mark.gpu)]
"""For `pytest.mark.parametrize("device", DEVICES)`: call it to get the launcher."""


def run(
    device: Launcher,
    source: str,
    name: str,
    grid: tuple[int, int, int],
    block: int,
    defines: Mapping[str, int | str] | None = None,
    shared: int = 0,
    **args: Any,
) -> None:
    """Run a kernel once and bring every array back."""
    (kernel,) = device.kernels(source, defines or {}, [name])
    places: dict[str, int] = {}
    try:
        for key, value in args.items():
            if isinstance(value, np.ndarray):
                places[key] = device.allocate(value.nbytes)
                device.upload(places[key], value, wait=True)
        kinds = {
            k: "float" if isinstance(v, float) else "int" if isinstance(v, int) else "ptr" for k, v in args.items()
        }
        packed = fill(struct(**kinds), **{k: places.get(k, v) for k, v in args.items()})
        device.launch(kernel, grid, block, packed, shared)
        for key, place in places.items():
            if args[key].flags.writeable:
                device.download(args[key], place, wait=True)
    finally:
        device.synchronize()
        for place in places.values():
            device.release(place)
