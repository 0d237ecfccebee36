"""A deterministic automaton, built on demand, that matches like a backtracking engine.

A state is a list of program positions where a match may continue, in order of preference. A step tells whether a match
ends before the next character, and gives the remaining positions; those after a position where the preferred match ends
are dropped. So the last end seen when no position remains is the end of the preferred match. Tables grow on demand:
states, and classes of characters that no set distinguishes, by blocks of 256.
"""

from __future__ import annotations

import threading

import numpy as np

from pyllm.tokenizers.compiled.expressions import Sets, program

STRIDE = 64
_MOST_STATES = 4096
_ENDS = 1  # the class of both ends of a piece
_BLOCK = 256


class TooLarge(ValueError):
    """More states or classes than the tables hold."""


class Automaton:
    """One expression's tables: `classes` uint8 [0x110000], `starts` int32 [STRIDE], `steps` int32 [states, STRIDE].

    Entries are 0 until `add_class`, `add_start` or `add_step` computes them. Several threads may read them meanwhile.
    Raises Unsupported.
    """

    def __init__(self, expression: str) -> None:
        self._sets = Sets()
        self._program = program(expression, self._sets)
        self._looks_back = any(step.kind == "before" for step in self._program)
        self.classes = np.zeros(0x110000, np.uint8)
        self.starts = np.zeros(STRIDE, np.int32)
        self.steps = np.zeros((_MOST_STATES, STRIDE), np.int32)
        self._numbers: dict[int, int] = {}  # classes by the sets that they are in
        self._members = [0, 0]  # sets of a class, a bit each; of none at the ends
        self._states: dict[tuple[tuple[int, ...], int], int] = {}
        self._places: list[tuple[tuple[int, ...], int]] = [((), 0)]  # state 0 is none
        self._lock = threading.Lock()

    def add_class(self, code: int) -> None:
        """Compute the classes of a block of characters."""
        with self._lock:
            first = code // _BLOCK * _BLOCK
            kinds = []
            for sets in self._sets.of("".join(map(chr, range(first, first + _BLOCK)))):
                if sets not in self._numbers:
                    self._numbers[sets] = len(self._members)
                    self._members.append(sets)
                    if len(self._members) > STRIDE:
                        raise TooLarge("classes")
                kinds.append(self._numbers[sets])
            self.classes[first : first + _BLOCK] = kinds

    def add_start(self, before: int) -> None:
        """Compute the state in which a match begins after a character of class `before`."""
        with self._lock:
            self.starts[before] = self._state((0,), before)

    def add_step(self, state: int, kind: int) -> None:
        """Compute the step from a state by a character of class `kind`."""
        with self._lock:
            places, before = self._places[state]
            found: dict[int, None] = {}  # what takes the character, in order
            ends = self._follow(places, before, kind, found)
            inside = self._members[kind] if kind != _ENDS else 0
            after = tuple(dict.fromkeys(p + 1 for p in found if inside >> self._program[p].a & 1))
            self.steps[state, kind] = self._state(after, kind) * 4 + 2 * ends + 1

    def _follow(self, places: tuple[int, ...], before: int, after: int, found: dict[int, None]) -> bool:
        """Follow positions to those that consume a character; True if the match ends on the way, which stops there."""
        seen: set[int] = set()
        todo = list(reversed(places))
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            step = self._program[place]
            if step.kind == "match":
                return True
            if step.kind == "set":
                found[place] = None
            elif step.kind == "split":
                todo += [step.b, step.a]
            elif self._holds(step.kind, step.a, step.b, before if step.kind == "before" else after):
                todo.append(place + 1)
        return False

    def _holds(self, kind: str, number: int, negated: int, neighbour: int) -> bool:
        if kind == "end":
            return neighbour == _ENDS
        return bool(self._members[neighbour] >> number & 1) != bool(negated)

    def _state(self, places: tuple[int, ...], before: int) -> int:
        if not places:
            return 0
        key = (places, before if self._looks_back else 0)
        if key not in self._states:
            if len(self._places) == _MOST_STATES:
                raise TooLarge("states")
            self._states[key] = len(self._places)
            self._places.append(key)
        return self._states[key]
