"""What `gpu.py` measures with: its report, what a card can do at most, rates and profiles of a compiled model."""

from __future__ import annotations

import json
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Report:
    """Results by section, printed and written as they come."""

    out: Path | None
    budget: float
    start: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.budget - (time.monotonic() - self.start)

    def section(self, name: str, work: Callable[[dict[str, Any]], None], least: float = 0.0) -> None:
        """Have `work` fill a dictionary; keep how far it came, and why no further. With less than `least` seconds it is
        left out."""
        print(f"\n== {name} ({time.monotonic() - self.start:.0f} s)", flush=True)
        found: dict[str, Any] = {}
        self.results[name] = found
        if self.left < least:
            found["skipped"] = f"{self.left:.0f} s are left, it wants {least:.0f}"
        else:
            start = time.monotonic()
            try:
                work(found)
            except (Exception, SystemExit) as error:
                # One section's failure must not cost the others their time on the card.
                traceback.print_exc(limit=-6)
                found["error"] = f"{type(error).__name__}: {error}"
            self.results.setdefault("seconds", {})[name] = round(time.monotonic() - start, 2)
        for key in ("skipped", "error"):
            if key in found:
                print(f"{key}: {found[key]}", flush=True)
        if self.out:
            self.out.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how much of it."""

    model: str
    small: str
    experts: str
    prompts: tuple[int, ...] = (512, 2048)
    n_gen: int = 128
    parallel: tuple[int, ...] = (8, 64)
    depth: int = 8192
    n_batch: int = 2048
    repetitions: int = 3
    copy_bytes: int = 4 << 30
    product: int = 8192


REAL = Sizes("llama3-8b:Q4_K_M", "smollm2-135m:Q8_0", "qwen3-30b-a3b:Q4_K_M")
TOY = Sizes("tiny:Q4_K_M", "tiny:Q8_0", "tiny-moe:Q4_K_M", (8,), 2, (2,), 40, 16, 1, 1 << 20, 256)


def ceilings(found: dict[str, Any], sizes: Sizes) -> None:
    """B and F."""
    found["B"] = _copy_rate(sizes)
    print(f"B: {found['B'] / 1e12:.3f} TB/s, copied within the device, read and written", flush=True)
    try:
        found["F"] = _product_rate(sizes.product)
        print(f"F: {found['F'] / 1e12:.1f} TFLOP/s, f16 product of {sizes.product} x {sizes.product}")
    except (ImportError, RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        print(f"F is not known: {error}")


def _copy_rate(sizes: Sizes) -> float:
    from pyllm.backends.cuda.launcher import open_launcher

    launcher, n_bytes = open_launcher(0), sizes.copy_bytes
    try:
        a, b = launcher.allocate(n_bytes), launcher.allocate(n_bytes)
        launcher.zero(a, n_bytes)

        def seconds() -> float:
            start = launcher.record(timing=True)
            launcher.copy(b, a, n_bytes)
            end = launcher.record(timing=True)
            end.wait()
            return max(end.seconds_since(start), 1e-9)

        return 2 * n_bytes / _least(seconds)
    finally:
        launcher.close()


def _least(seconds: Callable[[], float]) -> float:
    """The least that `seconds` measures within a second: a card that idled takes a while to come to its clocks."""
    until, least = time.monotonic() + 1, seconds()
    while time.monotonic() < until:
        least = min(least, seconds())
    return least


def _product_rate(n: int) -> float:
    """Through cupy (cuBLAS), else through torch; of random numbers, since zeros are faster."""
    try:
        import cupy

        if not cupy.cuda.runtime.getDeviceCount():
            raise RuntimeError("no card")
        a, b = (cupy.random.standard_normal((n, n), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
        product, event = (lambda: cupy.matmul(a, b)), cupy.cuda.Event

        def between(start: Any, end: Any) -> float:
            return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3

        product()
    except Exception as error:
        print(f"cupy makes no matrix product here ({error}); torch is tried")
        import torch

        x, y = (torch.randn(n, n, device="cuda", dtype=torch.float16) for _ in range(2))
        product = lambda: x @ y  # noqa: E731

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)

        def between(start: Any, end: Any) -> float:
            return float(start.elapsed_time(end)) / 1e3

    def seconds() -> float:
        start, end = event(), event()
        start.record()
        product()
        end.record()
        end.synchronize()
        return between(start, end)

    return 2 * n**3 / _least(seconds)


@dataclass
class Runner:
    """A compiled model, and what its rates are measured against."""

    report: Report
    sizes: Sizes
    compiled: Any
    bytes_per_token: float
    """Of weights that one token's step reads."""
    predicted: dict[str, int]
    flop_per_token: float
    free_before: int | None
    """Bytes free on the card before the model was there."""

    def memory(self) -> dict[str, Any]:
        """What the backend said that the model takes, what it counts now, and what the driver says is gone."""
        executable = self.compiled.executable
        found: dict[str, Any] = {"predicted": self.predicted, "counted": executable.memory()}
        free = _free()
        if free is not None and self.free_before is not None:
            found["taken"] = self.free_before - free
        print(f"memory: {found}", flush=True)
        return found

    def rate(self, name: str, n_prompt: int = 0, n_gen: int = 0, parallel: int = 1, depth: int = 0) -> dict[str, Any]:
        """Tokens per second of a case, the best of all repetitions, and the shares of B and F that it is."""
        from pyllm.bench import BenchCase
        from pyllm.bench.runner import Workload

        case = BenchCase("", n_prompt, n_gen, depth, parallel, None, self.sizes.n_batch, "f16")
        work = Workload(self.compiled.executable, self.compiled.architecture.n_vocab, case)
        work.prompt(0, depth)
        times = []
        for i in range(self.sizes.repetitions + 1):
            start = time.perf_counter()
            work.prompt(depth, n_prompt)
            work.generate(depth + n_prompt, n_gen if i else min(n_gen, 8))
            times.append(time.perf_counter() - start)
            if self.report.left < 5:
                break
        n_tokens = (n_prompt + n_gen) * parallel
        rates = [n_tokens / seconds for seconds in times[1:]]
        if not rates:
            raise TimeoutError("no time was left after the warm-up")
        found: dict[str, Any] = {"rates": [round(r, 2) for r in rates], "best": max(rates)}
        limits = self.report.results.get("ceilings", {})
        if n_gen and "B" in limits:
            found["share_of_B"] = max(rates) / parallel * self.bytes_per_token / limits["B"]
        if "F" in limits:
            found["share_of_F"] = max(rates) * self.flop_per_token / limits["F"]
        shares = "".join(f", {100 * v:.1f} % of {k[-1]}" for k, v in found.items() if k.startswith("share"))
        print(f"{name:24s} {max(rates):12.1f} t/s (median {np.median(rates):.1f}){shares}", flush=True)
        return found

    def engine(self, n_seqs: int = 1) -> dict[str, float]:
        """Tokens per second through the engine, which schedules and samples: greedy, and with the default settings."""
        from pyllm.config import SamplingParams
        from pyllm.engine import Engine, GenerationRequest

        options, n_vocab = self.compiled.executable.options, self.compiled.architecture.n_vocab
        engine = Engine(self.compiled.executable, n_ctx=options.n_pages * options.page_size // n_seqs, n_vocab=n_vocab)
        found = {}
        for name, sampling in (("greedy", SamplingParams(temperature=0)), ("sampled", SamplingParams(seed=1))):
            prompts = [np.arange(1 + s, 9 + s) for s in range(n_seqs)]
            for _ in range(2):
                if self.report.left < 20:
                    return found
                start = time.perf_counter()
                running = [engine.submit(GenerationRequest(p, sampling, self.sizes.n_gen)) for p in prompts]
                n = sum(len(list(generation)) for generation in running)
                found[name] = n / (time.perf_counter() - start)
            print(f"{f'engine x{n_seqs}, {name}':24s} {found[name]:12.1f} t/s", flush=True)
        return found

    def profile(self, n_tokens: int, n_seqs: int = 1, position: int = 64) -> dict[str, float]:
        """Microseconds by kind of launch, of one step; the slowest first."""
        from pyllm.backends.base import Batch

        executable = self.compiled.executable
        if not hasattr(executable, "profile"):
            return {}
        options = executable.options
        batch, each = Batch(options), options.n_pages // n_seqs
        position = min(position, each * options.page_size - n_tokens)
        for s in range(n_seqs):
            pages = range(s * each, (s + 1) * each)
            batch.add(np.arange(n_tokens) % 100, position, pages, generated=n_tokens == 1)
        sums: dict[str, float] = defaultdict(float)
        for _ in range(2):
            sums.clear()
            for label, seconds in executable.profile(batch):
                sums[label] += 1e6 * seconds
        total = sum(sums.values())
        print(f"  a step of {n_seqs} x {n_tokens} tokens, launch by launch: {total:.0f} us")
        for label, us in sorted(sums.items(), key=lambda item: -item[1])[:14]:
            print(f"    {us:10.1f} us {us / total:6.1%}  {label}", flush=True)
        return {label: round(us, 2) for label, us in sorted(sums.items(), key=lambda item: -item[1])}


@contextmanager
def loaded(report: Report, sizes: Sizes, preset: str, n_gpu_layers: Any, max_seqs: int, n_ctx: int) -> Iterator[Runner]:
    """The preset compiled, with room for `max_seqs` sequences of a few hundred tokens or one of `n_ctx`."""
    from pyllm import backends
    from pyllm.bench.presets import open_preset
    from pyllm.config import LoadSettings, PlacementOptions
    from pyllm.llm.loading import compile_model, execution_options

    start, free = time.monotonic(), _free()
    with open_preset(preset) as model:
        room = max(n_ctx, max_seqs * (sizes.n_gen + 64))
        options = execution_options(
            room, LoadSettings(max_seqs=max_seqs, n_kv=room, n_batch=sizes.n_batch, n_rows=max_seqs)
        )
        options = replace(options, max_rows=max_seqs)
        compiled = compile_model(model, n_ctx, options, "cuda", (), PlacementOptions(n_gpu_layers=n_gpu_layers))
        try:
            held = {k: v >> 20 for k, v in compiled.executable.memory().items()}
            where = f"on {', '.join(d.name for d in compiled.devices)}, {compiled.n_gpu_layers} layers on GPUs"
            print(f"{preset} {where}: {time.monotonic() - start:.1f} s; MiB: {held}", flush=True)
            n_bytes, flop = _per_token(model)
            needed = backends.get("cuda").memory_needed(compiled.executable.program, model.tensors, options)
            yield Runner(report, sizes, compiled, n_bytes, needed, flop, free)
        finally:
            compiled.executable.close()


def _free() -> int | None:
    """Bytes free on the first card, by the driver."""
    from pyllm import backends

    return backends.get("cuda").devices()[0].memory_free


def _per_token(model: Any) -> tuple[float, float]:
    """Bytes of weights that a token's step reads, and operations: of experts, the share that is used."""
    arch = model.metadata["general.architecture"]
    used, n = (model.metadata.get(f"{arch}.expert_{key}", 1) for key in ("used_count", "count"))
    n_bytes = flop = 0.0
    for t in model.tensors.values():
        if t.name == "token_embd.weight" and "output.weight" in model.tensors:
            continue
        share = used / n if "_exps." in t.name else 1.0
        n_bytes += share * t.n_bytes
        flop += 2 * share * t.n_elements if len(t.shape) > 1 else 0
    return n_bytes, flop
