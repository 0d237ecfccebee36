"""`pyllm list`: the models that have a name, and which of them are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.cli import _command, _options

if TYPE_CHECKING:
    from pyllm.hub import LocalModel


@_command.command("list", short_help="Show known models, and which are here.")
@_options.output_option
def command(as_json: bool) -> None:
    """Show the models of the catalog, and those fetched from Hugging Face."""
    from pyllm import hub
    from pyllm.cli._output import table, write
    from pyllm.units import size

    found = hub.models()
    if as_json:
        import json

        write(json.dumps([_fields(m) for m in found], indent=2) + "\n")
        return
    rows = [("NAME", "SIZE", "FORMAT", "LICENCE", "HERE", "")]
    for model in found:
        e = model.entry
        here = "yes" if model.path is not None else "no"
        rows.append(
            (
                model.name,
                size(model.size),
                e.format if e else "",
                e.licence if e else "",
                here,
                e.description if e else "",
            )
        )
    write(table(rows, right=(1,)))


def _fields(model: LocalModel) -> dict[str, object]:
    entry = model.entry
    return {
        "name": model.name,
        "path": None if model.path is None else str(model.path),
        "size": model.size,
        "parameters": entry.parameters if entry else None,
        "format": entry.format if entry else None,
        "licence": entry.licence if entry else None,
        "sha256": entry.sha256 if entry else None,
        "description": entry.description if entry else None,
    }
