"""Models by name: find, fetch, check, list, remove. The kinds of `pyllm.hub.sources` know the files' places."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path

from pyllm import env
from pyllm.config import Progress
from pyllm.errors import HubError
from pyllm.hub import catalog, named, names
from pyllm.hub.catalog import Entry
from pyllm.hub.modelfile import Modelfile
from pyllm.hub.named import Named
from pyllm.hub.sources import kind_of
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model by name: its catalog entry, and its local path, if any."""

    name: str
    path: Path | None
    """None: not fetched yet. The first file of a split model."""
    size: int | None
    """Bytes of all files, local or to be fetched; an estimate where neither local nor verified."""
    format: str
    entry: Entry | None
    """None: fetched by an `hf.co/` name, by another program, or a named model."""
    named: Named | None = None
    """A named model, whose file `path` is."""


def default_name() -> str:
    """The default model."""
    return catalog.load().default


def is_remote(name: str) -> bool:
    """Whether a name stands for a file on Hugging Face (`hf.co/…`, or a link), whatever its ending."""
    return names.canonical(name) is not None


def is_catalogued(name: str | os.PathLike[str]) -> bool:
    """Whether a name, with its tag, is in the catalog; it then means that model, not a file of the current folder."""
    return isinstance(name, str) and ":" in name and name.lower() in catalog.load().entries


def resolve(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file of a model, fetched first if needed; of a split model, its first file; of a named one, its base's.

    Raises HubError for an unknown file or name, or where it cannot be fetched.
    """
    path = env.user_path(name)
    if isinstance(name, str) and (own := named.find(name)) is not None:
        own.check()
        return own.path
    if not is_catalogued(name):
        if path.is_file():
            return path
        if path.is_dir():
            raise HubError(f"{name} is a folder; name the GGUF file in it")
    entry = _entry(str(name))
    for source in entry.sources:
        if files := kind_of(source).here(entry, source):
            return files[0]
    return _fetch(entry, progress)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model of the catalog or of Hugging Face; a local one is checked against its SHA-256.

    The files of a named model are checked, too. Raises HubError where the name is unknown, the file cannot be fetched,
    or its hash is wrong.
    """
    if (own := named.find(name)) is not None:
        own.verify(progress)
        return own.path
    entry = _entry(name)
    for source in entry.sources:
        kind = kind_of(source)
        if files := kind.here(entry, source):
            if kind.intact(entry, source, progress):
                return files[0]
            if env.offline():
                raise HubError(f"{files[0]} is damaged, and offline it cannot be fetched again")
            kind.remove(entry, source)
    return _fetch(entry, progress)


def models() -> list[LocalModel]:
    """Local models, named ones after the others, then all other names of the catalog."""
    from pyllm.hub.sources import huggingface

    local: list[LocalModel] = []
    absent: list[LocalModel] = []
    known: set[Path] = set()
    for entry in catalog.load().entries.values():
        files = next(filter(None, (kind_of(s).here(entry, s) for s in entry.sources)), [])
        known.update(files)
        size = sum(f.stat().st_size for f in files) if files else entry.size
        model = LocalModel(entry.name, files[0] if files else None, size, entry.format, entry)
        (local if files else absent).append(model)
    for name, files in huggingface.cached():
        if not known.intersection(files):
            size = sum(f.stat().st_size for f in files)
            local.append(LocalModel(name, files[0], size, names.quant(files[0].name), None))
    for own in named.all_named():
        size = sum(file.size for file in (*own.files, *own.adapters))
        local.append(LocalModel(own.name, own.path, size, names.quant(own.path.name), None, own))
    return local + absent


def create(name: str, modelfile: Modelfile, folder: Path, progress: Progress | None = None) -> Named:
    """Make a named model, and keep it. Paths in the Modelfile are relative to `folder`.

    A base that is not here is fetched. Raises HubError, RequestError (a parameter out of bounds).
    """
    name = named.name_of(name)
    adapters = [folder / env.user_path(adapter) for adapter in modelfile.adapters]
    base: Named | list[Path] | None = named.find(modelfile.base)
    if base is None:
        path = folder / env.user_path(modelfile.base)
        here = path.is_file() and not is_catalogued(modelfile.base)
        path = path.absolute() if here else resolve(modelfile.base, progress)
        modelfile = replace(modelfile, base=str(path) if here else _entry(modelfile.base).name)
        base = names.parts(path)
    made = named.make(name, modelfile, base, adapters, progress)
    named.save(made)
    return made


def copy(source: str, name: str, progress: Progress | None = None) -> Named:
    """Make a named model that is as another model. Raises HubError."""
    return create(name, Modelfile(source), Path.cwd(), progress)


def remove(name: str) -> list[Path]:
    """Delete a fetched model, or its partial download; returns the deleted files. Raises HubError where there is
    nothing.

    Only files in the models folder and in Hugging Face's cache are deleted, by the names that `models` lists; of a
    named model its settings, and files that a client sent for it alone.
    """
    if (own := named.find(name)) is not None:
        return named.remove(own)
    if names.canonical(name) is None and catalog.load().find(name) is None and Path(name).is_file():
        raise HubError(f"{name} is your own file; delete it yourself")
    entry = _entry(name)
    removed = [path for source in entry.sources for path in kind_of(source).remove(entry, source)]
    if not removed:
        raise HubError(f"{name} is not here; `pyllm list` shows what is")
    return removed


def _entry(name: str) -> Entry:
    """The entry or file of a name. Raises HubError for an unknown name."""
    if (link := names.canonical(name)) is not None:
        repo, wanted = names.split_name(link)
        return Entry(link, ({"kind": "huggingface", "repo": repo, "file": wanted},))
    entry = catalog.load().find(name)
    if entry is None:
        raise HubError(_unknown(name))
    return entry


def _fetch(entry: Entry, progress: Progress | None) -> Path:
    """Try the sources in order."""
    if env.offline():
        raise HubError(
            f"{entry.name} is not here, and nothing may be fetched (--offline, PYLLM_OFFLINE or HF_HUB_OFFLINE); "
            f"`pyllm pull {entry.name}` fetches it without that, `pyllm list` shows what is here"
        )
    reasons = []
    for source in entry.sources:
        try:
            return kind_of(source).fetch(entry, source, progress)[0]
        except HubError as error:
            reasons.append(str(error))
    raise HubError(f"{entry.name} could not be fetched: " + "; ".join(dict.fromkeys(reasons)))


def _unknown(name: str) -> str:
    known = list(catalog.load().entries)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name, re.ASCII) and not name.lower().endswith(".gguf"):
        return f"there is no file {name}; what is on Hugging Face is called hf.co/{name}"
    if name.lower().endswith(".gguf") or "/" in name or os.sep in name:
        return f"there is no file {name}"
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no file and no known model is called {name!r}; {hint}`pyllm list` shows all, hf.co/user/repo works too"
