"""`pyllm split`: a model in several files."""

from __future__ import annotations

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import CountType, SizeType


@_command.command("split", short_help="Split a model into several files.")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="PREFIX")
@click.option("--max-size", type=SizeType(), help="Most bytes of a file: 2G, 700MiB.")
@click.option("--max-tensors", type=CountType(1), help="Most tensors of a file.")
@click.option("--dry-run", is_flag=True, help="Show the planned files.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@_options.offline_option
def command(
    source: str, target: str, max_size: int | None, max_tensors: int | None, dry_run: bool, overwrite: bool
) -> None:
    """Split the GGUF file SRC into PREFIX-00001-of-00003.gguf and so on.

    The first file has the metadata and opens all, here and in llama.cpp. A tensor that is larger than --max-size has a
    file of its own. A model that is split already may be split otherwise.
    """
    from pyllm.cli import _copying

    if max_size is None and max_tensors is None:
        raise click.UsageError("a limit is missing: --max-size 2G, or --max-tensors 128")
    _copying.copy(source, target, overwrite, dry_run, max_size, max_tensors)
