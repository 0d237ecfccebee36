"""`pyllm show`: metadata and tensors of a model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _options

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile, TensorInfo

_WIDTH = 60
"""Characters shown of a value; --key shows all."""


@_command.command("show", short_help="Show a model file's metadata and tensors.")
@_options.model_argument
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--arch", is_flag=True, help="Show the architecture: layers, equal ones together.")
@click.option(
    "--modelfile", is_flag=True, help="Print the Modelfile of a named model, or of one that would be the same."
)
@click.option("--key", metavar="KEY", help="Print this metadata value alone, in full.")
@_options.output_option
@click.option("--set", "sets", multiple=True, metavar="KEY[:TYPE]=VALUE", help="Set metadata.")
@click.option("--unset", "unsets", multiple=True, metavar="KEY", help="Remove metadata.")
@click.option("-o", "--out", metavar="OUT", help="Write the changed model to OUT.")
@click.option("--in-place", is_flag=True, help="Replace MODEL by the changed model, once that is complete.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def command(
    model: str | None,
    tensors: bool,
    arch: bool,
    modelfile: bool,
    key: str | None,
    as_json: bool,
    sets: tuple[str, ...],
    unsets: tuple[str, ...],
    out: str | None,
    in_place: bool,
    overwrite: bool,
) -> None:
    """Show MODEL's metadata, and its tensors by format.

    With --set or --unset, write MODEL with other metadata: to OUT, or --in-place. A key that is there keeps its type.
    The type of a new one is guessed, or named: general.seed:u64=5, general.tags:str[]='["a", "b"]'.
    """
    if sets or unsets:
        _edit(model, sets, unsets, out, in_place, overwrite)
        return
    if out or in_place or overwrite:
        raise click.UsageError("-o, --in-place and --overwrite go with --set or --unset")
    from pyllm import hub, open_gguf
    from pyllm.cli._output import write, write_json
    from pyllm.cli._progress import Display

    model = model or hub.default_name()
    if modelfile:
        from pyllm.hub.modelfile import Modelfile, text_of

        named = hub.find_named(model)
        write(text_of(Modelfile(model) if named is None else named.modelfile()))
        return
    with Display() as display:
        path = hub.resolve(model, display.progress)
    with open_gguf(path) as file:
        if arch:
            lines = _architecture(file)
            write_json(lines) if as_json else write("".join(f"{line}\n" for line in lines))
        elif key is not None:
            if key not in file.metadata:
                raise click.ClickException(f"{path} has no metadata key {key!r}")
            value = _plain(file.metadata[key])
            if isinstance(value, str) and not as_json:
                write(value + "\n")
            else:
                write_json(value)
        elif as_json:
            write_json(_as_dict(file))
        else:
            write(_report(file, tensors))


def _edit(
    model: str | None,
    sets: tuple[str, ...],
    unsets: tuple[str, ...],
    output: str | None,
    in_place: bool,
    overwrite: bool,
) -> None:
    from pyllm import hub
    from pyllm.cli import _editing
    from pyllm.cli._progress import Display

    if model is None:
        raise click.UsageError("the model to be changed is missing: pyllm show MODEL --set KEY=VALUE -o OUT")
    if (output is None) != in_place:
        raise click.UsageError("either -o OUT or --in-place says where the changed model goes")
    with Display() as display:
        path = hub.resolve(model, display.progress)
    _editing.edit(model, path, sets, unsets, output, overwrite)


def _architecture(file: GGUFFile) -> list[str]:
    from pyllm import archs
    from pyllm.archs.describe import describe

    return describe(archs.load(file.metadata, file.tensors, 1).decoder)


def _report(file: GGUFFile, each: bool) -> str:
    from pyllm.cli._output import table
    from pyllm.units import size

    found = list(file.tensors.values())
    n_bytes = sum(t.n_bytes for t in found)
    n_parameters = sum(t.n_elements for t in found)
    lines = [f"{file.path}\n"]
    lines += [
        f"GGUF version {file.version}, {len(found)} tensors, {_count(n_parameters)} parameters, {size(n_bytes)}\n\n"
    ]
    lines += [table([(key, _type(v), _short(v)) for key, v in file.metadata.items()]), "\n"]
    lines += _advice(file.metadata)
    lines += [f"note: {problem}\n\n" for problem in _template_problems(file.metadata)]
    if each:
        rows = [("TENSOR", "SHAPE", "FORMAT", "SIZE")]
        rows += [(t.name, " x ".join(map(str, t.shape)), t.format, size(t.n_bytes)) for t in found]
        lines += [table(rows, right=(3,)), "\n"]
    formats = [("FORMAT", "TENSORS", "PARAMETERS", "SIZE", "SHARE")]
    for name, group in _by_format(file.tensors).items():
        bytes_of = sum(t.n_bytes for t in group)
        formats.append(
            (
                name,
                str(len(group)),
                _count(sum(t.n_elements for t in group)),
                size(bytes_of),
                f"{100 * bytes_of / max(1, n_bytes):.1f} %",
            )
        )
    return "".join(lines) + table(formats, right=(1, 2, 3, 4))


def _advice(metadata: Mapping[str, Any]) -> list[str]:
    """The sampling that the file advises, where it does."""
    from pyllm.config import SamplingParams
    from pyllm.sampling import advised

    found, usual = advised(metadata), SamplingParams()
    changed = [
        (f.name, getattr(found, f.name)) for f in fields(found) if getattr(found, f.name) != getattr(usual, f.name)
    ]
    named = [f"{name} {' '.join(v) if isinstance(v, tuple) else f'{v:.7g}'}" for name, v in changed]
    return [f"sampling by default: {', '.join(named)}\n\n"] if named else []


def _template_problems(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Errors of the model's chat templates."""
    from pyllm import chat
    from pyllm.errors import TemplateError

    try:
        template = chat.from_gguf(metadata)
    except TemplateError as error:
        return (str(error),)
    return () if template is None else template.problems


def _by_format(tensors: Mapping[str, TensorInfo]) -> dict[str, list[TensorInfo]]:
    """Tensors by format, the format with the most bytes first."""
    groups: dict[str, list[TensorInfo]] = {}
    for tensor in tensors.values():
        groups.setdefault(tensor.format, []).append(tensor)
    return dict(sorted(groups.items(), key=lambda item: -sum(t.n_bytes for t in item[1])))


def _as_dict(file: GGUFFile) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "version": file.version,
        "alignment": file.alignment,
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "format": t.format, "bytes": t.n_bytes}
            for t in file.tensors.values()
        ],
    }


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it; what JSON lacks (inf, nan) becomes text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _type(value: Any) -> str:
    if isinstance(value, list):
        return "str[]"
    if hasattr(value, "dtype"):
        return f"{value.dtype}[]"
    return type(value).__name__


def _short(value: Any) -> str:
    """A value in one line, cut where it is long."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        head = json.dumps(_plain(value[:5]), ensure_ascii=False)[1:-1]
        text = f"{len(value)} values: {head}"
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _scalar(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _scalar(value: Any) -> str:
    """A float32 in its shortest form (1e-05), not as the float64 that it became."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.1f} M" if n >= 10**6 else str(n)
