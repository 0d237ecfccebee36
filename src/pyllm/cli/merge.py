"""`pyllm merge`: a model of several files in one."""

from __future__ import annotations

import click

from pyllm.cli import _command, _options


@_command.command("merge", short_help="Merge the files of a split model into one.")
@click.argument("source", metavar="FIRST-PART")
@click.argument("target", metavar="DST")
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@_options.offline_option
def command(source: str, target: str, overwrite: bool) -> None:
    """Merge a split model into the file DST. FIRST-PART (NAME-00001-of-00003.gguf) finds the other parts beside it."""
    from pyllm.cli import _copying

    _copying.copy(source, target, overwrite)
