"""Kernels of the CPU backend in Python, for numba; the modules are imported only where they are compiled."""

from __future__ import annotations

from pyllm.jit import compiler
from pyllm.jit.compiler import Kernel


def kernel(module: str, name: str, **params: int | str) -> Kernel:
    """Name a kernel of this folder; nothing is imported or compiled."""
    return compiler.kernel(f"backends.cpu.kernels.{module}", name, **params)
