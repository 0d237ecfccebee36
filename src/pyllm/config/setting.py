"""Settings that say everything about themselves, once: type, default, meaning, bounds, flags.

The fields of a settings class are made with `setting`. From them come the keyword options that type checkers see and
the reference (`tools/write_settings.py`), the checks, and the command line's flags (`cli/_settings.py`). The steps of
sampling have `Setting`s of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields
from functools import cache
from typing import Any

from pyllm.arguments import settle
from pyllm.errors import RequestError
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, apart from its value."""

    name: str
    type: str
    """The field's annotation, as source."""
    default: Any
    doc: str
    """What it does, in a sentence or two; other settings in backquotes."""
    help: str = ""
    """What the command line says, where that is not `doc`."""
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    """Whether `low` itself is out of bounds."""
    must: str = ""
    """What it must be, where the bounds do not say it well enough."""
    flags: tuple[str, ...] | None = None
    """Flags of the command line; None: its name, (): none."""
    metavar: str = ""
    """What stands for the value in help, where the type does not say it."""
    commas: bool = False
    """Whether a flag's text holds several values, with commas between them."""
    key: str = ""
    """What follows `general.sampling.` in the metadata of a file that advises a value."""
    minus_one: Any = -1
    """What -1 stands for."""
    options_type: str = ""
    """The annotation of the keyword option, where more is taken than is kept."""

    @property
    def parameter(self) -> bool:
        """Whether it is a single number."""
        return self.type in ("int", "float", "int | None")

    @property
    def keyword_type(self) -> str:
        """The annotation of the keyword option; None is as if it were not given."""
        kind = self.options_type or re.sub(r"^tuple\[(.+), \.\.\.\]$", r"Sequence[\1]", self.type)
        return kind if kind.endswith("| None") else f"{kind} | None"

    def check(self, value: Any) -> None:
        """Raise RequestError where a number is out of bounds."""
        if value is None or not isinstance(value, int | float):
            return
        low = value > self.low if self.above_low else value >= self.low
        if not (low and value <= self.high and (math.isfinite(value))):
            raise RequestError(f"{self.name} must be {self.must or self._bounds()}, not {value}")

    def _bounds(self) -> str:
        if self.low == -math.inf:
            return "a finite number"
        if self.high == math.inf:
            return f"more than {self.low:g}" if self.above_low else f"{self.low:g} or more"
        return f"between {self.low:.15g} and {self.high:.15g}"


def setting(
    default: Any, doc: str, *, factory: Callable[[], Any] | None = None, compare: bool = True, **more: Any
) -> Any:
    """A field of a settings class, with what `Setting` has as its metadata. Without `flags`, it has none.

    `factory` makes the default in place of `default`.
    """
    metadata = {"doc": doc, "flags": (), **more}
    if factory is not None:
        return field(default_factory=factory, compare=compare, metadata=metadata)
    return field(default=default, compare=compare, metadata=metadata)


@cache
def settings_of(settings: type) -> tuple[Setting, ...]:
    """The settings of a class whose fields are made with `setting`, in order."""
    return tuple(
        Setting(f.name, str(f.type), None if f.default is MISSING else f.default, **f.metadata)
        for f in fields(settings)
    )


def complete(settings: object) -> None:
    """Validate and convert the fields by their types and bounds; for a settings class's `__post_init__`.

    Raises RequestError.
    """
    settle(settings)
    kind: type = type(settings)
    for one in _bounded(kind):
        value = getattr(settings, one.name)
        if value == -1 and one.minus_one != -1:
            object.__setattr__(settings, one.name, one.minus_one)
        else:
            one.check(value)


@cache
def _bounded(settings: type) -> list[Setting]:
    return [one for one in settings_of(settings) if one.minus_one != -1 or (one.low, one.high) != (-math.inf, math.inf)]


def refuse_unknown(caller: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise RequestError for keywords of a call of `caller` that are no settings."""
    unknown = next((name for name in options if name not in known), None)
    if unknown is None:
        return
    from difflib import get_close_matches

    near = get_close_matches(unknown, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    raise RequestError(f"{caller}() has no option {unknown}; {hint}")
