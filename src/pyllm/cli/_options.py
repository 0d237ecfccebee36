"""Options that several commands share. Those of sampling are made from the fields of `SamplingParams`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click

from pyllm import config
from pyllm.config import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

_SHORT = {"temperature": ("--temp", "--temperature"), "seed": ("-s", "--seed")}
"""Flags of fields that have another name on the command line, or a short one."""


class BiasType(click.ParamType):
    """ID=BIAS, for one token."""

    name = "ID=BIAS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        try:
            token, bias = str(value).split("=")
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not of the form 15043=-1.5", param, ctx)


def model_option(function: F) -> F:
    """-m MODEL, the catalog's default when not given."""
    return click.option("-m", "--model", metavar="MODEL", help="A file, a name, or hf.co/user/repo[:quant].")(function)


def engine_options(function: F) -> F:
    """How the model runs: --backend, --ctx, --threads, --kv."""
    for option in reversed(
        (
            click.option(
                "--backend", default="cpu", show_default=True, help="What computes; `pyllm doctor` lists them."
            ),
            click.option(
                "-c", "--ctx", type=click.IntRange(1), help="Context in tokens [default: the library's choice]."
            ),
            click.option("-t", "--threads", type=click.IntRange(1), help="Threads [default: physical cores]."),
            click.option(
                "--kv", type=click.Choice(["f16", "f32"]), default="f16", show_default=True, help="Cache format."
            ),
        )
    ):
        function = option(function)
    return function


def lora_options(function: F) -> F:
    """--lora and --lora-scaled, as often as there are adapters; `adapters` collects them."""
    scaled = click.option(
        "--lora-scaled", type=(str, float), multiple=True, metavar="FILE SCALE", help="The same, times SCALE."
    )
    return click.option("--lora", multiple=True, metavar="FILE", help="Apply a LoRA adapter; may be repeated.")(
        scaled(function)
    )


def adapters(options: dict[str, Any]) -> list[tuple[str, float]]:
    """Takes the adapters out of a command's `options`: files and scales."""
    return [*((file, 1.0) for file in options.pop("lora", ())), *options.pop("lora_scaled", ())]


def sampling_options(function: F) -> F:
    """One flag for each field of SamplingParams; `sampling` collects them."""
    helps = _field_docs()
    for field in reversed(fields(SamplingParams)):
        flags = _SHORT.get(field.name, ("--" + field.name.replace("_", "-"),))
        text = helps.get(field.name, "")
        if field.name == "logit_bias":
            option = click.option(*flags, field.name, type=BiasType(), multiple=True, help=text)
        else:
            kind = int if str(field.type).startswith("int") else float
            if field.default is not None and field.default is not MISSING:
                text = f"{text}  [default: {field.default}]".strip()
            option = click.option(*flags, field.name, type=kind, help=text)
        function = option(function)
    return function


def sampling(options: dict[str, Any]) -> SamplingParams:
    """Takes the sampling options out of a command's `options`. Raises RequestError where one is out of bounds."""
    given = {f.name: options.pop(f.name) for f in fields(SamplingParams)}
    given["logit_bias"] = dict(given["logit_bias"])
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _field_docs() -> dict[str, str]:
    """The docstrings under the fields of SamplingParams, which Python does not keep."""
    try:
        tree = ast.parse(Path(config.__file__).read_text(encoding="utf-8"))
    except OSError:
        return {}
    (body,) = (n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "SamplingParams")
    docs = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            docs[node.target.id] = str(ast.literal_eval(after.value))
    return docs


def text_option(value: str) -> str:
    """An argument as text: bytes that are not UTF-8 become replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_text(path: str) -> str:
    """A text file's content, `-` for standard input. Raises click.ClickException where it is not UTF-8."""
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{'standard input' if path == '-' else path} is not UTF-8 text: {error}") from None
