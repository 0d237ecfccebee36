"""`pyllm list`: local models, and those available by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.cli import _command, _options

if TYPE_CHECKING:
    from pyllm.hub import LocalModel

_UNCHECKED = "* on Hugging Face; not among the models that pyllm is tested with, size estimated"


@_command.command("list", short_help="Show local models, and others to fetch.")
@_options.output_option
def command(as_json: bool) -> None:
    """Show local models, including those that other programs fetched from Hugging Face, then the others.

    A missing model is fetched by the first command that uses it, or by `pyllm pull`.
    """
    from pyllm import hub
    from pyllm.cli._output import table, write

    found = hub.models()
    if as_json:
        import json

        write(json.dumps([_fields(m) for m in found], indent=2) + "\n")
        return
    here = [("NAME", "SIZE", "FORMAT", "PATH")]
    there = [("TO BE FETCHED", "SIZE", "FORMAT", "LICENCE", "")]
    for model in found:
        entry = model.entry
        if model.path is not None:
            here.append((model.name, _size(model), model.format, str(model.path)))
        elif entry is not None:
            mark = "" if entry.checked else " *"
            there.append((model.name + mark, _size(model), model.format, entry.licence, entry.description))
    if len(here) > 1:
        write(table(here, right=(1,)) + "\n")
    write(table(there, right=(1,)) + f"\n{_UNCHECKED}\n")


def _size(model: LocalModel) -> str:
    from pyllm.units import size

    if model.size is None:
        return ""
    exact = model.path is not None or (model.entry is not None and model.entry.checked)
    return ("" if exact else "~") + size(model.size)


def _fields(model: LocalModel) -> dict[str, object]:
    entry = model.entry
    return {
        "name": model.name,
        "path": None if model.path is None else str(model.path),
        "size": model.size,
        "parameters": entry.parameters if entry else None,
        "format": model.format or None,
        "licence": entry.licence if entry else None,
        "sha256": entry.sha256 if entry else model.named.files[0].sha256 if model.named else None,
        "description": entry.description if entry else None,
        "checked": entry.checked if entry else None,
        "base": model.named.base if model.named else None,
    }
