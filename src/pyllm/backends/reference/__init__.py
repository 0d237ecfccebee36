"""Every op in numpy, plainly: the oracle that other backends are compared with, and what runs an op they lack."""

from __future__ import annotations

from pyllm.backends.reference.backend import ReferenceBackend

__all__ = ["BACKEND"]

BACKEND = ReferenceBackend()
