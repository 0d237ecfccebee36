"""The benchmark from end to end, on a tiny model and the reference backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm.bench import BenchOptions, run
from pyllm.errors import BackendError


def test_run_measures_every_case(shared_data: Path) -> None:
    path = shared_data / "archs" / "llama-dense.gguf"
    options = BenchOptions(
        (str(path),),
        n_prompt=(8,),
        n_gen=(2,),
        n_depth=(0, 33),
        n_parallel=(1, 3),
        n_threads=(1,),
        backend="reference",
        repetitions=2,
    )
    seen: list[str] = []
    results = run(options, on_result=lambda result: seen.append(result.case.name))
    assert seen == [r.case.name for r in results] == [c.name for c in options.cases()]
    assert len(results) == 8
    for result in results:
        fields = result.as_dict()
        assert len(fields["samples_ns"]) == 2
        assert fields["avg_ts"] > 0
        assert fields["model_filename"] == str(path)
        assert fields["model_type"].startswith("llama ")
        assert path.stat().st_size > fields["model_size"] == 4 * fields["model_n_params"], "all weights are F32"


def test_unknown_backend(shared_data: Path) -> None:
    with pytest.raises(BackendError, match="abacus"):
        run(BenchOptions((str(shared_data / "archs" / "llama-dense.gguf"),), backend="abacus"))
