"""The catalog: names of models that pyllm can fetch, and their sources. The format is described in models/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pyllm.errors import HubError
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be fetched: its size and hash, and its sources in the order to try."""

    name: str
    sources: tuple[Mapping[str, Any], ...]
    """Each has a "kind" (a module of `pyllm.hub.sources`) and that kind's own keys."""
    size: int | None = None
    """Bytes; an estimate where there is no `sha256`. None: not known before the source is asked."""
    sha256: str | None = None
    """None: taken from the source when the file is fetched."""
    file: str = ""
    """Name in the folder of models, for sources that put it there."""
    description: str = ""
    parameters: str = ""
    format: str = ""
    licence: str = ""

    @property
    def checked(self) -> bool:
        """Whether these exact bytes were tried with pyllm, and no others are accepted."""
        return self.sha256 is not None


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries by name, and the default name."""

    default: str
    entries: Mapping[str, Entry]

    def find(self, name: str) -> Entry | None:
        """The entry of a name, in any case; without a tag, or with the tag `latest`, the family's first."""
        key = name.lower()
        if key in self.entries:
            return self.entries[key]
        family, _, tag = key.partition(":")
        if tag not in ("", "latest"):
            return None
        return next((e for k, e in self.entries.items() if k.partition(":")[0] == family), None)


def catalog_path() -> Path:
    """Path of the catalog: in the package when installed from a wheel, in models/ of a source checkout."""
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
        if Path(entry.file).name != entry.file or not entry.size or entry.size < 1 or not entry.sources:
            raise ValueError(f"entry {name!r}")
        if entry.checked and len(entry.sha256 or "") != 64:
            raise ValueError(f"entry {name!r}")
        if not (entry.file and entry.checked) and any(s["kind"] == "pypi" for s in entry.sources):
            raise ValueError(f"entry {name!r}: wheels need a file name and a hash")
        entries[name] = entry
    if raw["default"] not in entries:
        raise ValueError(f"default {raw['default']!r} is not in the catalog")
    return Catalog(raw["default"], entries)
