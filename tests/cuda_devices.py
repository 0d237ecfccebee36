"""A device for the cuda backend while tests run: the card, or where there is none, one emulated on the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from pyllm import backends
from pyllm.errors import BackendError

_EMULATOR = "PYLLM_CUDA_EMULATOR"


@contextmanager
def cuda_devices() -> Iterator[None]:
    """Meanwhile there is a device."""
    if _EMULATOR in os.environ or _has_card():
        yield
        return
    os.environ[_EMULATOR] = "1"
    try:
        yield
    finally:
        del os.environ[_EMULATOR]


@cache
def _has_card() -> bool:
    return unavailable("cuda") is None


def unavailable(name: str) -> str | None:
    """Why a backend cannot be used now, None when it can."""
    try:
        probe = backends.get(name).probe()
    except BackendError as error:
        return str(error)
    return None if probe.available else probe.reason
