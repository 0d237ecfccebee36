"""`pyllm show --set`: writing a model file with other metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllm.errors import GGUFError

if TYPE_CHECKING:
    from pyllm.gguf import GGUFFile, Value
    from pyllm.gguf.types import ValueType

_TYPES = {
    "u8": "UINT8",
    "i8": "INT8",
    "u16": "UINT16",
    "i16": "INT16",
    "u32": "UINT32",
    "i32": "INT32",
    "u64": "UINT64",
    "i64": "INT64",
    "f32": "FLOAT32",
    "f64": "FLOAT64",
    "bool": "BOOL",
    "str": "STRING",
}
"""Types by their suffix after a key; with [] arrays of them."""
_BOOLS = {"true": True, "false": False}


def edit(
    model: str, path: Path, sets: tuple[str, ...], unsets: tuple[str, ...], output: str | None, overwrite: bool
) -> None:
    """Write `path` to `output` (None: in place) with keys set and unset, and print the changes."""
    from pyllm import open_gguf
    from pyllm.cli._output import note, write
    from pyllm.cli._progress import Display
    from pyllm.gguf import copy_metadata
    from pyllm.gguf.copying import copy_model, copying
    from pyllm.units import size

    if output is None and not Path(model).is_file():
        raise click.ClickException(f"{model} is not your own file; write another with -o OUT")
    with open_gguf(path) as file, Display() as display:
        if output is None and len(file.parts) > 1:
            raise click.ClickException(f"{path} is one of {len(file.parts)} files; write one file with -o OUT")
        metadata = copy_metadata(file.metadata)
        changes = []
        for key in unsets:
            _check_key(file, key)
            if key not in metadata:
                raise click.ClickException(f"{path} has no metadata key {key!r} that could be unset")
            changes.append(f"{key}: {_shown(metadata.pop(key))} → (unset)")
        for text in sets:
            key, value = _parsed(file, text)
            before = f"{_shown(metadata[key])} → " if key in metadata else "(new) "
            changes.append(f"{key}: {before}{_shown(value)}")
            metadata[key] = value
        target = path if output is None else Path(output)
        writer = copying(file, target, metadata=metadata, overwrite=overwrite, in_place=output is None)
        copy_model(file, writer, display.progress)
    for change in changes:
        note(change)
    write(f"wrote {target}, {size(writer.n_bytes)}\n")


def _parsed(file: GGUFFile, text: str) -> tuple[str, Value]:
    """Key and value of KEY=VALUE or KEY:TYPE=VALUE."""
    from pyllm.gguf import Value
    from pyllm.gguf.types import ValueType

    left, equals, value = text.partition("=")
    key, _, kind = left.rpartition(":")
    if kind.removesuffix("[]") not in _TYPES or not key:
        key, kind = left, ""
    if not equals or not key:
        raise click.UsageError(f"{text!r} is not of the form KEY=VALUE or KEY:TYPE=VALUE")
    _check_key(file, key)
    if kind:
        item = ValueType[_TYPES[kind.removesuffix("[]")]]
        made = Value(ValueType.ARRAY, _items(key, value), item) if kind.endswith("[]") else _typed(key, value, item)
    elif key in file.metadata:
        field = file.metadata.field(key)
        if field.item_type is None:
            made = _typed(key, value, field.type)
        else:
            made = Value(field.type, _items(key, value), field.item_type)
    else:
        made = _guessed(key, value)
    try:
        made.to_bytes()
    except GGUFError as error:
        raise click.ClickException(f"{key}: {error}") from None
    return key, made


def _check_key(file: GGUFFile, key: str) -> None:
    from pyllm.gguf.parts import SPLIT_KEYS

    if key in SPLIT_KEYS:
        raise click.ClickException(f"{key} is for `pyllm split` and `pyllm merge` to set")
    if key.startswith("tokenizer.") and key in file.metadata and file.metadata.field(key).item_type is not None:
        raise click.ClickException(
            f"{key} is a table of the tokenizer, whose entries belong to rows of the model's weights; convert the "
            "model again to change it"
        )


def _typed(key: str, text: str, kind: ValueType) -> Value:
    """A single value of a known type."""
    from pyllm.gguf import Value
    from pyllm.gguf.types import ValueType

    if kind is ValueType.STRING:
        return Value(kind, text)
    try:
        if kind is ValueType.BOOL:
            return Value(kind, _BOOLS[text.lower()])
        return Value(kind, float(text) if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else int(text, 0))
    except (KeyError, ValueError):
        raise click.ClickException(f"{key} is {_word(kind)}, which {text!r} is not") from None


def _items(key: str, text: str) -> list[Any]:
    try:
        items = json.loads(text)
    except ValueError:
        items = None
    if not isinstance(items, list):
        raise click.ClickException(f'{key} is an array: give it as JSON, [1, 2] or ["a", "b"]')
    return items


def _guessed(key: str, text: str) -> Value:
    """A value of a new key, with a type guessed from its text."""
    from pyllm.gguf import Value

    if text.lower() in _BOOLS:
        return Value.of(_BOOLS[text.lower()])
    if re.fullmatch(r"[+-]?\d+", text):
        return Value.of(int(text))
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
        return Value.of(float(text))
    return Value.of(_items(key, text) if text.startswith("[") and text.endswith("]") else text)


def _word(kind: ValueType) -> str:
    return {"BOOL": "true or false"}.get(kind.name, f"a number ({kind.name.lower()})")


def _shown(value: Value) -> str:
    if value.item is not None:
        return f"{len(value.value)} values"
    text = json.dumps(value.value, ensure_ascii=False)
    kind = next((k for k, name in _TYPES.items() if name == value.type.name), "")
    return f"{text if len(text) <= 60 else text[:59] + '…'} ({kind})"
