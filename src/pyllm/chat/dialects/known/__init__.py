"""Dialects that no probing finds, `KNOWN` in a file each. They are recognised by marks, never by a model's name."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module

from pyllm.chat.dialects.known.base import Known


@cache
def all_known() -> tuple[Known, ...]:
    """The dialects of this folder, by the names of their files."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").KNOWN for name in names if name != "base")


def recognised(source: str) -> Known | None:
    """The dialect whose marks a template's source has."""
    return next((known for known in all_known() if known.fits(source)), None)


def of_vocabulary(vocabulary: Callable[[str], bool]) -> Known | None:
    """The dialect whose tokens a vocabulary has."""
    return next((known for known in all_known() if known.has_tokens(vocabulary)), None)
