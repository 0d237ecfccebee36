"""The steps from logits to a token: one class in a file each, found by name.

A step says everything about itself: its settings, with default, neutral value, bounds and flags; how many of the
largest logits it needs; where it is described; and the compiled function that does it. `SamplingParams`, the flags of
the command line, the checks and the reference are made from that. A new step is a new file here, and a run of
`python tools/write_settings.py`.

Nothing here imports numpy or numba: `pyllm run --help` reads the settings.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, Literal

from pyllm.config.setting import Setting
from pyllm.errors import RequestError

PLAIN = "pyllm"
"""Where a setting comes from, if it is of no paper."""
N_PARAMETERS = 7
"""Numbers that a step may hand to its compiled function."""


class Step:
    """A step; a subclass's docstring says what it does and where it is from.

    `params` are a `SamplingParams`.
    """

    settings: ClassVar[tuple[Setting, ...]] = ()
    kind: ClassVar[Literal["logits", "narrowing", "shape", "last"]] = "narrowing"
    """logits: makes tokens more or less likely, one by one. narrowing: leaves some out. shape: changes the whole
    distribution. last: chooses. A greedy request takes the logits steps only; with mirostat, nothing is narrowed."""
    default_place: ClassVar[int] = 0
    """Steps run in the order of these, unless `samplers` says otherwise."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names in `samplers`."""
    source: ClassVar[str] = PLAIN
    """The paper, or who thought of it."""

    @classmethod
    def name(cls) -> str:
        """Its name in `samplers`: that of its module."""
        return cls.__module__.rpartition(".")[2]

    @staticmethod
    def is_on(params: Any) -> bool:
        """Whether the settings differ from what leaves logits as they are."""
        raise NotImplementedError

    @staticmethod
    def check(params: Any) -> None:
        """Raise RequestError for settings that are each in bounds, yet make no sense together."""

    @staticmethod
    def pack(params: Any) -> tuple[float, ...]:
        """The numbers that the compiled function takes, `N_PARAMETERS` at most."""
        return ()

    @staticmethod
    def n_needed(params: Any) -> int | None:
        """How many of the largest logits do what all do; None: it takes all, or does not care."""
        return None

    @staticmethod
    def is_local(params: Any) -> bool:
        """Whether it does the same to the largest logits, whatever else there is."""
        return False

    @staticmethod
    def lowers_only(params: Any) -> bool:
        """Of a logits step: whether it makes no token more likely."""
        return True

    @staticmethod
    def look_back(params: Any) -> int:
        """Of a logits step: how many of the last tokens it looks at; -1: all."""
        return 0

    @staticmethod
    def memory(params: Any) -> tuple[float, float]:
        """Of a last step: the two numbers that it begins with; it leaves others for the next token."""
        return 0.0, 0.0

    @staticmethod
    def compiled() -> Callable[[int, int], None]:
        """apply(state, parameters): what it does, for numba. Imports numba."""
        raise NotImplementedError


@cache
def all_steps() -> tuple[type[Step], ...]:
    """Every step there is, in the usual order."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        names = vars(importlib.import_module(f"{__name__}.{module.name}"))
        found += [v for v in names.values() if isinstance(v, type) and issubclass(v, Step) and v.__module__ != __name__]
    return tuple(sorted(found, key=lambda step: (step.default_place, step.name())))


@cache
def by_name() -> dict[str, type[Step]]:
    """Steps by all their names."""
    return {name: step for step in all_steps() for name in (step.name(), *step.aliases)}


def ordered(samplers: Iterable[str] | None) -> list[type[Step]]:
    """The steps of these names, in this order; None: all, in the usual one. Those that choose come last.

    A text may hold several names, with semicolons or commas between them.

    Raises RequestError for a name that is none or there twice.
    """
    if samplers is None:
        return list(all_steps())
    steps: list[type[Step]] = []
    for given in (name.strip() for text in samplers for name in text.replace(",", ";").split(";")):
        step = by_name().get(given.lower().replace("-", "_"))
        if step is None:
            raise RequestError(f"samplers names {given!r}; there are {', '.join(s.name() for s in all_steps())}")
        if step in steps:
            raise RequestError(f"samplers names {given!r} twice")
        steps.append(step)
    return sorted(steps, key=lambda step: step.kind == "last")
