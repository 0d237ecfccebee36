"""The choice between plain and compiled code for a tokenizer's texts: compiled code once there is enough text.

A short text never waits: kernels are compiled, and the vocabulary's tables are built, in a thread beside the plain
code.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyllm.errors import BackendError

if TYPE_CHECKING:
    from pyllm.jit.compiler import Kernel

SHORT = 1024  # characters up to which the plain code is as quick
_SOON = 1 << 17  # characters encoded so far after which it is worth making tables
_NOW = 1 << 16  # characters of a text that is worth waiting for tables
_WORTH_COMPILING = 1 << 20  # characters of a text that is worth waiting for kernels


class Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of all texts, and their number up to the end of each text.

        Raises ValueError for cases that need the plain code.
        """


Recipe = Callable[[], tuple[Sequence["Kernel"], Callable[[], Encoder]]]
"""Kernels, and a function that makes an encoder once they are loaded. Raises ValueError where there can be none."""


class Switch:
    """The compiled encoder of a tokenizer, if there is one. Safe to use from several threads."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._encoder: Encoder | None = None
        self._seen = 0
        self._over = False  # made, or given up
        self._building = threading.Lock()
        self._thread: threading.Thread | None = None

    def encode(self, texts: Sequence[str]) -> tuple[list[int], list[int]] | None:
        """As `Encoder.encode`; None: use the plain code."""
        n = sum(map(len, texts))
        self._seen += n
        if not self._over:
            self._consider(n)
        if self._encoder is None or n <= SHORT:
            return None
        try:
            return self._encoder.encode(texts)
        except ValueError as error:
            self._give_up(error)
            return None

    def _consider(self, n: int) -> None:
        """Whether to build the encoder before a text of `n` characters, or beside it."""
        if n >= _WORTH_COMPILING or (n >= _NOW and self._kernels_are_there()):
            self.build()
        elif self._seen >= _SOON and self._thread is None:
            self._thread = threading.Thread(target=self.build, name="pyllm-tokenizer-kernels", daemon=True)
            self._thread.start()

    def build(self) -> bool:
        """Build the encoder, compiling missing kernels; returns whether there is one."""
        with self._building:
            if not self._over:
                try:
                    from pyllm.jit.compiler import LIBRARY

                    kernels, make = self._recipe()
                    LIBRARY.load(kernels)
                    self._encoder = make()
                except (ValueError, OverflowError, BackendError, ImportError, OSError, MemoryError) as error:
                    self._give_up(error)
                self._over = True
        return self._encoder is not None

    def _kernels_are_there(self) -> bool:
        try:
            from pyllm.jit.compiler import LIBRARY

            return LIBRARY.is_compiled(self._recipe()[0])
        except (ValueError, ImportError, OSError):
            return False

    def _give_up(self, why: BaseException) -> None:
        """Use the plain code from now on; its results are the same."""
        self._encoder, self._over = None, True
        logging.getLogger("pyllm").debug("texts are encoded by Python code, not by compiled code: %s", why)
