"""`pyllm ps`: what a running server has loaded."""

from __future__ import annotations

from typing import Any

from pyllm.cli import _command, _options, _remote


@_command.command("ps", short_help="Show the models that a running server has loaded.")
@_remote.server_options
@_options.output_option
def command(as_json: bool, **server: Any) -> None:
    """Show the models that a running server has loaded, their memory and contexts, and when each is unloaded if nobody
    uses it."""
    from pyllm.cli._output import table, write, write_json
    from pyllm.units import size

    found = _remote.ask("/api/ps", **server)["models"]
    if as_json:
        write_json(found, indent=2)
        return
    rows = [("NAME", "MEMORY", "CONTEXT", "UNTIL")]
    for model in found:
        rows.append((model["name"], size(model["size"]), str(model["context_length"]), _until(model["expires_at"])))
    write(table(rows, right=(1, 2)))


def _until(moment: str) -> str:
    """A moment as a time of the day; one that is far away has not to be told."""
    from datetime import datetime

    left = datetime.fromisoformat(moment) - datetime.now().astimezone()
    return "in use, or for good" if left.days > 30 else datetime.fromisoformat(moment).astimezone().strftime("%H:%M:%S")
