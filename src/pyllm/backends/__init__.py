"""Backends by name: `get("cpu")`. Nothing of a backend is imported before it is asked for.

A backend is a package here that has a module `backend` and exports `BACKEND`, or an entry point of the group
`pyllm.backends` that loads to a `Backend` (or to a callable without arguments that makes one).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from pyllm import entry_points
from pyllm.errors import BackendError

if TYPE_CHECKING:
    from pyllm.backends.base import Backend

_GROUP = "pyllm.backends"


def names() -> list[str]:
    """Names of all backends, whether or not they run on this machine, in alphabetical order."""
    return sorted(_own() | entry_points.of_group(_GROUP).keys())


@cache
def get(name: str) -> Backend:
    """The backend of this name, imported now.

    Raises BackendError when it is unknown or cannot be imported; whether it runs here is for its `probe` to say.
    """
    from pyllm.backends.base import Backend

    if name not in _own() and name not in entry_points.of_group(_GROUP):
        raise BackendError(f"backend {name!r} is unknown; there are {', '.join(names())}")
    try:
        if name in _own():
            found = getattr(importlib.import_module(f"{__name__}.{name}"), "BACKEND", None)
        else:
            found = entry_points.of_group(_GROUP)[name].load()
            found = found if isinstance(found, Backend) else found()
    except Exception as error:  # a package that is not ours may raise anything
        raise BackendError(f"backend {name!r} cannot be imported here: {error}") from error
    if not isinstance(found, Backend):
        raise BackendError(f"backend {name!r} exports no Backend")
    return found


@cache
def _own() -> frozenset[str]:
    """Packages here with a module `backend`; the others are shared by backends."""
    return frozenset(
        package.name
        for package in pkgutil.iter_modules(__path__)
        if package.ispkg
        for module in pkgutil.iter_modules([os.path.join(folder, package.name) for folder in __path__])
        if module.name == "backend"
    )
