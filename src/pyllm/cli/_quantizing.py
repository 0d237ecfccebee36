"""Display of quantization: a bar on a terminal, a line per tensor elsewhere, and tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyllm.cli._output import note, table, write
from pyllm.cli._progress import Lines
from pyllm.units import size

if TYPE_CHECKING:
    from pyllm.gguf.writer import TensorSpec
    from pyllm.quant.pipeline import Summary, TensorResult
    from pyllm.quant.quantize import Plan

_NAME_WIDTH = 28
_BAR_NAME_WIDTH = 20
_SHOWN = 3
"""Names of tensors in a note; more are only counted."""


class Board:
    """Context manager whose `progress` and `on_tensor` show the progress of quantization on standard error.

    `formats` are those of the new file, `sources` those of the old one, both by tensor.
    """

    def __init__(self, sources: Mapping[str, str], formats: Mapping[str, str], n_weights: int) -> None:
        self._sources = sources
        self._formats = formats
        self._n_weights = n_weights
        self._n_done = 0
        self._start = 0.0
        self._error = ""
        self._bar: Any = None
        self._task: Any = None
        self._lines = None if sys.stderr.isatty() else Lines()
        self.summary: Summary | None = None
        """The summary, once quantization is done."""

    def progress(self, what: str, share: float) -> None:
        """`what`: a tensor, or work before the first."""
        if self._lines is not None:
            self._lines.report(what, share)
            return
        if self._bar is None:
            self._open()
        speed = ""
        if what in self._formats:
            if not self._start:
                self._start = time.perf_counter()
                self._bar.reset(self._task)
            seconds = time.perf_counter() - self._start
            speed = f"{self._n_weights * share / seconds / 1e6:.0f} M/s" if seconds > 0.5 else ""
            what = f"{_cut(what.removesuffix('.weight')):{_BAR_NAME_WIDTH}} {self._change(what):13}"
        self._bar.update(self._task, completed=share, description=what, error=self._error, speed=speed)

    def on_tensor(self, result: TensorResult) -> None:
        """Show a finished tensor."""
        self._n_done += 1
        self._error = "" if result.is_copy else f"error {_percent(result.error.relative)}"
        if self._lines is not None:
            count = f"[{self._n_done:{len(str(len(self._formats)))}}/{len(self._formats)}]"
            line = f"{count} {result.name:{_NAME_WIDTH}}  {self._change(result.name):14}  {size(result.n_bytes):>10}"
            note(f"{line}  {self._error}".rstrip())

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _change(self, name: str) -> str:
        before, after = self._sources[name], self._formats[name]
        return after if before == after else f"{before} → {after}"

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[error]}", markup=False),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, error="", speed="")
        self._bar.start()


@contextmanager
def show_work(plan: Plan, n_bytes_before: int, as_json: bool) -> Iterator[Board]:
    """Show the execution of a plan: a board, whose `summary` is to be set, and the result afterwards."""
    start = time.perf_counter()
    n_weights = sum(t.n_elements for t in plan.specs)
    sources = {t.name: before for t, before in zip(plan.specs, plan.source_formats, strict=True)}
    with Board(sources, plan.formats, n_weights) as board:
        yield board
    seconds, summary = time.perf_counter() - start, board.summary
    if summary is None:
        return
    if as_json:
        write(json.dumps(as_dict(summary, plan.fallbacks) | {"seconds": seconds}, ensure_ascii=False) + "\n")
        return
    write(summary_table(summary))
    count = f" and {len(summary.paths) - 1} more files" if len(summary.paths) > 1 else ""
    write(
        f"\n{summary.paths[0]}{count}: {size(summary.n_bytes)}, was {size(n_bytes_before)}; "
        f"{seconds:.1f} s, {n_weights / seconds / 1e6:.0f} M weights/s\n"
    )
    report(plan.fallbacks, plan.unweighted)


def show_plan(plan: Plan, n_bytes: int, n_bytes_before: int, as_json: bool) -> None:
    """Show a plan: every tensor, and the file's size."""
    if as_json:
        tensors = [
            {"name": t.name, "shape": list(t.shape), "source_format": before, "format": t.format, "bytes": t.n_bytes}
            | ({"fallback": plan.fallbacks[t.name]} if t.name in plan.fallbacks else {})
            for t, before in zip(plan.specs, plan.source_formats, strict=True)
        ]
        write(json.dumps({"bytes": n_bytes, "tensors": tensors}, ensure_ascii=False) + "\n")
        return
    rows = [("TENSOR", "SHAPE", "FROM", "TO", "SIZE")]
    rows += [
        (t.name, " x ".join(map(str, t.shape)), before, t.format, size(t.n_bytes))
        for t, before in zip(plan.specs, plan.source_formats, strict=True)
    ]
    write(table(rows, right=(4,)) + "\n" + plan_table(plan.specs))
    write(f"\nnothing was written; the file would have {size(n_bytes)} (now {size(n_bytes_before)})\n")
    report(plan.fallbacks, plan.unweighted)


def summary_table(summary: Summary) -> str:
    """By format: tensors, weights, size, bits per weight, relative error."""
    from pyllm.quant.pipeline import total_error

    rows = [("FORMAT", "TENSORS", "WEIGHTS", "SIZE", "BITS", "ERROR")]
    groups = [*summary.by_format().items(), ("total", summary.tensors)]
    for name, group in groups:
        encoded = [t for t in group if not t.is_copy]
        error = _percent(total_error(encoded).relative) if encoded else "-"
        rows.append((*_sums(name, [(t.n_elements, t.n_bytes) for t in group]), error))
    return table(rows, right=range(1, 6))


def plan_table(specs: Iterable[TensorSpec]) -> str:
    """By format: tensors, weights, size, bits per weight."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for t in specs:
        groups.setdefault(t.format, []).append((t.n_elements, t.n_bytes))
    ordered = sorted(groups.items(), key=lambda item: -sum(n for _, n in item[1]))
    everything = [pair for group in groups.values() for pair in group]
    rows = [("FORMAT", "TENSORS", "WEIGHTS", "SIZE", "BITS")]
    rows += [_sums(name, group) for name, group in [*ordered, ("total", everything)]]
    return table(rows, right=range(1, 5))


def report(fallbacks: Mapping[str, str], unweighted: Iterable[str]) -> None:
    """Notes about deviations from the request."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in fallbacks.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        note(f"note: {reason} for {_some(names)}")
    unweighted = list(unweighted)
    if unweighted:
        note(f"note: the importance matrix has nothing of {_some(unweighted)}")


def as_dict(summary: Summary, fallbacks: Mapping[str, str]) -> dict[str, Any]:
    """A summary for --json."""
    return {
        "paths": [str(p) for p in summary.paths],
        "bytes": summary.n_bytes,
        "weights": summary.n_elements,
        "bits_per_weight": summary.bits_per_weight,
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "source_format": t.source_format,
                "format": t.format,
                "bytes": t.n_bytes,
                "relative_error": None if t.is_copy else t.error.relative,
                "weighted": t.is_weighted,
                **({"fallback": fallbacks[t.name]} if t.name in fallbacks else {}),
            }
            for t in summary.tensors
        ],
    }


def _sums(name: str, group: Iterable[tuple[int, int]]) -> tuple[str, str, str, str, str]:
    """Cells of (weights, bytes) of some tensors."""
    pairs = list(group)
    n, n_bytes = sum(n for n, _ in pairs), sum(b for _, b in pairs)
    return (
        name,
        str(len(pairs)),
        f"{n / 1e6:.1f} M" if n >= 10**6 else str(n),
        size(n_bytes),
        f"{8 * n_bytes / max(1, n):.2f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share == 0 or share >= 1e-4 else f"{100 * share:.0e} %"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cut(name: str) -> str:
    return name if len(name) <= _BAR_NAME_WIDTH else name[: _BAR_NAME_WIDTH - 1] + "…"
