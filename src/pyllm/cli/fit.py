"""`pyllm fit`: the memory of a model by device, before it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _options
from pyllm.config import LoadSettings

if TYPE_CHECKING:
    from pyllm.llm.fit import DeviceFit, Fit

_SEQUENCES = 1


@_command.command("fit", short_help="Show a model's memory by device.")
@_options.model_argument
@click.option("--preset", metavar="NAME[:RECIPE]", help="A model's shape in place of a file, such as llama3-8b:Q4_K_M.")
@_options.load_option("max_seqs", flags=("-np", "--parallel"), default=_SEQUENCES)
@_options.load_option("n_batch", flags=("-b", "--batch-size"))
@_options.output_option
@_options.engine_options
@_options.placement_options
def command(preset: str | None, as_json: bool, **options: Any) -> None:
    """Place a model as loading it would, and print its memory: weights and KV cache by layer; by device also work
    memory and free memory; and the peak of the process. Nothing is loaded."""
    from pyllm import hub
    from pyllm.bench.runner import PRESET_PREFIX, open_model
    from pyllm.cli._output import write, write_json
    from pyllm.cli._progress import Display
    from pyllm.llm.fit import fit
    from pyllm.llm.loading import execution_options, n_ctx_of
    from pyllm.llm.speculating import beside

    if preset is not None and _options.is_given("model", "hf_repo", "named"):
        raise click.UsageError("give a model or a preset, not both")
    name = PRESET_PREFIX + preset if preset is not None else options["model"] or hub.default_name()
    settings = LoadSettings(**{"max_seqs": _SEQUENCES, **_options.loading(options)})
    with Display() as display:
        file = open_model(name, display.progress, with_weights=False)
    with file:
        n_ctx = n_ctx_of(settings, file.metadata)
        with beside(settings, file, n_ctx) as draft:
            execution = execution_options(n_ctx, settings)
            found = fit(file, n_ctx, execution, settings.backend, settings.placement, draft)
        if as_json:
            write_json(_as_dict(found, str(file.path), n_ctx))
        else:
            write(_as_text(found, str(file.path), n_ctx))


def _as_text(found: Fit, model: str, n_ctx: int) -> str:
    from pyllm.cli._output import table
    from pyllm.units import size

    rows = [("layer", "weights", "kv", "device")]
    rows += [(layer.name, size(layer.weights), size(layer.kv), "+".join(layer.devices)) for layer in found.layers]
    sums: list[tuple[str, ...]] = [("device", "layers", "weights", "kv", "work", "other", "sum", "free")]
    for device in found.devices:
        n = sum(device.device.name in layer.devices for layer in found.layers if layer.name != "embedding")
        sizes = (device.weights, device.kv, device.work, device.other, device.total)
        free = "" if device.device.memory_free is None else size(device.device.memory_free)
        sums.append((device.device.name, str(n), *map(size, sizes), free))
    full = ", ".join(device.device.name for device in found.devices if not device.fits)
    gpus = "".join(
        f", {'of it ' if device.is_unified else ''}{device.device.name} {size(device.total)}"
        for device in found.devices[:-1]
    )
    return (
        f"{model}, context of {n_ctx} tokens, {found.n_gpu_layers} of {found.n_layers + 1} layers on GPUs\n\n"
        + table(rows, right=(1, 2))
        + "\n"
        + table(sums, right=range(1, 8))
        + (f"\ndoes not fit: {full}\n" if full else "")
        + f"\npeak memory of the process: {size(found.process)}{gpus}\n"
    )


def _as_dict(found: Fit, model: str, n_ctx: int) -> dict[str, Any]:
    def of(device: DeviceFit) -> dict[str, Any]:
        return {
            "name": device.device.name,
            "description": device.device.description,
            "weights": device.weights,
            "kv": device.kv,
            "work": device.work,
            "other": device.other,
            "sum": device.total,
            "free": device.device.memory_free,
            "fits": device.fits,
        }

    return {
        "model": model,
        "n_ctx": n_ctx,
        "n_layers": found.n_layers,
        "n_gpu_layers": found.n_gpu_layers,
        "layers": [
            {"name": layer.name, "weights": layer.weights, "kv": layer.kv, "devices": list(layer.devices)}
            for layer in found.layers
        ],
        "devices": [of(device) for device in found.devices],
        "process": found.process,
    }
