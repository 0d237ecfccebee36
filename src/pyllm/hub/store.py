"""The folder of models: find, fetch, verify, list, remove.

A download grows in `<file>.part`, under a lock, and gets its name when its SHA-256 is right: whatever has a final name
is whole. `.part` files are kept when interrupted, and continued.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyllm import env, units
from pyllm.config import Progress
from pyllm.errors import HubError
from pyllm.hub import catalog, sources
from pyllm.hub.catalog import Entry
from pyllm.hub.lock import locked

HF_PREFIX = "hf.co/"
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model by name: what the catalog says of it, and where it lies, if it is here."""

    name: str
    path: Path | None
    """None: not fetched yet."""
    size: int
    """Bytes, on disk or to be fetched."""
    entry: Entry | None
    """None: fetched by an `hf.co/` name."""


def default_name() -> str:
    """The model that is meant when none is named."""
    return catalog.load().default


def resolve(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file of a model, fetched first where it is not here yet. Split models give their first file.

    Raises HubError where there is no such file or name, or where it cannot be fetched.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    if path.is_dir():
        raise HubError(f"{name} is a folder; name the GGUF file in it")
    text = str(name)
    if text.startswith(HF_PREFIX):
        return _huggingface(text, progress)
    entry = catalog.load().find(text)
    if entry is None:
        raise HubError(_unknown(text))
    final = env.models_dir() / entry.file
    return final if _has_size(final, entry.size) else _get(entry, progress)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model of the catalog or of Hugging Face; one that is here is checked against its SHA-256.

    Raises HubError where the name is unknown, or the file cannot be fetched or is not what it should be.
    """
    if name.startswith(HF_PREFIX):
        return _huggingface(name, progress)
    entry = catalog.load().find(name)
    if entry is None:
        raise HubError(_unknown(name))
    final = env.models_dir() / entry.file
    if _has_size(final, entry.size) and _sha256(final, _shown(entry, progress, "checking")) == entry.sha256:
        return final
    final.unlink(missing_ok=True)
    return _get(entry, progress)


def models() -> list[LocalModel]:
    """Every name of the catalog, and what was fetched from elsewhere."""
    folder = env.models_dir()
    found = []
    for entry in catalog.load().entries.values():
        path = folder / entry.file
        found.append(LocalModel(entry.name, path if _has_size(path, entry.size) else None, entry.size, entry))
    for path in sorted((folder / "hf.co").rglob("*.gguf")):
        found.append(LocalModel(path.relative_to(folder).as_posix(), path, path.stat().st_size, None))
    return found


def remove(name: str) -> list[Path]:
    """Delete a fetched model, or what there is of it; gives what was deleted. Raises HubError where there is nothing.

    Only what lies in the folder of models is deleted, by the names that `models` gives.
    """
    entry = catalog.load().find(name)
    if entry is not None:
        files = [env.models_dir() / entry.file]
    elif name.startswith(HF_PREFIX):
        from pyllm.hub import huggingface

        files = huggingface.local_files(name)
    else:
        raise HubError(_unknown(name) if not Path(name).is_file() else f"{name} is your own file; delete it yourself")
    removed = []
    for file in files:
        with locked(_lock_path(file), lambda: None):
            shutil.rmtree(f"{_part_path(file)}.wheels", ignore_errors=True)
            for path in (file, _part_path(file)):
                if path.exists():
                    path.unlink()
                    removed.append(path)
    if not removed:
        raise HubError(f"{name} is not here; `pyllm list` shows what is")
    return removed


def _get(entry: Entry, progress: Progress | None) -> Path:
    """Fetch an entry into the folder of models, or wait for another process that is doing so."""
    final = env.models_dir() / entry.file
    waiting = _shown(entry, progress, "waiting for another download of")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock_path(final), lambda: waiting(0)):
            if not _has_size(final, entry.size):
                _fetch(entry, final, progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise HubError(f"the disk of {final.parent} is full; free some room, and the download continues") from error
        raise HubError(f"{entry.name} cannot be stored in {final.parent}: {error.strerror or error}") from error
    return final


def _fetch(entry: Entry, final: Path, progress: Progress | None) -> None:
    """Try the sources in order; the file gets its name when its hash is right."""
    part = _part_path(final)
    reasons = []
    for source in entry.sources:
        try:
            _check_space(part, entry.size)
            # Twice: the beginning that was here may be from a damaged attempt.
            for _ in range(2):
                started_with = part.stat().st_size if part.exists() else 0
                with open(part, "ab") as file:
                    if file.tell() > entry.size:
                        file.truncate(0)
                        file.seek(0)
                    fetch = sources.get(source["kind"])
                    fetch(source, file, entry.size, _shown(entry, progress, "downloading"))
                    file.flush()
                    os.fsync(file.fileno())
                if _sha256(part, _shown(entry, progress, "checking")) == entry.sha256:
                    os.replace(part, final)
                    return
                part.unlink()
                if not started_with:
                    break
            reasons.append("what was downloaded does not match its SHA-256 and was deleted")
        except HubError as error:
            reasons.append(str(error))
    raise HubError(f"{entry.name} could not be fetched: " + "; ".join(dict.fromkeys(reasons)))


def _check_space(part: Path, size: int) -> None:
    have = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if free < size - have:
        raise HubError(
            f"not enough room in {part.parent}: {units.size(size - have)} are needed, {units.size(free)} are free; "
            "set PYLLM_MODELS to another folder"
        )


def _huggingface(name: str, progress: Progress | None) -> Path:
    from pyllm.hub import huggingface

    files = huggingface.local_files(name, whole=True)
    if not files:
        files = [_get(entry, progress) for entry in huggingface.find(name)]
    return files[0]


def _shown(entry: Entry, progress: Progress | None, verb: str) -> Callable[[int], None]:
    """A report of bytes as a report of progress."""
    text = f"{verb} {entry.name} ({units.size(entry.size)})"

    def report(done: int) -> None:
        if progress is not None:
            progress(text, min(1.0, done / entry.size))

    return report


def _sha256(path: Path, report: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _part_path(final: Path) -> Path:
    return final.with_name(final.name + ".part")


def _lock_path(final: Path) -> Path:
    folder = env.models_dir()
    return folder / ".locks" / f"{final.relative_to(folder).as_posix().replace('/', '--')}.lock"


def _unknown(name: str) -> str:
    known = list(catalog.load().entries)
    if name.lower().endswith(".gguf") or os.sep in name:
        return f"there is no file {name}"
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    names = ", ".join([*known, "hf.co/user/repo[:quant]"])
    return f"no file and no known model is called {name!r}; {hint}known are {names}"
