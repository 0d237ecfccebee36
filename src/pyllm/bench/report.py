"""Reports in llama-bench's formats, written line by line as results come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pyllm.bench.options import BenchOptions
from pyllm.bench.results import BenchResult
from pyllm.bench.runner import run
from pyllm.config import Progress
from pyllm.errors import RequestError


class Report(Protocol):
    """Lines before the first result, for each result, and after the last."""

    def begin(self) -> Iterable[str]: ...
    def add(self, result: BenchResult) -> Iterable[str]: ...
    def end(self) -> Iterable[str]: ...


class MarkdownReport:
    """An aligned table; settings with several values get a column."""

    def __init__(self, options: BenchOptions) -> None:
        self._columns = [("model", 30), ("size", 10), ("params", 10), ("backend", 10), ("threads", 7)]
        for name, title, width in (
            ("n_batch", "n_batch", 8),
            ("kv_dtype", "kv_dtype", 8),
            ("n_gpu_layers", "ngl", 4),
            ("n_cpu_moe", "ncmoe", 5),
            ("devices", "dev", 12),
        ):
            if getattr(options, name) != getattr(BenchOptions(("-",)), name):
                self._columns.append((title, width))
        self._columns += [("test", 15), ("t/s", 20)]

    def begin(self) -> Iterable[str]:
        yield self._line([_justify(title, title, width) for title, width in self._columns])
        yield self._line(["-" * width if _is_text(t) else "-" * (width - 1) + ":" for t, width in self._columns])

    def add(self, result: BenchResult) -> Iterable[str]:
        facts, case = result.facts, result.case
        cells = {
            "model": facts.type,
            "size": _binary(facts.size),
            "params": _decimal(facts.n_params),
            "backend": facts.backend.upper(),
            "threads": str(result.n_threads),
            "n_batch": str(case.n_batch),
            "kv_dtype": case.kv_dtype,
            "ngl": str(facts.n_gpu_layers),
            "ncmoe": str(case.placement.n_cpu_moe),
            "dev": "/".join(facts.devices),
            "test": case.name,
            "t/s": f"{result.avg_ts:.2f} ± {result.stddev_ts:.2f}",
        }
        yield self._line([_justify(title, cells[title], width) for title, width in self._columns])

    def end(self) -> Iterable[str]:
        return ()

    @staticmethod
    def _line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"


class CSVReport:
    """One line per result, without the samples; a header first."""

    def __init__(self, options: BenchOptions) -> None:
        self._header_written = False

    def begin(self) -> Iterable[str]:
        return ()

    def add(self, result: BenchResult) -> Iterable[str]:
        fields = {k: v for k, v in result.as_dict().items() if not k.startswith("samples_")}
        if not self._header_written:
            self._header_written = True
            yield ",".join(fields)
        yield _csv_line(fields.values())

    def end(self) -> Iterable[str]:
        return ()


class JSONReport:
    """An array of objects."""

    def __init__(self, options: BenchOptions) -> None:
        self._n = 0

    def begin(self) -> Iterable[str]:
        yield "["

    def add(self, result: BenchResult) -> Iterable[str]:
        fields = [f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in result.as_dict().items()]
        # The comma comes with the next object, if there is one.
        yield ("  {\n" if self._n == 0 else "  ,{\n") + ",\n".join(fields) + "\n  }"
        self._n += 1

    def end(self) -> Iterable[str]:
        yield "]"


class JSONLinesReport:
    """One object per line."""

    def __init__(self, options: BenchOptions) -> None:
        pass

    def begin(self) -> Iterable[str]:
        return ()

    def add(self, result: BenchResult) -> Iterable[str]:
        yield json.dumps(result.as_dict(), ensure_ascii=False)

    def end(self) -> Iterable[str]:
        return ()


_REPORTS: dict[str, Callable[[BenchOptions], Report]] = {
    "md": MarkdownReport,
    "csv": CSVReport,
    "json": JSONReport,
    "jsonl": JSONLinesReport,
}
FORMATS = tuple(_REPORTS)


def main_run(
    options: BenchOptions,
    output: str = "md",
    write: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Measure and report: `write` gets the report line by line, without line ends, as results come.

    A report interrupted by an error or Ctrl-C is still closed, so that JSON stays valid.
    """
    if output not in _REPORTS:
        raise RequestError(f"'{output}' is not a report format; use one of {', '.join(FORMATS)}")
    report = _REPORTS[output](options)

    def emit(lines: Iterable[str]) -> None:
        for line in lines:
            write(line)

    emit(report.begin())
    try:
        return run(options, lambda result: emit(report.add(result)), progress)
    finally:
        emit(report.end())


def _csv_line(values: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(values)
    return line.getvalue()


def _is_text(title: str) -> bool:
    return title in ("model", "backend", "dev")


def _justify(title: str, text: str, width: int) -> str:
    return text.ljust(width) if _is_text(title) else text.rjust(width)


def _binary(n: int) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.2f} MiB"


def _decimal(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 10**9 else f"{n / 1e6:.2f} M"
