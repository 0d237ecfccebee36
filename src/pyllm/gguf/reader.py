"""Opening GGUF files: one file, or all files of a split model, as metadata and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType, TracebackType

from pyllm.arguments import FilePath, checked
from pyllm.errors import GGUFError
from pyllm.gguf.beside import beside
from pyllm.gguf.header import Header, read_header
from pyllm.gguf.mapped import MappedFile
from pyllm.gguf.metadata import Metadata
from pyllm.gguf.tensor import TensorInfo

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL | re.IGNORECASE)
_SAMPLE = 256
"""Bytes of a tensor that a fingerprint depends on."""


def open_gguf(path: FilePath) -> GGUFFile:
    """Open a GGUF file; of a split model, the first part (`-00001-of-00003.gguf`), which opens all others.

    The other parts are beside it; the case of their names may differ. Only headers are read. Raises GGUFError with the
    file, the offset and what is wrong.
    """
    return GGUFFile(path)


class GGUFFile:
    """An open GGUF file (or a split model's files), mapped into memory.

    `metadata` is that of the (first) file, `tensors` those of all parts in file order. After `close` both raise
    ClosedError, but objects taken from them before stay valid.
    """

    @checked
    def __init__(self, path: FilePath) -> None:
        self.path = path = Path(path)
        self._files: list[MappedFile] = []
        self._tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, tuple[MappedFile, int, int]] = {}
        try:
            header = self._add(path)
            for i, part in enumerate(_other_parts(self._files[0], header), start=2):
                self._add_part(part, i, header)
            _check_total(self._files[0], header.metadata, len(self._tensors))
        except BaseException:
            self.close()
            raise
        self.version = header.version
        self.alignment = header.alignment
        self._metadata = header.metadata

    @property
    def metadata(self) -> Metadata:
        """Keys and values. Raises ClosedError after `close`."""
        self._files[0].check_open()
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by name, in file order. Raises ClosedError after `close`."""
        self._files[0].check_open()
        return MappingProxyType(self._tensors)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files: one, or all parts of a split model."""
        return tuple(f.path for f in self._files)

    @property
    def n_bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(f.size for f in self._files)

    def fingerprint(self) -> str:
        """A hash of the headers and of each tensor's beginning: tells models apart, reading little of them."""
        digest = blake2b(digest_size=16)
        for file in self._files:
            data_start = min((first for of, first, _ in self._places.values() if of is file), default=file.size)
            digest.update(file.bytes[:data_start].data)
        for file, first, last in self._places.values():
            digest.update(file.bytes[first : min(last, first + _SAMPLE)].data)
        return digest.hexdigest()

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Release a tensor's mapped pages (of its bytes start to stop); they are read again on use.

        Pages shared with neighbours are kept. Does nothing where the platform cannot.
        """
        self._advise(name, start, stop, "MADV_DONTNEED", inside=True)

    def prefetch(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Ask the system to read a tensor's pages (of its bytes start to stop) ahead, where the platform can."""
        self._advise(name, start, stop, "MADV_WILLNEED", inside=False)

    def close(self) -> None:
        """Unmap the files (when no tensor's data is in use any more). Further calls do nothing."""
        self._tensors = {}
        for file in self._files:
            file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r})"

    def _advise(self, name: str, start: int, stop: int | None, advice: str, *, inside: bool) -> None:
        file, first, last = self._places[name]
        file.advise(first + start, last if stop is None else min(first + stop, last), advice, inside=inside)

    def _add(self, path: Path) -> Header:
        file = MappedFile(path)
        self._files.append(file)
        header = read_header(file)
        for t in header.tensors:
            if t.name in self._tensors:
                raise file.error(header.data_start, f"tensor {t.name!r} is in an earlier part of the model, too")
            data = file.bytes[t.start : t.start + t.n_bytes]
            self._tensors[t.name] = TensorInfo(t.name, t.shape, t.type.name, data)
            self._places[t.name] = file, t.start, t.start + t.n_bytes
        return header

    def _add_part(self, path: Path, i: int, first: Header) -> None:
        metadata = self._add(path).metadata
        no, count = metadata.get("split.no"), metadata.get("split.count")
        if no != i - 1 or count != first.metadata["split.count"]:
            raise GGUFError(f"{path} is not part {i} of this model: it has split.no {no} and split.count {count}")


def _other_parts(file: MappedFile, header: Header) -> list[Path]:
    """Paths of the other parts of a split model; none if the file is not split."""
    metadata = header.metadata
    count, no = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(no, int):
        raise GGUFError(f"{file.path}: split.count and split.no must be integers")
    if count <= 1:
        return []
    match = _PART_NAME.fullmatch(file.path.name)
    stem = match["stem"] if match else "NAME"
    first = f"{stem}-00001-of-{count:05d}.gguf"
    if no != 0:
        raise GGUFError(f"{file.path} is part {no + 1} of {count} of a model; open the first, {first}")
    if not match or file.path.name.casefold() != first.casefold():
        raise GGUFError(f"{file.path} is the first of {count} parts, which are found by name: call it {first}")
    parts = []
    for i in range(2, count + 1):
        name = f"{stem}-{i:05d}-of-{count:05d}.gguf"
        part = beside(file.path, name)
        if part is None:
            raise GGUFError(f"{file.path} is the first of {count} parts, but {name} is not beside it")
        parts.append(part)
    return parts


def _check_total(file: MappedFile, metadata: Metadata, n_tensors: int) -> None:
    total = metadata.get("split.tensors.count", n_tensors)
    if metadata.get("split.count", 1) > 1 and total != n_tensors:
        raise GGUFError(
            f"{file.path} and its other parts hold {n_tensors} tensors, not {total} as split.tensors.count says"
        )
