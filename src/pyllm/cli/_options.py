"""Options shared by several commands. Sampling options are made from the settings of the steps."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click
from click.core import ParameterSource

from pyllm import env
from pyllm.cli._types import BiasType, CountType, GPULayersType, JSONObjectType, ModelType
from pyllm.config import KVDtype, PlacementOptions
from pyllm.sampling.general import all_settings

F = TypeVar("F", bound=Callable[..., Any])

MAIN_GPU = "The GPU, counted from 0, that has the last layers and the output head."
ALL_LAYERS = 1 << 20
"""A number of layers above any model's."""
_KV = get_args(KVDtype)


def model_option(function: F) -> F:
    """-m MODEL, as `model`; None where it is not given: the catalog's default. Also llama.cpp's -hf, and --offline."""

    @wraps(function)
    def with_model(model: str | None, hf_repo: str | None, **options: Any) -> Any:
        if hf_repo is not None:
            if is_given("model"):
                raise click.UsageError("-m and --hf-repo both name a model")
            model = hub_name(hf_repo)
        return function(model=model, **options)

    hf = click.option("-hf", "-hfr", "--hf-repo", metavar="REPO", hidden=True)
    return click.option(
        "-m", "--model", type=ModelType(), metavar="MODEL", help="A file, a name, or hf.co/user/repo[:quant]."
    )(hf(offline_option(cast(F, with_model))))


def offline_option(function: F) -> F:
    """--offline, for commands that may fetch a model."""
    return click.option(
        "--offline",
        is_flag=True,
        expose_value=False,
        callback=_go_offline,
        help="Fetch nothing; a missing model is an error.",
    )(function)


def _go_offline(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.call_on_close(env.go_offline())


def model_argument(function: F) -> F:
    """MODEL or -m MODEL, as `model`."""

    @wraps(function)
    def with_model(named: str | None, model: str | None, **options: Any) -> Any:
        if named is not None and is_given("model", "hf_repo"):
            raise click.UsageError("the model is named twice: give MODEL or -m, not both")
        return function(model=named if named is not None else model, **options)

    return click.argument("named", required=False, type=ModelType(), metavar="[MODEL]")(
        model_option(cast(F, with_model))
    )


def hub_name(repo: str) -> str:
    """The name of a model in a repository of Hugging Face, as llama.cpp's -hf names it: user/repo[:quant]."""
    return "hf.co/" + re.sub(r"^(https?://)?(hf\.co|huggingface\.co)/", "", repo)


def is_given(*names: str) -> bool:
    """Whether the command line contains one of these options."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names)


def output_option(function: F) -> F:
    """--output text|json, and --json for short, as `as_json`."""

    @wraps(function)
    def with_format(output_format: str, is_json: bool, **options: Any) -> Any:
        return function(as_json=is_json or output_format == "json", **options)

    short = click.option("--json", "is_json", is_flag=True, hidden=True)
    return click.option(
        "--output",
        "output_format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How to print the result.",
    )(short(cast(F, with_format)))


def engine_options(function: F, ctx: str = "") -> F:
    """Options of execution: --backend, --ctx, --threads, --kv. `ctx`: help on the context, where it is not the trained
    length."""

    @wraps(function)
    def with_kv(kv: str | None, kv_values: str | None, **options: Any) -> Any:
        if kv is not None and kv_values is not None and kv != kv_values:
            raise click.UsageError(
                f"keys and values are kept in one format; give both the same, not {kv} and {kv_values}"
            )
        return wrapped(kv=kv or kv_values or "f16", **options)

    wrapped, function = function, cast(F, with_kv)
    for option in reversed(
        (
            click.option(
                "--backend",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="Backend: auto, cpu, cuda, mlx, …; `pyllm doctor` lists them.",
            ),
            click.option(
                "-c",
                "--ctx",
                type=CountType(1 if ctx else 0),
                help=f"Context in tokens{'' if ctx else '; 0: as trained'} [default: {ctx or 'that, at most 4096'}].",
            ),
            click.option("-t", "--threads", type=CountType(1), help="Threads [default: physical cores]."),
            click.option("--kv", type=click.Choice(_KV), help="Cache format [default: f16]."),
            click.option("-ctv", "--cache-type-v", "kv_values", type=click.Choice(_KV), hidden=True),
        )
    ):
        function = option(function)
    return function


def placement_options(function: F) -> F:
    """Options of placement, with llama.cpp's flags; `placement` collects them."""
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
                help="Device of tensors whose names match; may be repeated, or separated by commas.",
            ),
            click.option(
                "-ncmoe",
                "--n-cpu-moe",
                type=CountType(0),
                default=0,
                help="First layers whose experts stay on the cpu.",
            ),
            click.option("-cmoe", "--cpu-moe", is_flag=True, help="The experts of all layers stay on the cpu."),
            click.option("-mg", "--main-gpu", type=CountType(0), default=0, help=MAIN_GPU),
            click.option("-ts", "--tensor-split", metavar="N,N", help="The GPUs' shares of the layers."),
            click.option("-nkvo", "--no-kv-offload", is_flag=True, help="Attention and its cache stay on the cpu."),
        )
    ):
        function = option(function)
    return function


def placement(options: dict[str, Any]) -> PlacementOptions:
    """Remove the placement from a command's `options` and return it. Raises click.UsageError for invalid values."""
    n_cpu_moe = options.pop("n_cpu_moe")
    names = [name.strip() for text in options.pop("device") for name in text.split(",")]
    if not all(names):
        raise click.UsageError("--device: a name is empty; names are like cuda0,cuda1 or none")
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
    """(pattern, device) pairs of `ffn_.*_exps=cpu,output=cuda1`.

    A comma separates two pairs if both sides contain an equals sign, so patterns may contain commas. Raises
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
                raise click.UsageError(f"--override-tensor: {pattern!r} is not a regular expression: {error}") from None
        if rest or not all(pattern and device for pattern, device in pairs):
            raise click.UsageError(f"--override-tensor: {text!r} is not of the form PATTERN=DEVICE")
    return tuple(pairs)


def shares(text: str | None) -> tuple[float, ...]:
    """Numbers of `3,1` or `3/1`."""
    try:
        values = tuple(float(part) for part in re.split("[,/]", text)) if text else ()
    except ValueError:
        raise click.UsageError(f"--tensor-split: {text!r} is not a list of numbers such as 3,1") from None
    if any(not 0 <= v < float("inf") for v in values) or (values and not sum(values)):
        raise click.UsageError(f"--tensor-split: shares are 0 or more, and not all 0; {text!r} has others")
    return values


def lora_options(function: F) -> F:
    """--lora and --lora-scaled, each repeatable; `adapters` collects them."""
    scaled = click.option(
        "--lora-scaled", type=(str, float), multiple=True, metavar="FILE SCALE", help="The same, times SCALE."
    )
    return click.option("--lora", multiple=True, metavar="FILE", help="Apply a LoRA adapter; may be repeated.")(
        scaled(function)
    )


def adapters(options: dict[str, Any]) -> list[tuple[str, float]]:
    """Remove the adapters from a command's `options` and return files and scales."""
    return [*((file, 1.0) for file in options.pop("lora", ())), *options.pop("lora_scaled", ())]


def sampling_options(function: F) -> F:
    """Flags of the settings of sampling; `sampling` collects them."""
    for setting in reversed(all_settings()):
        if not setting.flags and setting.name == "logits_processors":
            continue  # functions
        flags = setting.flags or (flag_of(setting.name),)
        text = re.sub("`(\\w+)`", lambda found: flag_of(found[1]), setting.help or setting.doc)
        if setting.type == "Mapping[int, float]":
            option = click.option(*flags, setting.name, type=BiasType(), multiple=True, help=_repeated(text))
        elif setting.type.startswith("Sequence") and setting.name != "samplers":
            entry = click.INT if "int" in setting.type else click.STRING
            metavar = "ID" if entry is click.INT else "TEXT"
            option = click.option(
                *flags, setting.name, type=entry, metavar=metavar, multiple=True, help=_repeated(text)
            )
        elif setting.name == "samplers":
            option = click.option(*flags, setting.name, metavar="NAME;NAME", help=text)
        else:
            if setting.default is not None:
                text = f"{text}  [default: {setting.default}]"
            kind = int if setting.type.startswith("int") else float
            option = click.option(*flags, setting.name, type=kind, metavar="N", help=text)
        function = option(function)
    return function


def flag_of(name: str) -> str:
    """The long flag of a setting of sampling."""
    flags = next((s.flags for s in all_settings() if s.name == name), ())
    return max(flags, key=len) if flags else "--" + name.replace("_", "-")


def _repeated(text: str) -> str:
    return f"{text.removesuffix('.')}; may be repeated."


def sampling(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the sampling options from a command's `options`; returns those that were given, as keywords of
    `LLM.chat`."""
    given = {s.name: options.pop(s.name) for s in all_settings() if s.name in options}
    given["logit_bias"] = dict(given["logit_bias"])
    for name in ("banned_strings", "dry_sequence_breakers"):
        given[name] = tuple(map(text_option, given[name]))
    given = {name: value for name, value in given.items() if value not in (None, (), {})}
    if given.get("dry_sequence_breakers") == ("none",):
        given["dry_sequence_breakers"] = ()  # as llama.cpp has it
    return given


def answer_options(function: F) -> F:
    """Options of an answer: system message, end, and template variables; `request` collects them."""
    for option in reversed(
        (
            click.option(
                "-n",
                "--max-tokens",
                type=int,
                metavar="N",
                help="Most tokens to generate [default, and -1: until the model is done].",
            ),
            click.option("--system", metavar="TEXT", help="The system message."),
            click.option("--system-file", metavar="FILE", help="The system message, from a file."),
            click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
            click.option("--chat-template-file", metavar="FILE", help="A chat template in place of the model's own."),
            click.option(
                "--chat-template-kwargs",
                type=JSONObjectType(),
                help="Variables of the chat template, such as '{\"enable_thinking\": false}'.",
            ),
            click.option(
                "--reasoning",
                type=click.Choice(("show", "hide", "off")),
                help="What the model writes before its answer: shown, left out, or turned off in the chat template "
                "[default: shown on a terminal, left out elsewhere].",
            ),
        )
    ):
        function = option(function)
    return function


def form_options(function: F) -> F:
    """--json-schema and --grammar; `form` reads them."""
    for option in (
        click.option("--grammar", metavar="FILE", help="Hold the answer to a grammar, in Lark or GBNF."),
        click.option("--json-schema", metavar="FILE", help="Hold the answer to a JSON schema."),
    ):
        function = option(function)
    return function


def form(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the answer's form from a command's `options`; returns keywords of `LLM.chat`. Values may be the texts
    themselves, as llama.cpp has them."""
    schema, grammar = options.pop("json_schema"), options.pop("grammar")
    if schema is not None and grammar is not None:
        raise click.UsageError("give --json-schema or --grammar, not both")
    if schema is not None:
        text = schema if schema.lstrip().startswith("{") else read_text(schema)
        try:
            return {"response_format": json.loads(text)}
        except (ValueError, RecursionError) as error:
            raise click.ClickException(f"--json-schema is not JSON: {error}") from None
    if grammar is not None:
        return {"grammar": grammar if re.search(r"::=|\bstart\s*:", grammar) else read_text(grammar)}
    return {}


def request(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the sampling and answer options from a command's `options`; returns keywords of `LLM.chat`."""
    found: dict[str, Any] = {**sampling(options), "stop": tuple(map(text_option, options.pop("stop")))}
    max_tokens = options.pop("max_tokens")
    if max_tokens is not None:
        if max_tokens < -2:
            raise click.UsageError(f"-n must be a number of tokens, or -1, not {max_tokens}")
        found["max_tokens"] = max_tokens if max_tokens >= 0 else None
    if (variables := options.pop("chat_template_kwargs")) is not None:
        found["variables"] = variables
    return found


def system(options: dict[str, Any]) -> str | None:
    """Remove the system message from a command's `options` and return it."""
    text, file = options.pop("system"), options.pop("system_file")
    if text is not None and file is not None:
        raise click.UsageError("give the system message with --system or --system-file, not both")
    if file is not None:
        return read_text(file)
    return None if text is None else text_option(text)


def chat_template(options: dict[str, Any]) -> str | None:
    """Remove the chat template from a command's `options` and return the file's text, if one is named.

    Raises TemplateError where it does not parse.
    """
    file = options.pop("chat_template_file")
    if file is None:
        return None
    from pyllm.chat import ChatTemplate

    text = read_text(file)
    ChatTemplate({"default": text})  # to say so before a model is loaded
    return text


def text_option(value: str) -> str:
    """An argument as text: bytes that are not UTF-8 become replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_json(path: str) -> Any:
    """A file's JSON. Raises click.ClickException where it is none."""
    import json

    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise click.ClickException(f"{path} is not JSON: {error}") from None


def read_text(path: str) -> str:
    """A text file's content, `-` for standard input. Raises click.ClickException where it is not UTF-8."""
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{name} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{name}: {error.strerror or error}") from error
