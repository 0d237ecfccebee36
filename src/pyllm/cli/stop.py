"""`pyllm stop`: unload a model of a running server."""

from __future__ import annotations

from typing import Any

import click

from pyllm.cli import _command, _remote
from pyllm.cli._types import ModelType


@_command.command("stop", short_help="Unload models of a running server.")
@click.argument("models", nargs=-1, required=True, type=ModelType(), metavar="MODEL...")
@_remote.server_options
def command(models: tuple[str, ...], **server: Any) -> None:
    """Unload MODEL from a running server, when the requests that use it have ended. A further request loads it anew;
    Ctrl-C, or SIGTERM, ends the server itself."""
    from pyllm.cli._output import write

    for model in models:
        _remote.ask("/api/generate", {"model": model, "keep_alive": 0, "stream": False}, **server)
        write(f"stopped {model}\n")
