"""Options that several commands share. Those of sampling are made from the fields of `SamplingParams`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from pyllm import config
from pyllm.config import GPULayers, KVDtype, PlacementOptions, SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

_SHORT = {"temperature": ("--temp", "--temperature"), "seed": ("-s", "--seed")}
"""Flags of fields that have another name on the command line, or a short one."""


MAIN_GPU = "The GPU, counted from 0, that has the last layers and the output head."
ALL_LAYERS = 1 << 20
"""More layers than any model has."""
_KV = get_args(KVDtype)


class BiasType(click.ParamType):
    """ID=BIAS, for one token."""

    name = "ID=BIAS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        try:
            token, bias = str(value).split("=")
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not of the form 15043=-1.5", param, ctx)


class GPULayersType(click.ParamType):
    """A number of layers, auto or all."""

    name = "N|auto|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GPULayers:
        try:
            return gpu_layers(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def gpu_layers(word: str) -> GPULayers:
    """What -ngl says. -1 is auto, as in llama.cpp. Raises ValueError."""
    word = word.strip().lower()
    if word in ("auto", "-1"):
        return "auto"
    if word == "all":
        return "all"
    if not word.isascii() or not word.isdigit():
        raise ValueError(f"{word!r} is no number of layers; use 20, auto or all")
    return int(word)


def model_option(function: F) -> F:
    """-m MODEL, the catalog's default when not given."""
    return click.option("-m", "--model", metavar="MODEL", help="A file, a name, or hf.co/user/repo[:quant].")(function)


def engine_options(function: F) -> F:
    """How the model runs: --backend, --ctx, --threads, --kv, and those of `placement_options`."""
    for option in reversed(
        (
            click.option(
                "--backend",
                default="auto",
                show_default=True,
                help="What computes: auto, cpu, cuda, mlx, …; `pyllm doctor` lists them.",
            ),
            click.option(
                "-c", "--ctx", type=click.IntRange(1), help="Context in tokens [default: as trained, at most 4096]."
            ),
            click.option("-t", "--threads", type=click.IntRange(1), help="Threads [default: physical cores]."),
            click.option("--kv", type=click.Choice(_KV), default="f16", show_default=True, help="Cache format."),
        )
    ):
        function = option(function)
    return function


def placement_options(function: F) -> F:
    """Which device computes what, with llama.cpp's flags; `placement` collects them."""
    for option in reversed(
        (
            click.option(
                "-ngl",
                "--n-gpu-layers",
                "--gpu-layers",
                type=GPULayersType(),
                metavar="N|auto|all",
                default="auto",
                show_default=True,
                help="Layers that run on GPUs: a number, auto or all.",
            ),
            click.option("-dev", "--device", multiple=True, metavar="NAME", help="GPUs to use, such as cuda0,cuda1."),
            click.option(
                "-ot",
                "--override-tensor",
                multiple=True,
                metavar="PATTERN=DEVICE",
                help="Where the tensors run whose names match; may be repeated, and hold commas.",
            ),
            click.option(
                "-ncmoe",
                "--n-cpu-moe",
                type=click.IntRange(0),
                default=0,
                help="First layers whose experts stay on the cpu.",
            ),
            click.option("-cmoe", "--cpu-moe", is_flag=True, help="The experts of all layers stay on the cpu."),
            click.option("-mg", "--main-gpu", type=click.IntRange(0), default=0, help=MAIN_GPU),
            click.option("-ts", "--tensor-split", metavar="N,N", help="Shares of the layers that the GPUs take."),
            click.option("-nkvo", "--no-kv-offload", is_flag=True, help="Attention and its cache stay on the cpu."),
        )
    ):
        function = option(function)
    return function


def placement(options: dict[str, Any]) -> PlacementOptions:
    """Takes the placement out of a command's `options`. Raises click.UsageError for what makes no sense."""
    n_cpu_moe = options.pop("n_cpu_moe")
    names = [name.strip() for text in options.pop("device") for name in text.split(",")]
    if not all(names):
        raise click.UsageError("--device: a name is empty; names are like cuda0,cuda1 or none.")
    return PlacementOptions(
        n_gpu_layers=options.pop("n_gpu_layers"),
        override_tensors=overrides(options.pop("override_tensor")),
        n_cpu_moe=ALL_LAYERS if options.pop("cpu_moe") else n_cpu_moe,
        main_gpu=options.pop("main_gpu"),
        tensor_split=shares(options.pop("tensor_split")),
        kv_offload=not options.pop("no_kv_offload"),
        devices=tuple(names),
    )


def overrides(values: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(pattern, device) pairs out of `ffn_.*_exps=cpu,output=cuda1`.

    A comma separates two where both sides hold an equals sign, so that patterns may hold commas, too. Raises
    click.UsageError.
    """
    pairs = []
    for text in values:
        rest = ""
        for part in text.split(","):
            pattern, equals, device = (rest + part).rpartition("=")
            if not equals:
                rest += part + ","
                continue
            rest = ""
            pairs.append((pattern, device.strip()))
            try:
                re.compile(pattern)
            except re.error as error:
                raise click.UsageError(f"--override-tensor: {pattern!r} is no regular expression: {error}.") from None
        if rest or not all(pattern and device for pattern, device in pairs):
            raise click.UsageError(f"--override-tensor: {text!r} is not of the form PATTERN=DEVICE.")
    return tuple(pairs)


def shares(text: str | None) -> tuple[float, ...]:
    """Numbers out of `3,1` or `3/1`."""
    try:
        values = tuple(float(part) for part in re.split("[,/]", text)) if text else ()
    except ValueError:
        raise click.UsageError(f"--tensor-split: {text!r} is no list of numbers such as 3,1.") from None
    if any(not 0 <= v < float("inf") for v in values) or (values and not sum(values)):
        raise click.UsageError(f"--tensor-split: shares are 0 or more, and not all 0; {text!r} has others.")
    return values


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
