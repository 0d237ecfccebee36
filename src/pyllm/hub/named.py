"""Named models: a file with settings of its own, made from a Modelfile. Each is a small JSON in the folder of data.

Sizes and hashes of its files are kept: another file is not taken in its place.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyllm import env
from pyllm.config import Progress
from pyllm.errors import HubError, PyllmWarning, RequestError
from pyllm.hub import blobs, catalog, disk, names, parameters
from pyllm.hub.modelfile import ROLES, Modelfile
from pyllm.records import dataclass

_NAME = re.compile(r"(?:[a-z0-9_][\w.-]{0,79}/)?[a-z0-9_][\w.-]{0,79}(?::[a-z0-9_][\w.-]{0,79})?", re.ASCII | re.I)
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Locked:
    """A file, and how to know it again."""

    path: str
    size: int
    sha256: str

    @property
    def is_same(self) -> bool:
        """Whether the file is there, with the size that it had."""
        return disk.size_of(Path(self.path)) == self.size


@dataclass(frozen=True, slots=True)
class Named:
    """A named model."""

    name: str
    base: str
    """The name of the model that it was made from; of a file, its path."""
    files: tuple[Locked, ...]
    """The parts of the base, in order."""
    adapters: tuple[Locked, ...] = ()
    template: str = ""
    """In place of the file's own: jinja2, or the part of Go's that `chat.go_template` translates."""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """`hub.parameters`, below those of a request."""
    messages: tuple[tuple[str, str], ...] = ()
    licences: tuple[str, ...] = ()
    created: int = 0
    """Unix seconds."""

    @property
    def path(self) -> Path:
        """The base's file; the first of a split one."""
        return Path(self.files[0].path)

    def check(self) -> None:
        """Raise HubError where a file is missing or another one."""
        for file in (*self.files, *self.adapters):
            if not file.is_same:
                what = "has changed" if os.path.exists(file.path) else "is missing"
                raise HubError(f"{file.path}, of which {self.name} was made, {what}; `pyllm create` makes it anew")

    def verify(self, progress: Progress | None = None) -> None:
        """`check`, by the files' SHA-256."""
        self.check()
        for file in (*self.files, *self.adapters):
            told = disk.report(progress, "checking", os.path.basename(file.path), max(1, file.size))
            if disk.sha256(Path(file.path), told) != file.sha256:
                raise HubError(f"{file.path}, of which {self.name} was made, has changed; `pyllm create` makes it anew")

    def modelfile(self) -> Modelfile:
        """The Modelfile that makes it again."""
        return Modelfile(
            self.base,
            tuple(adapter.path for adapter in self.adapters),
            self.parameters,
            self.template,
            self.system,
            self.messages,
            self.licences,
        )


def folder() -> Path:
    """Where they are."""
    return env.data_dir() / "named"


def name_of(text: str) -> str:
    """A name as it is kept, without the tag "latest". Raises HubError for one that no model may have."""
    name = re.sub(r":latest$", "", text.strip(), flags=re.I)
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf") or ".." in name:
        raise HubError(
            f"{text[:100]!r} cannot be a model's name; names are of letters, digits, and . _ - within, such as mario, "
            "mario:7b or me/mario"
        )
    if catalog.load().find(name) is not None or names.canonical(name) is not None:
        raise HubError(f"{name} is the name of a model that pyllm can fetch; choose another")
    return name


def find(text: str) -> Named | None:
    """The named model of a name, in any case, with or without the tag "latest"."""
    name = re.sub(r":latest$", "", text.strip(), flags=re.I)
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        return None
    return _load(_file(name))


def all_named() -> list[Named]:
    """All named models, by name; damaged ones are left out, with a warning."""
    found = []
    for file in sorted(folder().glob("*.json")):
        try:
            if (named := _load(file)) is not None:
                found.append(named)
        except HubError as error:
            warnings.warn(str(error), PyllmWarning, stacklevel=2)
    return found


def save(named: Named) -> None:
    """Keep a named model, in place of one of the same name. Raises HubError."""
    text = json.dumps({"format": _FORMAT, **_plain(named)}, indent=1, ensure_ascii=False)
    with disk.stored_in(folder(), blobs.VARIABLE):
        folder().mkdir(parents=True, exist_ok=True)
        path = _file(named.name)
        part = folder() / f".{secrets.token_hex(8)}.part"
        try:
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def remove(named: Named) -> list[Path]:
    """Delete a named model, and those of its files that clients sent and no other named model has."""
    gone = [_file(named.name)]
    gone[0].unlink(missing_ok=True)
    used = {file.path for other in all_named() for file in (*other.files, *other.adapters)}
    for file in (*named.files, *named.adapters):
        path = Path(file.path)
        if path.parent == blobs.folder() and file.path not in used and path.exists():
            path.unlink()
            gone.append(path)
    return gone


def remove_unused() -> list[Path]:
    """Delete files that clients sent, and nobody asked for in the last day, which no named model has; returns them.

    None is deleted while a named model cannot be read, for it may have any.
    """
    old = blobs.old()
    if not old:
        return []
    try:
        all_of_them = [_load(file) for file in folder().glob("*.json")]
    except HubError:
        return []
    used = {file.sha256 for named in all_of_them if named for file in (*named.files, *named.adapters)}
    return [path for sha256, path in old.items() if sha256 not in used and blobs.remove(path)]


def make(
    name: str,
    modelfile: Modelfile,
    base: Named | Sequence[Path],
    adapters: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Named:
    """A named model, from what it is made of: settings of a base that is one itself count where the Modelfile has none.

    Reads all files for their hashes. Raises HubError, RequestError.
    """
    locked = [_lock(path, progress) for path in adapters]
    before = base if isinstance(base, Named) else None
    files = base.files if isinstance(base, Named) else tuple(_lock(path, progress) for path in base)
    return Named(
        name_of(name),
        modelfile.base if before is None else before.base,
        files,
        tuple(locked) or (before.adapters if before else ()),
        modelfile.template or (before.template if before else ""),
        modelfile.system or (before.system if before else ""),
        {**(before.parameters if before else {}), **parameters.settle(modelfile.parameters)},
        modelfile.messages or (before.messages if before else ()),
        modelfile.licences or (before.licences if before else ()),
        int(time.time()),
    )


def _lock(path: Path, progress: Progress | None) -> Locked:
    """A file with its hash. A blob's is its name, which was checked when it came."""
    path = path.absolute()
    size = disk.size_of(path)
    if size is None:
        raise HubError(f"there is no file {path}")
    if path.parent == blobs.folder():
        return Locked(str(path), size, path.name.partition("-")[2])
    told = disk.report(progress, "reading", path.name, max(1, size))
    return Locked(str(path), size, disk.sha256(path, told))


def _file(name: str) -> Path:
    return folder() / f"{quote(name.lower(), safe='')}.json"


def _plain(named: Named) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "name": named.name,
        "base": named.base,
        "files": [asdict(file) for file in named.files],
        "adapters": [asdict(file) for file in named.adapters],
        "template": named.template,
        "system": named.system,
        "parameters": dict(named.parameters),
        "messages": [{"role": role, "content": content} for role, content in named.messages],
        "licences": list(named.licences),
        "created": named.created,
    }


def _load(path: Path) -> Named | None:
    """Read a file; None where there is none. Raises HubError where it is damaged."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _read(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(256)
def _read(path: Path, *changed: int) -> Named | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise ValueError(f"format {raw['format']!r}")
        messages = tuple((str(m["role"]), str(m["content"])) for m in raw["messages"])
        if not raw["files"] or any(role not in ROLES for role, _ in messages):
            raise ValueError("no files, or messages of unknown roles")
        return Named(
            str(raw["name"]),
            str(raw["base"]),
            tuple(Locked(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in raw["files"]),
            tuple(Locked(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in raw["adapters"]),
            str(raw["template"]),
            str(raw["system"]),
            parameters.settle(raw["parameters"]),
            messages,
            tuple(map(str, raw["licences"])),
            int(raw["created"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise HubError(f"the named model {path} cannot be read: {error!r}; delete it") from None
