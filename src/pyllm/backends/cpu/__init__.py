"""The CPU backend: weights packed for SIMD kernels that are compiled for this processor.

Computing code is imported only when a program is compiled.
"""

from __future__ import annotations

from pyllm.backends.cpu.backend import CPUBackend

__all__ = ["BACKEND"]

BACKEND = CPUBackend()
