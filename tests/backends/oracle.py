"""`pyllm.testing`, and which backends run here: a test of one that does not is skipped, with the reason."""

from __future__ import annotations

from functools import cache

import pytest

from cuda_devices import cuda_devices, unavailable
from pyllm import backends
from pyllm.testing import *  # noqa: F403


def available() -> list[str]:
    """Backends that run on this machine."""
    return [name for name in backends.names() if why_not(name) is None]


@cache
def why_not(name: str) -> str | None:
    """Why a backend does not run here, None when it does."""
    with cuda_devices():
        return unavailable(name)


def need(name: str) -> None:
    """Skip the test, with the reason, unless the backend runs here."""
    if (reason := why_not(name)) is not None:
        pytest.skip(f"backend {name}: {reason}")
