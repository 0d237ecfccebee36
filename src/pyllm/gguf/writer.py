"""Writing of GGUF files: the header at once, tensors as they come; a file gets its name when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import GGUFError
from pyllm.gguf.parts import ALIGNMENT, Part, TensorSpec, part_path, plan
from pyllm.gguf.values import Value, copy_metadata
from pyllm.temporary import TemporaryFile, remove_leftovers
from pyllm.units import size

__all__ = ["GGUFWriter", "TensorSpec", "Value", "copy_metadata", "part_path"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FLUSHED_AT_ONCE = 16 << 20


class GGUFWriter:
    """Writes a GGUF file, whole or not at all.

        with GGUFWriter(path, metadata, tensors) as writer:
            writer.write(data)  # the tensors' bytes in order, in pieces of any size

    The file grows under a temporary name beside its target and gets its own when the block is left normally;
    when it is left by an exception, nothing stays. With `split_bytes` (or `split_tensors`), what is more than a file of
    so many bytes (tensors) becomes several, NAME-00001-of-00003.gguf; a tensor is never divided. `alignment` None: as
    `metadata` has it, else 32. `sources` are files that are read meanwhile: none of them may be replaced.

    Raises GGUFError where a target exists (unless `overwrite`), the disk has not enough room, writing fails, or too few
    or too many bytes come.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Value],
        tensors: Sequence[TensorSpec],
        *,
        alignment: int | None = None,
        overwrite: bool = False,
        split_bytes: int | None = None,
        split_tensors: int | None = None,
        sources: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.path = Path(path)
        self._alignment = _checked_alignment(alignment, metadata)
        self._parts = plan(self.path, metadata, tensors, self._alignment, split_bytes, split_tensors)
        self._overwrite = overwrite
        self._sources = [Path(s) for s in sources]
        self._wanted = self._walk()
        self._missing = 0  # bytes of the present tensor
        self._written = self._on_its_way = 0
        self._file: TemporaryFile | None = None
        self._temporary: dict[Path, TemporaryFile] = {}  # targets and their temporary files
        self._placed: list[Path] = []

    @property
    def parts(self) -> tuple[Part, ...]:
        """The planned content of each file."""
        return tuple(self._parts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files: one, or the parts of a split model."""
        return tuple(part.path for part in self._parts)

    @property
    def n_bytes(self) -> int:
        """Size of all files together."""
        return sum(part.n_bytes for part in self._parts)

    def write(self, chunk: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """The next bytes of the tensors' data."""
        if isinstance(chunk, np.ndarray):
            chunk = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        view = memoryview(chunk).cast("B")
        while len(view):
            self._missing = self._missing or next(self._wanted, 0)
            if self._missing == 0:
                raise GGUFError(f"{self.path}: {len(view)} bytes came after the last tensor's data")
            taken = view[: self._missing]
            self._put(taken)
            self._missing -= len(taken)
            view = view[len(taken) :]

    def check(self) -> None:
        """Raise GGUFError where a target cannot be written or the disk has too little room; writes nothing.

        Files that killed processes left in the folder are removed first.
        """
        for path in self.paths:
            self._check_target(path)
        remove_leftovers(self.path.parent)
        free = shutil.disk_usage(self.path.parent).free
        if free < self.n_bytes:
            raise GGUFError(
                f"{self.path} needs {size(self.n_bytes)}, but only {size(free)} are free there; free some room or "
                "name another folder"
            )

    def __enter__(self) -> GGUFWriter:
        self.check()
        with self._removing():
            self._missing = next(self._wanted, 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._removing():
            if error is None:
                self._finish()
        if error is not None:
            self._remove()

    def _walk(self) -> Iterator[int]:
        """Opens and closes files in turn; yields the number of bytes of the next tensor."""
        for part in self._parts:
            self._open(part)
            self._put(memoryview(part.header))
            for tensor in part.tensors:
                if tensor.n_bytes:
                    yield tensor.n_bytes
                    self._put(memoryview(bytes(-tensor.n_bytes % self._alignment)))
            self._close()

    def _open(self, part: Part) -> None:
        try:
            self._file = self._temporary[part.path] = TemporaryFile(self.path.parent)
        except OSError as error:
            raise self._error(error) from error

    def _put(self, view: memoryview) -> None:
        assert self._file is not None
        try:
            while len(view):
                n = os.write(self._file.fileno(), view[: 1 << 30])
                self._written += n
                view = view[n:]
        except OSError as error:
            raise self._error(error) from error
        if (n := self._written - self._on_its_way) >= _FLUSHED_AT_ONCE:
            _store_soon(self._file.fileno(), n)
            self._on_its_way = self._written

    def _close(self) -> None:
        """Flush the file to the disk before it gets its name."""
        assert self._file is not None
        try:
            self._file.sync()
        except OSError as error:
            raise self._error(error) from error

    def _finish(self) -> None:
        if self._missing or next(self._wanted, 0):
            raise GGUFError(f"{self.path} is not complete: the data of its tensors ended too early")
        # The first part last: a split model that can be opened is complete.
        for path, temporary in reversed(self._temporary.items()):
            self._check_target(path)
            try:
                if path.exists():
                    shutil.copymode(path, temporary.path)
                temporary.place(path)
            except OSError as error:
                raise self._error(error) from error
            self._placed.append(path)
        _sync_folder(self.path.parent)

    @contextlib.contextmanager
    def _removing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        """Remove all files made so far."""
        for path, temporary in self._temporary.items():
            temporary.remove()
            if path in self._placed:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _check_target(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise GGUFError(f"{path} cannot be written: there is no folder {path.parent}")
        try:
            mode = path.stat().st_mode
        except OSError:
            return
        if not stat.S_ISREG(mode):
            what = "a folder; name a file in it" if stat.S_ISDIR(mode) else "no file that could be replaced"
            raise GGUFError(f"{path} cannot be written: it is {what}")
        if not self._overwrite:
            raise GGUFError(f"{path} exists; name another file, or allow overwriting (--overwrite)")
        if any(source.exists() and source.samefile(path) for source in self._sources):
            raise GGUFError(f"{path} is the file that is read; name another one")

    def _error(self, error: OSError) -> GGUFError:
        if error.errno in _FULL:
            return GGUFError(
                f"{self.path} cannot be written: the disk is full after {size(self._written)} of {size(self.n_bytes)}; "
                "free some room or name another folder"
            )
        return GGUFError(f"{self.path} cannot be written: {error.strerror or error}")


def _checked_alignment(alignment: int | None, metadata: Mapping[str, Value]) -> int:
    if alignment is None:
        alignment = metadata[ALIGNMENT].value if ALIGNMENT in metadata else 32
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GGUFError(f"{ALIGNMENT} must be a power of two, not {alignment!r}")
    return alignment


def _store_soon(file: int, n_bytes: int) -> None:
    """Start writing the latest bytes to the disk, so that the final flush is short."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            # For dirty pages, Linux takes this as a request to write them.
            start = max(0, os.lseek(file, 0, os.SEEK_CUR) - n_bytes)
            os.posix_fadvise(file, start, n_bytes, os.POSIX_FADV_DONTNEED)


def _sync_folder(path: Path) -> None:
    """Flush the folder's entries, where the system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
