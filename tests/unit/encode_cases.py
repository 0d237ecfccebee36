"""Matrices that encoders are tried on, made of integers alone so that they are the same everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 12, 1280


def uniform(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1, a hash (splitmix64) of their place and the seed."""
    z = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 32)
    z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**24


def _bell(seed: int) -> NDArray[np.float64]:
    return sum(uniform((ROWS, COLUMNS), 16 * seed + i) for i in range(6)) / 3 - 1


def matrices() -> dict[str, NDArray[np.float32]]:
    """By name: near a normal distribution; with tails; positive; uneven columns. All are halves."""
    bell = 0.05 * _bell(1)
    tails = 2 * _bell(2) ** 3
    found = {
        "bell": bell,
        "tails": tails,
        "positive": 0.01 + np.abs(bell),
        "uneven": bell * 4 ** (4 * uniform((1, COLUMNS), 9) - 2),
    }
    return {name: x.astype(np.float16).astype(np.float32) for name, x in found.items()}


def importances() -> dict[str, NDArray[np.float32] | None]:
    """None, and one that spans three orders of magnitude."""
    return {"none": None, "steep": (1000 ** uniform((COLUMNS,), 77)).astype(np.float32)}
