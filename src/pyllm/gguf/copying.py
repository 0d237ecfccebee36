"""Copies of a GGUF file: in other parts, or with other metadata; tensors byte for byte."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pyllm.config import Progress
from pyllm.gguf.reader import GGUFFile
from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value, copy_metadata

_PIECE = 16 << 20
"""Bytes written at a time."""


def copying(
    file: GGUFFile,
    target: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Value] | None = None,
    overwrite: bool = False,
    in_place: bool = False,
    split_bytes: int | None = None,
    split_tensors: int | None = None,
) -> GGUFWriter:
    """A writer for a file's tensors, with its metadata or others; nothing is written yet.

    `split_bytes`, `split_tensors`: limits of one file; None: no split. `in_place`: the target may be the source itself.
    """
    return GGUFWriter(
        target,
        copy_metadata(file.metadata) if metadata is None else metadata,
        [TensorSpec(t.name, t.shape, t.format) for t in file.tensors.values()],
        overwrite=overwrite or in_place,
        split_bytes=split_bytes,
        split_tensors=split_tensors,
        sources=() if in_place else file.parts,
    )


def copy_model(file: GGUFFile, writer: GGUFWriter, progress: Progress | None = None) -> None:
    """Write a file's tensors with a writer from `copying`. Raises GGUFError; then nothing is left behind."""
    tensors = list(file.tensors.values())
    n_bytes = max(1, sum(t.n_bytes for t in tensors))
    done = 0
    with writer:
        for t in tensors:
            for start in range(0, t.n_bytes, _PIECE):
                if progress is not None:
                    progress(f"writing {writer.path.name}", (done + start) / n_bytes)
                file.prefetch(t.name, start + _PIECE, start + 2 * _PIECE)
                writer.write(t.data[start : start + _PIECE])
                file.release(t.name, 0, start)
            file.release(t.name)
            done += t.n_bytes
