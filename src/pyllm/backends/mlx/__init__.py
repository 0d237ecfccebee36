"""mlx: Metal on Apple's processors, and mlx's CPU build elsewhere; mlx is imported when it is needed."""

from __future__ import annotations

from pyllm.backends.mlx.backend import MLXBackend

__all__ = ["BACKEND"]

BACKEND = MLXBackend()
