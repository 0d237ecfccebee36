"""`pyllm cp`: another name for a model."""

from __future__ import annotations

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import ModelType


@_command.command("cp", short_help="Give a model another name.")
@click.argument("model", type=ModelType())
@click.argument("name", metavar="NAME")
@_options.offline_option
def command(model: str, name: str) -> None:
    """Make NAME, a named model that is as MODEL is now; weights are not copied."""
    from pyllm import hub
    from pyllm.cli._output import write
    from pyllm.cli._progress import Display

    with Display() as display:
        made = hub.copy(model, name, display.progress)
    write(f"created {made.name} from {made.base}\n")
