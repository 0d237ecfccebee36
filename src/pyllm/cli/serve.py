"""`pyllm serve`: models behind the APIs of OpenAI, Ollama, Anthropic and llama-server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import ModelType
from pyllm.config.serving import ServeOptions

_PACKAGES = ("starlette", "uvicorn", "msgspec", "prometheus_client")


@_command.command("serve", short_help="Serve models over HTTP.")
@click.argument("models", nargs=-1, type=ModelType(), metavar="[MODEL]...")
@_options.serving_options
@click.option("--api-key-file", metavar="FILE", help="Keys that clients must send, one per line.")
@_options.lora_options
@partial(_options.engine_options, apart=("n_ctx",))
@_options.cache_options
@_options.placement_options
@_options.offline_option
def command(models: tuple[str, ...], api_key_file: str | None, **options: Any) -> None:
    """Serve MODEL, or all local models, until Ctrl-C.

    Clients of OpenAI, Anthropic, Ollama and llama-server find their API at one address; a browser finds a chat page.
    """
    settings = _options.serving(options, models, _keys(api_key_file) if api_key_file is not None else ())
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f'the server needs further packages, {", ".join(missing)}; pip install "pyllm[server]" brings them'
        )
    from pyllm.server.process import serve

    serve(settings, ready=partial(_greet, settings))


def _greet(settings: ServeOptions, address: str, names: Sequence[str]) -> None:
    from pyllm.cli._output import note

    if settings.log_json:  # standard error is for programs
        return
    note(f"pyllm serves at {address}")
    if not names:
        note("there are no models here; `pyllm pull NAME` fetches one")
    elif settings.models:
        note(f"models: {', '.join(names)}")
    else:
        note(f"models, each loaded when it is first asked for: {', '.join(names)}")


def _keys(file: str) -> list[str]:
    """The keys of a file; lines that begin with # are none. Raises click.ClickException."""
    lines = [line.strip() for line in _options.read_text(file).splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise click.ClickException(f"{file} has no keys")
    return found
