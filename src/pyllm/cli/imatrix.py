"""`pyllm imatrix`: the importance of a model's weights on a text, for `pyllm quantize --imatrix`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllm.cli import _command, _options

if TYPE_CHECKING:
    from pyllm.quant.calibrate.collection import Collector
    from pyllm.quant.imatrix import ImportanceMatrix


@_command.command("imatrix", short_help="Measure the importance of weights, for quantizing.")
@_options.model_option
@click.option("-f", "--file", metavar="TEXT", help="The text; - is standard input [default: a small mix of pyllm's].")
@click.option("-o", "--output", default="imatrix.gguf", show_default=True, metavar="OUT", help="File to write.")
@click.option("--chunks", type=click.IntRange(1), help="Read at most this many windows [default: all].")
@click.option("--skip", type=click.IntRange(0), help="Skip this many first windows.")
@click.option("--from", "base", metavar="FILE", help="Continue FILE: skip its windows of this text, add to its sums.")
@click.option("--merge", "parts", is_flag=True, help="Add up the importance matrices FILES; no model is read.")
@click.option("--process-output", is_flag=True, help="Include the output matrix.")
@click.option("--parse-special", is_flag=True, help="Text such as <|im_start|> means that token.")
@click.option("--save-every", type=click.IntRange(1), metavar="N", help="Write the file after every N windows.")
@click.option("--show-statistics", is_flag=True, help="Describe the importance matrix FILES; nothing is written.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@partial(_options.engine_options, ctx="512")
@click.argument("files", nargs=-1, metavar="[FILES]...")
def command(files: tuple[str, ...], parts: bool, show_statistics: bool, output: str, **options: Any) -> None:
    """Read a text in windows of --ctx tokens, and write the mean squares of each weight's inputs.

    OUT is a GGUF file as llama.cpp's, which reads it too. Ctrl-C writes what has been collected.
    """
    if show_statistics:
        if len(files) != 1:
            raise click.UsageError("--show-statistics describes one file")
        _show(files[0])
        return
    if parts != bool(files):
        raise click.UsageError("--merge adds up files, and only --merge and --show-statistics take them")
    overwrite = options.pop("overwrite")
    if Path(output).exists() and not overwrite and options["base"] != output:
        raise click.ClickException(f"{output} exists already; --overwrite replaces it")
    if not Path(output).absolute().parent.is_dir():
        raise click.ClickException(f"there is no folder {Path(output).absolute().parent}")
    if parts:
        _merge(files, output)
    else:
        _collect(output, options)


def _merge(files: tuple[str, ...], output: str) -> None:
    from pyllm.cli._output import note
    from pyllm.quant.imatrix import ImportanceMatrix

    merged = ImportanceMatrix.merge(ImportanceMatrix.load(file) for file in files)
    merged.save(output)
    note(f"{output}: {len(merged.sums)} weights, {merged.chunks} chunks of {merged.chunk_size} tokens")


def _collect(output: str, options: dict[str, Any]) -> None:
    from pyllm import hub
    from pyllm.cli._progress import Display
    from pyllm.quant.calibrate.collection import Collector
    from pyllm.quant.imatrix import ImportanceMatrix

    file, base, skip = options["file"], options["base"], options["skip"]
    text = _options.read_text(file) if file else None
    name = "pyllm calibration mix" if file is None else "standard input" if file == "-" else Path(file).name
    before = ImportanceMatrix.load(base) if base else None
    n_ctx = options.pop("n_ctx") or 512
    if skip is None:
        # Windows of this text that the file contains already.
        same = before is not None and before.datasets == [name] and before.chunk_size == n_ctx
        skip = before.chunks if before is not None and same else 0
    with Display(lines=True) as display:
        collector = Collector(
            options["model"] or hub.default_name(),
            n_ctx=n_ctx,
            process_output=options["process_output"],
            progress=display.progress,
            **_options.loading(options),
        )
    with collector:
        if text is None:
            from pyllm.quant.calibrate import text as calibration

            text = calibration.text()

        def save() -> ImportanceMatrix:
            matrix = collector.matrix()
            if before is not None:
                matrix = ImportanceMatrix.merge([before, matrix])
            matrix.save(output)
            return matrix

        steps = collector.read(
            text, dataset=name, skip=skip, n_windows=options["chunks"], parse_special=options["parse_special"]
        )
        _read(collector, steps, save, options["save_every"], output)


def _read(
    collector: Collector,
    steps: Any,
    save: Callable[[], ImportanceMatrix],
    save_every: int | None,
    output: str,
) -> None:
    from pyllm.cli._output import note
    from pyllm.cli._progress import Display

    start, saved = time.perf_counter(), 0
    try:
        with Display(lines=True) as display:
            for done, total in steps:
                if display.progress:
                    display.progress(f"reading windows ({done}/{total})", done / total)
                if save_every and done // save_every > saved // save_every and done < total:
                    save()
                    saved = done
    except KeyboardInterrupt:
        if collector.n_windows:
            save()
            note(f"stopped: {output} has the {collector.n_windows} windows that were read")
        raise
    matrix = save()
    speed = collector.n_windows * collector.n_ctx / (time.perf_counter() - start)
    note(
        f"{output}: {len(matrix.sums)} weights, {matrix.chunks} chunks of {matrix.chunk_size} tokens, "
        f"{speed:.0f} tokens/s"
    )
    unseen = {name: int((s.counts == 0).sum()) for name, s in matrix.sums.items() if not s.counts.all()}
    if unseen:
        note(
            f"note: {sum(unseen.values())} experts of {len(unseen)} weights were not reached by any token, "
            "and get the mean of the others; more text would reach them"
        )


def _show(file: str) -> None:
    from pyllm.cli._output import table, write
    from pyllm.quant.imatrix import ImportanceMatrix
    from pyllm.quant.imatrix_statistics import layer_statistics, weight_statistics

    matrix = ImportanceMatrix.load(file)
    weights = weight_statistics(matrix)
    write(
        f"{file}: {len(weights)} weights, {matrix.chunks} chunks of {matrix.chunk_size} tokens"
        + (f", from {', '.join(matrix.datasets)}" if matrix.datasets else "")
        + "\n\n"
    )
    rows = [("layer", "weight", "sum", "min", "max", "mean", "std", "active", "n", "entropy", "norm", "ZD", "cos")]
    for w in weights:
        rows.append(
            (
                "-" if w.layer is None else str(w.layer),
                w.name.removeprefix(f"blk.{w.layer}.").removesuffix(".weight"),
                f"{w.total:.2f}",
                f"{w.least:.4f}",
                f"{w.most:.4f}",
                f"{w.mean:.3f}",
                f"{w.deviation:.3f}",
                f"{w.active:.1%}",
                str(w.n),
                f"{w.entropy:.3f}",
                f"{w.entropy_share:.1%}",
                f"{w.outliers:.2%}",
                "-" if w.similarity is None else f"{w.similarity:.4f}",
            )
        )
    write(table(rows, right=[0, *range(2, 13)]))
    layers = [("layer", "sum", "ZD", "cos")]
    layers += [
        (str(s.layer), f"{s.total:.2f}", f"{s.outliers:.3%}", f"{s.similarity:.4f}") for s in layer_statistics(weights)
    ]
    write("\nmeans over each layer's weights, by columns\n\n" + table(layers, right=range(4)))
