"""Fixtures of the tests of backends."""

from __future__ import annotations

from collections.abc import Iterator

import oracle
import pytest


@pytest.fixture(scope="module", autouse=True)
def cuda_devices() -> Iterator[None]:
    """A device for the cuda backend: without a card, one that is emulated.

    By file: what ran longer would still be there in tests that the same process goes on to, elsewhere.
    """
    with oracle.cuda_devices():
        yield
