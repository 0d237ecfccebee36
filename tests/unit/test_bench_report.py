"""Reports and runner on an executable that only counts."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyllm.backends.base import Batch
from pyllm.bench import FORMATS, BenchOptions, BenchResult, main_run, report
from pyllm.bench.results import ModelFacts
from pyllm.bench.runner import Workload, _model_type
from pyllm.config import ExecutionOptions
from pyllm.errors import RequestError

OPTIONS = BenchOptions(("m.gguf",), n_prompt=(512,), n_gen=(128,), n_threads=(2,))
FACTS = ModelFacts("m.gguf", "llama 135M Q4_1", 98_000_000, 134_515_008, "cpu", "Some CPU", "9.9")
SAMPLES = (100_000_000, 110_000_000, 120_000_000)
# The fields of llama-bench's JSON (tools/llama-bench/README.md) that mean something without its own settings.
LLAMA_BENCH_FIELDS = """
    build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch
    n_ubatch n_threads type_k type_v n_gpu_layers n_cpu_moe main_gpu no_kv_offload devices tensor_split
    tensor_buft_overrides n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns
    samples_ts
"""


def results_of(options: BenchOptions) -> list[BenchResult]:
    return [BenchResult(case, FACTS, 2, "2026-01-02T03:04:05Z", SAMPLES) for case in options.cases()]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """What `main_run` writes in the format that the test's parameter names."""

    def run(options: BenchOptions, on_result: Any, progress: Any) -> list[BenchResult]:
        for result in results_of(options):
            on_result(result)
        return results_of(options)

    monkeypatch.setattr(report, "run", run)
    written: list[str] = []
    main_run(OPTIONS, request.param, written.append)
    return "\n".join(written).split("\n")


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_json(lines: list[str]) -> None:
    pp, tg = json.loads("\n".join(lines))
    assert set(LLAMA_BENCH_FIELDS.split()) | {"n_parallel"} == set(pp)
    assert (pp["n_prompt"], pp["n_gen"], tg["n_prompt"], tg["n_gen"]) == (512, 0, 0, 128)
    rates = [512 / (ns / 1e9) for ns in SAMPLES]
    assert pp["samples_ns"] == list(SAMPLES)
    assert pp["samples_ts"] == pytest.approx(rates, abs=1e-3)
    assert pp["avg_ts"] == pytest.approx(statistics.mean(rates))
    assert pp["stddev_ts"] == pytest.approx(statistics.stdev(rates), rel=1e-5)
    assert pp["stddev_ns"] == pytest.approx(statistics.stdev(SAMPLES))


@pytest.mark.parametrize("lines", ["jsonl"], indirect=True)
def test_jsonl(lines: list[str]) -> None:
    assert [json.loads(line)["n_gen"] for line in lines] == [0, 128]


@pytest.mark.parametrize("lines", ["csv"], indirect=True)
def test_csv(lines: list[str]) -> None:
    rows = list(csv.DictReader(lines))
    assert [row["n_prompt"] for row in rows] == ["512", "0"]
    assert rows[0]["model_type"] == "llama 135M Q4_1"
    assert "samples_ns" not in rows[0]


@pytest.mark.parametrize("lines", ["md"], indirect=True)
def test_markdown(lines: list[str]) -> None:
    assert len({len(line) for line in lines}) == 1, "columns line up"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert cells[2][:6] == ["llama 135M Q4_1", "93.46 MiB", "134.52 M", "CPU", "2", "pp512"]
    assert [c[5] for c in cells[2:]] == ["pp512", "tg128"]
    assert " ± " in cells[2][6]


def test_a_single_sample_has_no_deviation() -> None:
    result = replace(results_of(OPTIONS)[0], samples_ns=(5,))
    assert (result.stddev_ns, result.stddev_ts) == (0, 0)


def test_json_is_closed_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: BenchOptions, on_result: Any, progress: Any) -> list[BenchResult]:
        on_result(results_of(options)[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run", run)
    written: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        main_run(OPTIONS, "json", written.append)
    assert len(json.loads("\n".join(written))) == 1


def test_unknown_format() -> None:
    with pytest.raises(RequestError, match=", ".join(FORMATS)):
        main_run(OPTIONS, "xml")


class Counter:
    """Keeps what each step was given, and checks that every sequence's positions are whole and its pages its own."""

    def __init__(self, options: ExecutionOptions) -> None:
        self.options = options
        self.steps: list[tuple[int, int, int]] = []
        self.next: dict[int, int] = {}

    n_candidates = 0

    def run(self, batch: Batch, want: str) -> None:
        assert want == "logits"
        self.steps.append((batch.n_tokens, batch.n_seqs, batch.n_rows))
        assert (batch.tokens[: batch.n_tokens] < 100).all()
        for s in range(batch.n_seqs):
            start, n = batch.spans[s]
            first_page, position = int(batch.page_tables[s, 0]), int(batch.positions[start])
            assert self.next.get(first_page, 0) == position
            self.next[first_page] = position + int(n)
            np.testing.assert_array_equal(batch.positions[start : start + n], np.arange(position, position + n))


@pytest.mark.parametrize("n_parallel", [1, 3])
@pytest.mark.parametrize("n_batch", [16, 512])
def test_workload_does_each_token_once(n_parallel: int, n_batch: int) -> None:
    (case,) = BenchOptions(
        ("m",), n_prompt=(), n_gen=(), pg=((40, 5),), n_depth=(7,), n_parallel=(n_parallel,), n_batch=(n_batch,)
    ).cases()
    pages = -(-case.n_positions // 32)
    executable = Counter(
        ExecutionOptions(n_pages=pages * n_parallel, max_tokens=n_batch, max_seqs=n_parallel, max_rows=n_parallel)
    )
    work = Workload(executable, 100, case)  # type: ignore[arg-type]
    work.prompt(0, 7)
    work.prompt(7, 40)
    work.generate(47, 5)
    assert executable.next == {s * pages: 52 for s in range(n_parallel)}
    assert sum(n for n, _, _ in executable.steps) == 52 * n_parallel
    assert executable.steps[-5:] == [(n_parallel, n_parallel, n_parallel)] * 5
    assert max(n for n, _, _ in executable.steps) <= n_batch
    prompt_steps = executable.steps[:-5]
    assert sum(rows for _, _, rows in prompt_steps) == 2 * n_parallel, "one row for the end of each prompt"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "llama", "general.size_label": "135M", "general.file_type": 3}, "llama 135M Q4_1"),
        ({"general.architecture": "qwen2", "general.file_type": 15}, "qwen2 1.5B Q4_K - Medium"),
        ({"general.architecture": "qwen2"}, "qwen2 1.5B"),
    ],
)
def test_model_type(metadata: dict[str, Any], words: str) -> None:
    assert _model_type(metadata, 1_543_714_304) == words
