"""Fixtures of the tests of backends."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _with_cuda(cuda_devices: None) -> None:
    """All of them have a CUDA device."""
