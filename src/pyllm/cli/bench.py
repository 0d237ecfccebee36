"""`pyllm bench`: speed, with llama-bench's flags and fields."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pyllm.cli import _command, _options
from pyllm.cli._types import CountType, ModelType
from pyllm.config import KVDtype, LoadSettings

if TYPE_CHECKING:
    from pyllm.bench import BenchOptions
    from pyllm.cli._progress import Display

_LIST = "A number, a list such as 128,512, or a range such as 1-4, 1-9+2 or 1-8*2."


@_command.command("bench", short_help="Measure speed, as llama-bench does.")
@click.argument("named", nargs=-1, type=ModelType(), metavar="[MODEL]...")
@click.option(
    "-m",
    "--model",
    "models",
    type=ModelType(),
    multiple=True,
    metavar="MODEL",
    help="Repeatable; commas separate several.",
)
@click.option("-hf", "-hfr", "--hf-repo", multiple=True, hidden=True)
@click.option("--preset", "presets", multiple=True, metavar="NAME[:RECIPE]", help="Random weights in a model's shape.")
@_options.offline_option
@click.option("-p", "--n-prompt", multiple=True, metavar="N", help=f"Tokens of prompt [default: 512]. {_LIST}")
@click.option("-n", "--n-gen", multiple=True, metavar="N", help="Tokens to generate [default: 128].")
@click.option("-pg", "pg", multiple=True, metavar="PP,TG", help="Prompt and generation in one case; may be repeated.")
@click.option("-d", "--n-depth", multiple=True, metavar="N", help="Tokens in the context before [default: 0].")
@click.option("-npl", "--n-parallel", multiple=True, metavar="N", help="Sequences side by side [default: 1].")
@click.option("-t", "--threads", multiple=True, metavar="N", help="Threads [default: physical cores].")
@click.option("-b", "--batch-size", multiple=True, metavar="N", help="Most tokens of one step [default: 512].")
@click.option("--kv", multiple=True, metavar="TYPE", help="Cache format: f16, f32 or q8_0 [default: f16].")
@click.option("-r", "--repetitions", type=CountType(1), default=5, show_default=True, help="Repetitions of each case.")
@click.option("-o", "--output", default="md", show_default=True, metavar="md|csv|json|jsonl", help="Report format.")
@_options.load_option("backend")
@click.option("-ngl", "--n-gpu-layers", multiple=True, metavar="N", help="Layers on GPUs, auto or all [default: auto].")
@click.option("-dev", "--device", multiple=True, metavar="NAME", help="GPUs to try; cuda0/cuda1 is both together.")
@click.option("-ncmoe", "--n-cpu-moe", multiple=True, metavar="N", help="First layers whose experts stay on the cpu.")
@_options.load_option("override_tensors")
@_options.load_option("main_gpu")
@_options.load_option("tensor_split", metavar="N/N")
@_options.load_option("kv_offload")
@_options.lora_options
@click.option(
    "--spec",
    "specs",
    multiple=True,
    metavar="METHOD",
    help="Compare answers with and without speculation: ngram, mtp or draft=MODEL; may be repeated.",
)
@click.option("--delay", type=click.FloatRange(0), default=0.0, help="Seconds to wait before each case.")
@click.option("--no-warmup", is_flag=True, help="Skip the warm-up.")
def command(
    named: tuple[str, ...],
    models: tuple[str, ...],
    hf_repo: tuple[str, ...],
    presets: tuple[str, ...],
    n_prompt: tuple[str, ...],
    n_gen: tuple[str, ...],
    pg: tuple[str, ...],
    n_depth: tuple[str, ...],
    n_parallel: tuple[str, ...],
    threads: tuple[str, ...],
    batch_size: tuple[str, ...],
    kv: tuple[str, ...],
    repetitions: int,
    output: str,
    n_gpu_layers: tuple[str, ...],
    device: tuple[str, ...],
    n_cpu_moe: tuple[str, ...],
    specs: tuple[str, ...],
    delay: float,
    no_warmup: bool,
    **options: Any,
) -> None:
    """Measure how many tokens per second a model reads (pp) and writes (tg).

    Lists and ranges are crossed. Tokens are random; nothing is tokenized or sampled. A preset needs no download:
    `--preset llama3-8b:Q4_K_M`; llama3-1b, llama3-3b, llama3-70b, qwen3-30b-a3b,
    deepseek-v2-lite, glm4.5-air, llama4-scout and qwen3-embedding-0.6b are others. With `--spec`, answers
    of up to `-n` tokens to three tasks are compared instead: an edit, code, free text.
    """
    from pyllm.bench import FORMATS, BenchOptions, main_run, parse_devices, parse_gpu_layers, parse_pairs
    from pyllm.bench.presets import parse as parse_preset
    from pyllm.bench.runner import PRESET_PREFIX
    from pyllm.cli._output import write
    from pyllm.cli._progress import Display
    from pyllm.errors import RequestError
    from pyllm.hub import default_name

    named += tuple(map(_options.hub_name, hf_repo))
    if (named or presets) and not _options.is_given("models"):
        models = ()  # of the environment
    settings = LoadSettings(**_options.loading(options))
    output = "md" if output == "text" else output
    if output not in FORMATS:
        raise click.UsageError(f"-o {output}: there are {', '.join(FORMATS)}")
    shapes = tuple(PRESET_PREFIX + ":".join(parse_preset(p)) for text in presets for p in text.split(","))
    try:
        chosen = BenchOptions(
            models=(*_models((*named, *models)), *shapes) or (default_name(),),
            n_prompt=_ints(n_prompt, (512,)),
            n_gen=_ints(n_gen, (128,)),
            pg=tuple(pair for text in pg for pair in parse_pairs(text)),
            n_depth=_ints(n_depth, (0,)),
            n_parallel=_ints(n_parallel, (1,)),
            n_threads=_ints(threads, ()),
            n_batch=_ints(batch_size, (512,)),
            kv_dtype=tuple(cast(KVDtype, word) for text in kv for word in text.split(",")) or ("f16",),
            n_gpu_layers=tuple(n for text in n_gpu_layers for n in parse_gpu_layers(text)) or ("auto",),
            n_cpu_moe=_ints(n_cpu_moe, (0,)),
            devices=tuple(names for text in device for names in parse_devices(text)) or ((),),
            backend=settings.backend,
            placement=settings.placement,
            adapters=settings.adapters,
            repetitions=repetitions,
            warmup=not no_warmup,
            delay=delay,
        )
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    with Display() as display:
        if specs:
            _compare(chosen, specs, output, display)
        else:
            main_run(chosen, output, lambda line: write(line + "\n"), display.progress)


def _compare(chosen: BenchOptions, specs: tuple[str, ...], output: str, display: Display) -> None:
    """Print the speed of answers with and without speculation."""
    from pyllm.bench.speculation import compare, table
    from pyllm.cli._output import write

    if output not in ("md", "json", "jsonl"):
        raise click.UsageError(f"-o {output}: with --spec there are md, json, jsonl")
    placement = {f.name: getattr(chosen.placement, f.name) for f in fields(chosen.placement)}
    options = {
        **placement,
        "backend": chosen.backend,
        "kv_dtype": chosen.kv_dtype[0],
        "n_batch": chosen.n_batch[0],
        "n_threads": chosen.n_threads[0] if chosen.n_threads else None,
        "adapters": chosen.adapters,
        "progress": display.progress,
        "max_seqs": 1,
        "n_ctx": max(4096, 2 * chosen.n_gen[0]),
    }
    for model in chosen.models:
        found = compare(model, specs, options, chosen.n_gen[0], chosen.repetitions)
        if output == "md":
            for line in table(found):
                write(line + "\n")
        elif output == "jsonl":
            for one in found:
                write(json.dumps(one.as_dict()) + "\n")
        else:
            write(json.dumps([one.as_dict() for one in found], indent=2) + "\n")


def _models(values: tuple[str, ...]) -> tuple[str, ...]:
    """The named models; a comma separates two, unless it is part of a file's name."""
    return tuple(m for value in values for m in ([value] if Path(value).exists() else value.split(",")))


def _ints(values: tuple[str, ...], default: tuple[int, ...]) -> tuple[int, ...]:
    from pyllm.bench import parse_ints

    return tuple(n for text in values for n in parse_ints(text)) or default
