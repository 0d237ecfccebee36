"""Forks and the interpreter's end: engines are told of both."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm.engine.engine import Engine

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def watch(engine: Engine) -> None:
    _engines.add(engine)


def _after_fork() -> None:
    for engine in list(_engines):
        engine.after_fork()


def _at_exit() -> None:
    """End all engines: a daemon thread in compiled code would else be frozen there at exit."""
    for engine in list(_engines):
        engine.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
