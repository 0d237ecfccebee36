"""Runs cases directly on a compiled model, without the engine: only steps are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyllm.backends.base import Batch, Executable
from pyllm.bench.options import BenchCase, BenchOptions
from pyllm.bench.results import BenchResult, ModelFacts
from pyllm.config import ExecutionOptions, Progress
from pyllm.jit.processors import default_threads
from pyllm.llm.loading import Compiled, compile_model, find_model

if TYPE_CHECKING:
    from pyllm.bench.presets import PresetModel
    from pyllm.gguf import GGUFFile
    from pyllm.llm.adapters import Adapter

PRESET_PREFIX = "preset:"
_PAGE = 32


def run(
    options: BenchOptions,
    on_result: Callable[[BenchResult], None] | None = None,
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Measure all cases in order; `on_result` gets each result when it is done. Raises the errors of loading a
    model."""
    return run_cases(options.cases(), options, on_result, progress)


def run_cases(
    cases: Iterable[BenchCase],
    options: BenchOptions,
    on_result: Callable[[BenchResult], None] | None = None,
    progress: Progress | None = None,
) -> list[BenchResult]:
    """The same for given cases; `options` say how to measure. Neighbours share a loaded model if possible."""
    results: list[BenchResult] = []
    for _, group in groupby(cases, key=lambda c: (c.model, c.n_batch, c.kv_dtype, c.n_threads, c.placement)):
        for result in _run_group(list(group), options, progress):
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def _run_group(cases: Sequence[BenchCase], options: BenchOptions, progress: Progress | None) -> Iterator[BenchResult]:
    """Run cases that share a compiled model, whose KV cache fits the largest of them."""
    first = cases[0]
    n_seqs = max(c.n_parallel for c in cases)
    capacities = ExecutionOptions(
        n_pages=max(c.n_parallel * _pages_each(c) for c in cases),
        page_size=_PAGE,
        max_tokens=max(first.n_batch, n_seqs),
        max_seqs=n_seqs,
        max_rows=n_seqs,
        kv_dtype=first.kv_dtype,
        n_threads=first.n_threads or default_threads(),
        progress=progress,
    )
    with ExitStack() as files:
        file = open_model(first.model, progress)
        files.callback(file.close)
        adapters = [files.enter_context(adapter) for adapter in _adapters(options)]
        n_ctx = max(c.n_positions for c in cases)
        compiled = compile_model(file, n_ctx, capacities, options.backend, adapters, first.placement)
        try:
            facts = _facts(file, compiled)
            for case in cases:
                time.sleep(options.delay)
                work = Workload(compiled.executable, compiled.architecture.n_vocab, case)
                yield _measure(case, work, facts, options)
        finally:
            compiled.executable.close()


def open_model(model: str, progress: Progress | None = None, *, with_weights: bool = True) -> GGUFFile | PresetModel:
    """Open the file of a path or a name, or the preset of `preset:NAME:RECIPE` (without weights: sizes only); the
    caller closes it."""
    if model.startswith(PRESET_PREFIX):
        from pyllm.bench.presets import open_preset

        return open_preset(model.removeprefix(PRESET_PREFIX), with_weights=with_weights)
    from pyllm.gguf import open_gguf

    return open_gguf(find_model(model, progress))


def _adapters(options: BenchOptions) -> list[Adapter]:
    if not options.adapters:
        return []
    from pyllm.llm.adapters import open_adapters

    return open_adapters(options.adapters)


def _measure(case: BenchCase, work: Workload, facts: ModelFacts, options: BenchOptions) -> BenchResult:
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    work.prompt(0, case.n_depth)
    if options.warmup:
        work.prompt(case.n_depth, case.n_prompt)
        work.generate(case.n_depth + case.n_prompt, min(case.n_gen, 1))
    samples = []
    for _ in range(options.repetitions):
        start = time.perf_counter_ns()
        work.prompt(case.n_depth, case.n_prompt)
        work.generate(case.n_depth + case.n_prompt, case.n_gen)
        samples.append(time.perf_counter_ns() - start)
    return BenchResult(case, facts, work.executable.options.n_threads, began, tuple(samples))


@dataclass
class Workload:
    """Steps of random tokens over `case.n_parallel` sequences, each in its own pages.

    Pages before a measurement's first position keep their content, so a depth is filled only once.
    """

    executable: Executable
    n_vocab: int
    case: BenchCase

    def __post_init__(self) -> None:
        self._batch = Batch(self.executable.options)
        self._random = np.random.default_rng(0)
        # Where a device finds candidates itself, decode downloads only those.
        self._want: Literal["logits", "candidates"] = "candidates" if self.executable.n_candidates else "logits"
        each = _pages_each(self.case)
        self._pages = [np.arange(s * each, (s + 1) * each) for s in range(self.case.n_parallel)]

    def prompt(self, position: int, n: int) -> None:
        """Each sequence reads `n` tokens from `position` on; steps are filled sequence by sequence."""
        room = len(self._batch.tokens)
        self._batch.clear()
        for pages in self._pages:
            done = 0
            while done < n:
                chunk = min(n - done, room - self._batch.n_tokens)
                done += chunk
                self._batch.add(
                    self._tokens(chunk), position + done - chunk, pages, want="last" if done == n else "none"
                )
                if self._batch.n_tokens == room:
                    self._step()
        if self._batch.n_tokens:
            self._step()

    def generate(self, position: int, n: int) -> None:
        """Each sequence generates `n` tokens, one per step, with logits; the next token is random, not sampled."""
        for i in range(n):
            tokens = self._tokens(len(self._pages))
            for s, pages in enumerate(self._pages):
                self._batch.add(tokens[s : s + 1], position + i, pages, generated=True)
            self._step()

    def _step(self) -> None:
        self.executable.run(self._batch, self._want)
        self._batch.clear()

    def _tokens(self, n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return self._random.integers(0, self.n_vocab, n, dtype=np.int32)


def _pages_each(case: BenchCase) -> int:
    return -(-case.n_positions // _PAGE)


def _facts(file: GGUFFile | PresetModel, compiled: Compiled) -> ModelFacts:
    from pyllm import __version__, backends

    n_params = sum(t.n_elements for t in file.tensors.values())
    gpus = [device for device in compiled.devices if device.is_gpu]
    return ModelFacts(
        filename=str(file.path),
        type=_model_type(file.metadata, n_params),
        size=sum(t.n_bytes for t in file.tensors.values()),
        n_params=n_params,
        backend=",".join(dict.fromkeys(device.backend for device in compiled.devices)),
        cpu_info=backends.get("cpu").probe().device,
        version=__version__,
        gpu_info=", ".join(device.description for device in gpus),
        devices=tuple(device.name for device in compiled.devices),
        n_gpu_layers=compiled.n_gpu_layers,
    )


def _model_type(metadata: Mapping[str, Any], n_params: int) -> str:
    """Architecture, size and quantization in llama.cpp's words: `qwen2 1.5B Q4_K - Medium`."""
    from gguf import LlamaFileType

    size = metadata.get("general.size_label") or (
        f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.0f}M"
    )
    try:
        name = LlamaFileType(int(metadata.get("general.file_type", -1))).name
    except ValueError:
        return f"{metadata.get('general.architecture', '?')} {size}"
    name = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    for letter, word in (("_S", "Small"), ("_M", "Medium"), ("_L", "Large")):
        if name.endswith("_K" + letter):
            name = f"{name.removesuffix(letter)} - {word}"
    return f"{metadata.get('general.architecture', '?')} {size} {name}"
