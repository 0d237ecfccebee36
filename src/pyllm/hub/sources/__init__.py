"""Sources of model files: one module per kind, found by its name in the catalog.

A source module has

    here(entry, source) -> list[Path]               the model's local files; [] unless all are complete
    fetch(entry, source, progress) -> list[Path]    fetch them; files with their final names are complete
    intact(entry, source, progress) -> bool         whether the local files have the right hashes
    remove(entry, source) -> list[Path]             delete them, and unfinished ones; returns what was deleted

`fetch` raises HubError with a reason; partial downloads stay, and the next attempt continues them.
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
    """Interface of a source module; see above."""

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
