"""Speed of a model, in llama-bench's own terms: prompts of n tokens (pp), generation of n tokens (tg), at a depth.

    options = BenchOptions(models=("smollm2:135m",), n_prompt=(512,), n_gen=(128,), n_threads=(2,), repetitions=5)
    results = run(options, on_result=None, progress=None)               # -> list[BenchResult], in the order of cases
    results = main_run(options, output="md", write=print, progress=None)  # the same, and writes a report as it goes

`parse_ints("1,4-8+2")` and `parse_pairs("512,128")` turn a command line's lists and ranges into the tuples that
`BenchOptions` takes; `report.FORMATS` names the outputs (md, csv, json, jsonl). Tokens are random, logits are computed
for the last token only, and neither tokenizing nor sampling is timed. One warm-up comes before each case.
"""

from pyllm.bench.options import BenchCase, BenchOptions, parse_devices, parse_gpu_layers, parse_ints, parse_pairs
from pyllm.bench.report import FORMATS, main_run
from pyllm.bench.results import BenchResult
from pyllm.bench.runner import run, run_cases

__all__ = [
    "FORMATS",
    "BenchCase",
    "BenchOptions",
    "BenchResult",
    "main_run",
    "parse_devices",
    "parse_gpu_layers",
    "parse_ints",
    "parse_pairs",
    "run",
    "run_cases",
]
