"""`pyllm create`: a named model from a Modelfile."""

from __future__ import annotations

from pathlib import Path

import click

from pyllm.cli import _command, _options


@_command.command("create", short_help="Make a named model from a Modelfile.")
@click.argument("name", metavar="NAME")
@click.option("-f", "--file", default="Modelfile", metavar="FILE", help="The Modelfile, - for standard input.")
@_options.offline_option
def command(name: str, file: str) -> None:
    """Make NAME from a Modelfile, ./Modelfile by default: a model with a template, a system message and settings of its
    own. It can be used wherever a model is named.

    Nothing is copied: files that FROM and ADAPTER name stay where they are, and must stay as they are, which
    `pyllm pull NAME` checks.
    """
    from pyllm import hub
    from pyllm.cli._output import note, write
    from pyllm.cli._progress import Display
    from pyllm.hub.modelfile import parse
    from pyllm.llm.recipes import check

    found = parse(_options.read_text(file))
    check(found)
    folder = Path.cwd() if file == "-" else Path(file).parent
    with Display() as display:
        made = hub.create(name, found, folder.absolute(), display.progress)
    for word in found.ignored:
        note(f"note: {word} names code of Ollama's and means nothing here; the template decides")
    write(f"created {made.name} from {made.base}\n")
