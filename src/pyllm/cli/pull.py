"""`pyllm pull`: fetch models, or verify local ones."""

from __future__ import annotations

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import ModelType


@_command.command("pull", short_help="Fetch a model and check it.")
@click.argument("models", nargs=-1, type=ModelType(), metavar="[MODEL]...")
@_options.offline_option
def command(models: tuple[str, ...]) -> None:
    """Fetch MODEL (default: the catalog's first choice) and print its path.

    A local model is checked against its SHA-256. An interrupted download continues.
    """
    from pyllm import hub
    from pyllm.cli._output import write
    from pyllm.cli._progress import Display

    for model in models or (hub.default_name(),):
        with Display() as display:
            path = hub.pull(model, display.progress)
        write(f"{path}\n")
