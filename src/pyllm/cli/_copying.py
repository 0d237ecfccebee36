"""Shared by `pyllm split` and `pyllm merge`: writing a model in other parts."""

from __future__ import annotations

import click


def copy(
    source: str,
    target: str,
    overwrite: bool,
    dry_run: bool = False,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
) -> None:
    """Write `source` to `target`, split at the given limits, and print what was written."""
    from pyllm import hub, open_gguf
    from pyllm.cli._output import table, write
    from pyllm.cli._progress import Display
    from pyllm.gguf.copying import copy_model, copying
    from pyllm.units import size

    is_split = max_bytes is not None or max_tensors is not None
    with Display() as display:
        path = hub.resolve(source, display.progress)
        with open_gguf(path) as file:
            if not is_split and len(file.parts) == 1:
                raise click.ClickException(f"{path} is one file already; there is nothing to merge")
            writer = copying(file, target, overwrite=overwrite, split_bytes=max_bytes, split_tensors=max_tensors)
            if is_split and len(writer.paths) == 1:
                raise click.ClickException(
                    f"{path} ({size(writer.n_bytes)}) fits into one file; there is nothing to split"
                )
            if not dry_run:
                copy_model(file, writer, display.progress)
    if dry_run or is_split:
        rows = [(p.path.name, f"{len(p.tensors)} tensors", size(p.n_bytes)) for p in writer.parts]
        write(table(rows, right=(1, 2)))
    write(
        f"{'nothing was written; there would be' if dry_run else 'wrote'} {len(writer.paths)} "
        f"{'files' if len(writer.paths) > 1 else 'file'}, {size(writer.n_bytes)}: {writer.paths[0]}\n"
    )
