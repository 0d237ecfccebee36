"""Compiled splitting of texts into words, by a pre-tokenizer's expressions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.jit.compiler import kernel
from pyllm.tokenizers.compiled.automaton import Automaton
from pyllm.tokenizers.compiled.code import Arguments

SPLIT = kernel("tokenizers.compiled.kernels.split", "split")
_NEEDS_CLASS, _NEEDS_START, _NEEDS_STEP = 2, 3, 4
_CHUNK = 1 << 18  # pieces that are made at once
_WHY = 14


class Splitter:
    """Expressions applied one after the other, as `pretokenizers.splitter` does. Raises Unsupported."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._automata = [Automaton(pattern) for pattern in patterns]

    def ends(self, data: bytes, ends: NDArray[np.int32]) -> NDArray[np.int32]:
        """Ends of the words of UTF-8 texts that end at `ends`. Raises TooLarge."""
        for automaton in self._automata:
            ends = _apply(automaton, data, ends)
        return ends


def _apply(automaton: Automaton, data: bytes, ends: NDArray[np.int32]) -> NDArray[np.int32]:
    out = np.empty(min(len(data), _CHUNK) + 4, np.int32)
    a = automaton
    call = Arguments(SPLIT, data, ends, len(ends), a.classes, a.starts, a.steps, out, len(out), 0, 1, *[0] * 7)
    slots = call.slots
    made = []
    while True:
        call()
        why, what, which = slots[_WHY:].tolist()
        if why == _NEEDS_CLASS:
            a.add_class(what)
        elif why == _NEEDS_START:
            a.add_start(what)
        elif why == _NEEDS_STEP:
            a.add_step(what, which)
        else:
            made.append(out[: slots[13]].copy())
            slots[13] = 0
            if why == 0:
                return np.concatenate(made) if len(made) > 1 else made[0]
