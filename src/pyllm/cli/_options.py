"""Options shared by several commands, and what they become."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click
from click.core import ParameterSource

from pyllm import env
from pyllm.cli._settings import OF_GENERATION, OF_LOADING, OF_PLACEMENT, OF_SERVING, flag, flags, taken
from pyllm.cli._types import JSONObjectType, ModelType, text_option
from pyllm.config import KVDtype, LoadSettings, PlacementOptions
from pyllm.config.serving import ServeOptions
from pyllm.errors import RequestError
from pyllm.sampling.general import all_settings

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_OF_FOLDER = ("cache_dir", "cache_size")
ALL_LAYERS = 1 << 20
"""A number of layers above any model's."""


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
        # By the root: a command whose other options are wrong is never entered, so its own context is never closed.
        ctx.find_root().call_on_close(env.go_offline())


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


def engine_options(function: F, ctx: str = "", apart: Iterable[str] = ()) -> F:
    """Flags of loading, apart from placement, adapters and the cache's folder, and from settings called as in `apart`.
    `ctx`: help on the context, where it is not the trained length."""

    @wraps(function)
    def with_kv(kv_dtype: str | None, kv_values: str | None, **options: Any) -> Any:
        if kv_dtype is not None and kv_values is not None and kv_dtype != kv_values:
            raise click.UsageError(
                f"keys and values are kept in one format; give both the same, not {kv_dtype} and {kv_values}"
            )
        return function(kv_dtype=kv_dtype or kv_values, **options)

    with_values = click.option("-ctv", "--cache-type-v", "kv_values", type=click.Choice(get_args(KVDtype)), hidden=True)
    settings = {
        name: setting for name, setting in OF_LOADING.items() if name not in {*OF_PLACEMENT, *_OF_FOLDER, *apart}
    }
    if ctx:
        settings["n_ctx"] = replace(settings["n_ctx"], low=1, help=f"Context in tokens [default: {ctx}].")
    return flags(settings.values())(with_values(cast(F, with_kv)))


def cache_options(function: F) -> F:
    """Flags of a folder for the prefix cache; `loading` collects them."""
    return flags(OF_LOADING[name] for name in _OF_FOLDER)(function)


def load_option(name: str, **more: Any) -> Callable[[F], F]:
    """The flag of a single setting of loading. `more`: what differs from what the setting says."""
    return flag(OF_LOADING[name], **more)


def loading(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the settings of loading from a command's `options`; returns those that were given, as keywords of
    `pyllm.load`. Raises click.UsageError for invalid ones."""
    given = taken(options, OF_LOADING.values())
    if options.pop("cpu_moe", False):
        given["n_cpu_moe"] = ALL_LAYERS
    if found := adapters(options):
        given["adapters"] = found
    _checked(LoadSettings, given)
    return given


def placement_options(function: F) -> F:
    """Flags of placement, with llama.cpp's names."""
    all_experts = click.option("-cmoe", "--cpu-moe", is_flag=True, help="The experts of all layers stay on the cpu.")
    return flags(OF_PLACEMENT.values())(all_experts(function))


def placement(options: dict[str, Any]) -> PlacementOptions:
    """Remove the placement from a command's `options` and return it. Raises click.UsageError for invalid values."""
    given = taken(options, OF_PLACEMENT.values())
    if options.pop("cpu_moe", False):
        given["n_cpu_moe"] = ALL_LAYERS
    return _checked(PlacementOptions, given)


def serving_options(function: F) -> F:
    """Flags of a server; `serving` collects them."""
    return flags(OF_SERVING.values())(function)


def serving(options: dict[str, Any], models: Sequence[str], keys: Sequence[str] = ()) -> ServeOptions:
    """Remove the settings of a server, and of loading its models, from a command's `options`. `keys`: further API
    keys. Raises click.UsageError for invalid ones."""
    given = taken(options, OF_SERVING.values())
    given["api_keys"] = (*given.get("api_keys", ()), *keys)
    return _checked(ServeOptions, {**given, "models": tuple(models), "load": loading(options)})


def _checked(kind: Callable[..., T], given: dict[str, Any]) -> T:
    try:
        return kind(**given)
    except RequestError as error:
        raise click.UsageError(str(error)) from error


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
    return flags(all_settings())(function)


def sampling(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the sampling options from a command's `options`; returns those that were given, as keywords of
    `LLM.chat`."""
    given = taken(options, all_settings())
    if given.get("dry_sequence_breakers") == ("none",):
        given["dry_sequence_breakers"] = ()  # as llama.cpp has it
    return given


def answer_options(function: F) -> F:
    """Flags of generation, and options of a chat: system message, template; `request` collects them."""
    settings = {**OF_GENERATION, "max_tokens": replace(OF_GENERATION["max_tokens"], low=-2)}  # -2: as llama.cpp's
    return flags(settings.values())(_chat_options(function))


def _chat_options(function: F) -> F:
    for option in reversed(
        (
            click.option("--system", metavar="TEXT", help="The system message."),
            click.option("--system-file", metavar="FILE", help="The system message, from a file."),
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
            click.option(
                "--markdown/--no-markdown",
                default=None,
                help="On a terminal, show the answer as Markdown, or as it is written [default: Markdown, except with "
                "--raw, --json-schema and --grammar].",
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
    """Remove the flags of sampling and generation from a command's `options`; returns those that were given, as
    keywords of `LLM.chat`."""
    found = {**sampling(options), **taken(options, [s for s in OF_GENERATION.values() if s.flags])}
    if found.get("max_tokens", 0) < 0:
        found["max_tokens"] = None
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
