"""Files that are written under a temporary name, and the removal of those that killed processes left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX, _SUFFIX = ".pyllm-", ".part"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Errors of file systems without fsync."""


class TemporaryFile:
    """A new file in `folder`, open for writing; `place` renames it to its final name, `remove` deletes it.

    It is locked until then, so that `remove_leftovers` of other processes skips it. The lock ends with the process,
    however that ends. On Windows, an open file cannot be removed, which has the same effect.
    Methods raise OSError.
    """

    def __init__(self, folder: Path) -> None:
        for _ in range(10):
            self.path = folder / f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"
            self._file: int | None = os.open(self.path, _FLAGS, 0o666)
            # Another process may take it for a leftover in the moment before it is locked.
            if _lock(self._file) is not False and self.path.exists():
                return
            os.close(self._file)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self.path))

    def fileno(self) -> int:
        """The file's descriptor."""
        assert self._file is not None
        return self._file

    def sync(self) -> None:
        """Flush everything to the disk; nothing is written afterwards."""
        try:
            os.fsync(self.fileno())
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        if sys.platform == "win32":
            self._close()  # or it could not be renamed

    def place(self, target: Path) -> None:
        """Rename the file to `target`, replacing a file of that name."""
        os.replace(self.path, target)
        self._close()

    def remove(self) -> None:
        """Delete the file, unless it was placed. Never fails."""
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._close()
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `folder` that no living process writes; in doubt they stay."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()
        return
    # Without O_NOFOLLOW and O_NONBLOCK, a link or a pipe of such a name could do harm.
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _lock(file):
            path.unlink()
    finally:
        os.close(file)


def _lock(file: int) -> bool | None:
    """Whether the file is now locked by this process; None where the file system knows no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
