"""Where model files come from: one module per kind of source, found by its name in the catalog.

A source module has

    fetch(source, part, size, report) -> None

It appends to `part`, an open file that holds a correct or empty beginning of the model file and is positioned at its
end, until it is `size` bytes long; it may cut back what it cannot continue from. `report(n)` tells how many bytes there
are. Raises HubError with a reason; what was written so far stays, for the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import IO, Any

from pyllm.errors import HubError

Report = Callable[[int], None]
Fetch = Callable[[Mapping[str, Any], IO[bytes], int, Report], None]


def get(kind: str) -> Fetch:
    """The fetch function of a kind of source. Raises HubError where the kind is unknown."""
    name = f"{__name__}.{kind}"
    try:
        fetch: Fetch = import_module(name).fetch
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise HubError(f"unknown kind of source {kind!r} in the catalog; update pyllm") from None
    return fetch
