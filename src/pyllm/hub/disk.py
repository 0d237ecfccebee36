"""Disk operations of downloads: room, locks between processes, hashes, and errors that name the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyllm import units
from pyllm.config import Progress
from pyllm.errors import HubError

Report = Callable[[int], None]
"""Called with the number of bytes so far."""
_CHUNK = 1 << 22
_POLL = 0.2
"""Seconds between attempts to take a lock."""


def report(progress: Progress | None, verb: str, name: str, size: int) -> Report:
    """A report of bytes, out of `size`, as a report of progress."""
    text = f"{verb} {name} ({units.size(size)})"

    def told(done: int) -> None:
        if progress is not None:
            progress(text, min(1.0, done / size))

    return told


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; calls `waiting` at each failed attempt. The lock of a dead process is free."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=_POLL)
            break
        except Timeout:
            waiting()
        except NotImplementedError:
            raise HubError(f"the file system of {path.parent} has no locks; downloads need a folder that has") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stored_in(folder: Path, variable: str) -> Iterator[None]:
    """Turns disk errors into HubErrors that name the folder and the variable that moves it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise HubError(f"the disk of {folder} is full; free some room, and the download continues") from error
        reason = error.strerror or str(error)
        raise HubError(
            f"nothing can be stored in {folder}: {reason}; set {variable} to a folder that can be written"
        ) from error


def check_room(folder: Path, needed: int, variable: str) -> None:
    """Raises HubError where the disk of a folder has less than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HubError(
            f"not enough room in {folder}: {units.size(needed)} are needed, {units.size(free)} are free; "
            f"set {variable} to another folder"
        )


def grow(part: Path, final: Path, expected: str, size: int, append: Callable[[BinaryIO], None], told: Report) -> None:
    """Let `append` complete `part`, which may hold a beginning; rename it to `final` if its hash is right.

    `told` is called while the hash is checked. Raises HubError where the hash is wrong; then the file is removed.
    """
    # Twice: the partial file may come from a damaged attempt.
    for _ in range(2):
        started_with = size_of(part) or 0
        with open(part, "ab") as file:
            if started_with > size:
                file.truncate(0)
                file.seek(0)
            append(file)
            file.flush()
            os.fsync(file.fileno())
        if sha256(part, told) == expected:
            os.replace(part, final)
            return
        part.unlink()
        if not started_with:
            break
    raise HubError("what was downloaded does not match its SHA-256 and was deleted")


def sha256(path: Path, told: Report) -> str:
    """A file's hash, in hexadecimal digits."""
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            told(done)
    return digest.hexdigest()


def size_of(path: Path) -> int | None:
    """Bytes of a file, or None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
