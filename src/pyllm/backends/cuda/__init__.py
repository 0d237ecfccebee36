"""CUDA: NVIDIA cards through cupy, or devices emulated on the processor for tests (`PYLLM_CUDA_EMULATOR`)."""

from __future__ import annotations

from pyllm.backends.cuda.backend import CUDABackend

BACKEND = CUDABackend()

__all__ = ["BACKEND", "CUDABackend"]
