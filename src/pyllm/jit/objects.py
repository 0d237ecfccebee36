"""The disk cache of compiled code. A cache that cannot be written costs a warning.

A file ends with the length and the digest of its code, which are checked before use: a crash, a full or a bad disk
leaves files that are empty, truncated or full of zeros. Files get their name when they are complete, so processes may
share a folder.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pyllm import env
from pyllm.errors import PyllmWarning
from pyllm.temporary import TemporaryFile, remove_leftovers

_END = struct.Struct("<Q32s8s")
"""Bytes of code, their SHA-256, and a mark."""
_MARK = b"pyllm\0\0\1"


def find(folder: Path, name: str) -> bytes | None:
    """The code that `keep` stored for this folder and name, or None where there is none or it is damaged."""
    return next((code for place in _places(folder) if (code := read(place / name)) is not None), None)


def path(folder: Path, name: str) -> Path | None:
    """The file that `keep` wrote for this folder and name, if it is whole. Loaders ignore the trailer."""
    return next((place / name for place in _places(folder) if read(place / name) is not None), None)


def keep(folder: Path, name: str, code: bytes) -> Path | None:
    """Store code for later processes: in the folder or, where that fails, in a temporary folder.

    Returns the file, or None where none could be written. Warns once per process when the folder was not used.
    """
    reason = ""
    for place in _places(folder):
        try:
            path = _write(place, name, code)
        except OSError as error:
            reason = reason or f"{place} cannot be written ({error.strerror or error})"
            continue
        if reason:
            _warn(f"{reason}; compiled kernels are kept in {place}")
        elif env.is_temporary(place):
            _warn(f"there is no cache folder; compiled kernels are kept in {place}")
        return path
    _warn(f"{reason}; compiled kernels are not kept, and each start compiles them again")
    return None


def read(path: Path) -> bytes | None:
    """The code of a file, or None where it cannot be read or fails its check."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < _END.size:
        return None
    code = content[: -_END.size]
    length, digest, mark = _END.unpack_from(content, len(code))
    whole = mark == _MARK and length == len(code) and digest == hashlib.sha256(code).digest()
    return code if whole else None


def _places(folder: Path) -> Iterator[Path]:
    """Places of a folder's files: the folder, then its substitute in the temporary folder."""
    yield folder
    if not env.is_temporary(folder) and (temporary := env.temporary_dir()):
        yield temporary / "kernels" / f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def _write(folder: Path, name: str, code: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    _remove_leftovers(folder)
    file, path = TemporaryFile(folder), folder / name
    try:
        with open(file.fileno(), "wb", closefd=False) as out:
            out.write(code)
            out.write(_END.pack(len(code), hashlib.sha256(code).digest(), _MARK))
        file.sync()
        file.place(path)
    except OSError:
        file.remove()
        if read(path) != code:  # else another process was quicker, and has the file open (Windows)
            raise
    return path


@cache
def _remove_leftovers(folder: Path) -> None:
    """Delete temporary files of processes that were killed: once in a process, when it writes."""
    remove_leftovers(folder)


_warnings: list[str] = []


def _warn(text: str) -> None:
    if not _warnings:
        _warnings.append(text)
        warnings.warn(f"{text}; set PYLLM_CACHE to a folder that can be written", PyllmWarning, stacklevel=2)
