"""`pyllm.testing`, and which backends run here: a test of one that does not is skipped, with the reason."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from cuda_devices import cuda_devices, unavailable
from pyllm import backends
from pyllm.testing import *  # noqa: F403


@cache
def why_not(name: str) -> str | None:
    """Why a backend does not run here, None when it does."""
    with cuda_devices():
        return unavailable(name)


def need(name: str) -> None:
    """Skip the test, with the reason, unless the backend runs here."""
    if (reason := why_not(name)) is not None:
        pytest.skip(f"backend {name}: {reason}")


def each(*names: str) -> list[Any]:
    """Backends (all, without names) for `parametrize`; one that does not run here is skipped, with the reason."""
    reasons = {name: why_not(name) for name in names or backends.names()}
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=f"backend {name}: {reason}")] if reason else [])
        for name, reason in reasons.items()
    ]
