"""Files that clients of a server sent, by their SHA-256: weights and adapters of named models."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from pyllm import env
from pyllm.errors import HubError
from pyllm.hub import disk

VARIABLE = "PYLLM_DATA"
_ABANDONED = 86400.0
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def folder() -> Path:
    """Where they are."""
    return env.data_dir() / "blobs"


def digest_of(text: str) -> str:
    """The 64 digits of "sha256:…". Raises HubError for another form."""
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise HubError("a digest must be sha256: and 64 hexadecimal digits in small letters")
    return found[1]


def path_of(sha256: str) -> Path:
    """The file of a hash, whether it is there or not."""
    return folder() / f"sha256-{sha256}"


def find(sha256: str) -> Path | None:
    """The file of a hash, if it is there; it then counts as new."""
    path = path_of(sha256)
    if not path.is_file():
        return None
    with suppress(OSError):  # the folder may be another user's
        os.utime(path)
    return path


def old() -> dict[str, Path]:
    """Files, by their hashes, that came, and were last asked for, more than a day ago."""
    found = {}
    for path in folder().glob("sha256-*"):
        with suppress(OSError, HubError):
            if path.stat().st_mtime < time.time() - _ABANDONED:
                found[digest_of(path.name)] = path
    return found


def remove(path: Path) -> bool:
    """Delete a file, if that is possible; whether it was."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _remove_abandoned() -> None:
    """Delete beginnings of files that were not written to for a day: their process was killed."""
    for part in folder().glob(".*.part"):
        with suppress(OSError):
            if part.stat().st_mtime < time.time() - _ABANDONED:
                part.unlink()


class Upload:
    """A file that arrives in pieces, under another name until its hash is right.

    `with Upload(sha256, size) as upload:` `upload.write(piece)` …, `upload.finish()`.
    """

    def __init__(self, sha256: str, most: int, expected: int | None = None) -> None:
        """`most`: the most bytes; `expected`: those that were announced. Raises HubError where they do not fit."""
        self._sha256, self._most = sha256, most
        self._digest = hashlib.sha256()
        self._size = 0
        with disk.stored_in(folder(), VARIABLE):
            folder().mkdir(parents=True, exist_ok=True)
            _remove_abandoned()
            if expected is not None:
                disk.check_room(folder(), expected, VARIABLE)
            self._part = folder() / f".{sha256[:16]}-{secrets.token_hex(4)}.part"
            self._file = open(self._part, "xb")  # noqa: SIM115 - `__exit__` closes it

    def write(self, piece: bytes) -> None:
        """More of it. Raises HubError where there is too much, or no room."""
        self._size += len(piece)
        if self._size > self._most:
            raise HubError(f"the file is larger than {self._most} bytes")
        self._digest.update(piece)
        with disk.stored_in(folder(), VARIABLE):
            self._file.write(piece)

    def finish(self) -> Path:
        """It is whole: give it its name. Raises HubError where its hash is another one."""
        if self._digest.hexdigest() != self._sha256:
            raise HubError("what arrived has another SHA-256 than its name says")
        with disk.stored_in(folder(), VARIABLE):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, path_of(self._sha256))
        return path_of(self._sha256)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)
