"""Every op in plain numpy: the oracle that other backends are compared with. It has every op, also those that others
lack."""

from __future__ import annotations

from pyllm.backends.reference.backend import ReferenceBackend

__all__ = ["BACKEND"]

BACKEND = ReferenceBackend()
