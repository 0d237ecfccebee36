"""`pyllm serve`: models behind the APIs of OpenAI, Ollama, Anthropic and llama-server."""

from __future__ import annotations

import click

from pyllm.cli import _command
from pyllm.cli._types import CountType, ModelType


@_command.command("serve", short_help="Serve models over HTTP.")
@click.argument("models", nargs=-1, type=ModelType(), metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", default=11500, show_default=True, type=CountType(0), help="Port; 0: any that is free.")
@click.option("-c", "--ctx", type=CountType(1), help="Context in tokens [default: as trained, as far as it fits].")
def command(models: tuple[str, ...], host: str, port: int, ctx: int | None) -> None:
    """Serve MODEL, or all local models, until Ctrl-C."""
    from pyllm.cli._output import note
    from pyllm.server.process import serve
    from pyllm.server.settings import ServeOptions

    options = ServeOptions(models=models, host=host, port=port, n_ctx=ctx)
    serve(options, ready=lambda address: note(f"pyllm serves at {address}"))
