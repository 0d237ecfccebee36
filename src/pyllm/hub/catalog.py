"""The catalog: names of models that pyllm can fetch, and where from. Its format is described in models/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pyllm.errors import HubError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that can be fetched: what it must be, and its sources in the order to try them."""

    name: str
    file: str
    """Path below the models folder."""
    size: int
    """Bytes."""
    sha256: str
    sources: tuple[Mapping[str, Any], ...]
    """Each has a "kind" (a module of `pyllm.hub.sources`) and that kind's own keys."""
    description: str = ""
    parameters: str = ""
    format: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries by name, and the name that stands for no name."""

    default: str
    entries: Mapping[str, Entry]

    def find(self, name: str) -> Entry | None:
        """The entry of that name, whatever its case; a name without a tag finds the family's only or first entry."""
        key = name.lower()
        if key in self.entries:
            return self.entries[key]
        return next((e for k, e in self.entries.items() if k.partition(":")[0] == key), None)


def catalog_path() -> Path:
    """Where the catalog lies: in the package when installed from a wheel, in models/ of a source checkout."""
    here = Path(__file__).resolve().parent
    packaged = here / "catalog.json"
    return packaged if packaged.exists() else here.parents[2] / "models" / "catalog.json"


@cache
def load() -> Catalog:
    """Read the catalog that came with pyllm. Raises HubError where it is missing or damaged."""
    path = catalog_path()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return parse(raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HubError(f"the catalog of models ({path}) cannot be read: {error!r}; reinstall pyllm") from error


def parse(raw: Mapping[str, Any]) -> Catalog:
    """Catalog from decoded JSON. Raises KeyError, TypeError or ValueError on a wrong shape."""
    entries = {}
    for name, fields in raw["models"].items():
        entry = Entry(name=name, **{**fields, "sources": tuple(fields["sources"])})
        if Path(entry.file).name != entry.file or entry.size < 1 or len(entry.sha256) != 64 or not entry.sources:
            raise ValueError(f"entry {name!r}")
        entries[name] = entry
    if raw["default"] not in entries:
        raise ValueError(f"default {raw['default']!r} is not in the catalog")
    return Catalog(raw["default"], entries)
