"""A thread with a large stack: llguidance compiles grammars recursively, and a stack that is full ends the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_BYTES = 64 << 20  # address space; what is not used takes no memory
_starting = threading.Lock()


def on_large_stack(function: Callable[[], T]) -> T:
    """The result of a function that recurses as deep as the bounds on schemas and grammars allow."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="pyllm-grammar", daemon=True)
    with _starting:
        before = threading.stack_size(_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return done.result()
