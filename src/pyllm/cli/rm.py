"""`pyllm rm`: delete fetched models."""

from __future__ import annotations

import click

from pyllm.cli import _command
from pyllm.cli._types import ModelType


@_command.command("rm", short_help="Delete a fetched or a named model.")
@click.argument("models", nargs=-1, required=True, type=ModelType(), metavar="MODEL...")
def command(models: tuple[str, ...]) -> None:
    """Delete MODEL, from the folder of models or Hugging Face's cache; unfinished downloads included. Of a model that
    `pyllm create` made, its settings go; the files that it was made of stay."""
    from pyllm import hub
    from pyllm.cli._output import write

    for model in models:
        for path in hub.remove(model):
            write(f"removed {path}\n")
