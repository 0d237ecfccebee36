"""The CPU backend: weights packed for SIMD kernels that are compiled for the very processor at hand.

Nothing that computes is imported before a program is compiled.
"""

from __future__ import annotations

from pyllm.backends.cpu.backend import CPUBackend

__all__ = ["BACKEND"]

BACKEND = CPUBackend()
