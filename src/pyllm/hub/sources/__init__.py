"""Where model files come from: one module per kind of source, found by its name in the catalog.

A source module has

    here(entry, source) -> list[Path]               the model's files that are here and whole; [] unless all are
    fetch(entry, source, progress) -> list[Path]    get them; what has a final name afterwards is whole
    intact(entry, source, progress) -> bool         whether files that are here have the hash that they should have
    remove(entry, source) -> list[Path]             delete them, and unfinished ones; what was deleted

`fetch` raises HubError with a reason; what was fetched until then stays where the next attempt continues from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from pyllm.config import Progress
from pyllm.errors import HubError
from pyllm.hub.catalog import Entry

Source = Mapping[str, Any]


class Kind(Protocol):
    """What a source module has; see above."""

    def here(self, entry: Entry, source: Source) -> list[Path]: ...
    def fetch(self, entry: Entry, source: Source, progress: Progress | None) -> list[Path]: ...
    def intact(self, entry: Entry, source: Source, progress: Progress | None) -> bool: ...
    def remove(self, entry: Entry, source: Source) -> list[Path]: ...


def kind_of(source: Source) -> Kind:
    """The module of a source's kind. Raises HubError where the kind is unknown."""
    name = f"{__name__}.{source['kind']}"
    try:
        return cast(Kind, import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise HubError(f"unknown kind of source {source['kind']!r} in the catalog; update pyllm") from None
