"""Everything worth knowing of pyllm on one NVIDIA card, in one run of less than nine minutes.

    python benchmarks/gpu.py --out gpu.json [--budget 500] [--tests 150]

Checks what is installed; compares a small model with the reference backend; measures what the card can do (B, bytes per
second of a copy within the device, read and written; F, rate of a large f16 matrix product); then models with random
weights: one and many sequences, short and long prompts, depth, layers split with the CPU, a mixture of experts, each also
as shares of B and F; the time of each kernel in a step; the tests marked `gpu`; llama.cpp, where its Python package with
CUDA is there. What is missing is said and left out. Prints as it goes, and writes all of it to the JSON file after each
section, so that a run that is cut short leaves what it had.

`--toy` does the same on an emulated card with a tiny model: it shows that the script works, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


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

    def section(self, name: str, work: Callable[[], Any], least: float = 0.0) -> None:
        """Do it and keep what it returns, or why there is nothing. It is left out with less than `least` seconds."""
        print(f"\n== {name} ({time.monotonic() - self.start:.0f} s)", flush=True)
        if self.left < least:
            self.results[name] = {"skipped": f"{self.left:.0f} s are left, it wants {least:.0f}"}
        else:
            start = time.monotonic()
            try:
                self.results[name] = work()
            except (Exception, SystemExit) as error:
                # One section's failure must not cost the others their time on the card.
                traceback.print_exc(limit=-6)
                self.results[name] = {"error": f"{type(error).__name__}: {error}"}
            self.results.setdefault("seconds", {})[name] = round(time.monotonic() - start, 2)
        if isinstance(found := self.results[name], dict):
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


# --- the machine


def environment() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from pyllm import __version__, backends

    found: dict[str, Any] = {"pyllm": __version__, "python": platform.python_version(), "packages": {}}
    for name in ("numpy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc", "numba"):
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    probe = backends.get("cuda").probe()
    found["cuda"] = {"available": probe.available, "reason": probe.reason, **probe.details}
    found["devices"] = [
        {"name": d.name, "description": d.description, "free": d.memory_free, "total": d.memory_total}
        for d in backends.get("cuda").devices()
    ]
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
        found["nvidia_smi"] = done.stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        found["nvidia_smi"] = [str(error)]
    print(json.dumps(found, indent=1))
    if not probe.available:
        raise SystemExit(f"the cuda backend cannot be used: {probe.reason}")
    return found


def ceilings(sizes: Sizes) -> dict[str, float]:
    """B and F."""
    found = {"B": _copy_rate(sizes.copy_bytes)}
    print(f"B: {found['B'] / 1e12:.3f} TB/s, copied within the device, read and written", flush=True)
    try:
        found["F"] = _product_rate(sizes.product)
        print(f"F: {found['F'] / 1e12:.1f} TFLOP/s, f16 product of {sizes.product} x {sizes.product}")
    except (ImportError, RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        print(f"F is not known: {error}")
    return found


def _copy_rate(n_bytes: int) -> float:
    from pyllm.backends.cuda.launcher import open_launcher

    launcher = open_launcher(0)
    try:
        a, b = launcher.allocate(n_bytes), launcher.allocate(n_bytes)
        launcher.zero(a, n_bytes)
        rates = []
        for _ in range(8):
            start = launcher.record(timing=True)
            launcher.copy(b, a, n_bytes)
            end = launcher.record(timing=True)
            end.wait()
            rates.append(2 * n_bytes / max(end.seconds_since(start), 1e-9))
    finally:
        launcher.close()
    return float(np.median(rates[2:]))


def _product_rate(n: int) -> float:
    """Through cupy (cuBLAS), else through torch; of random numbers, since zeros are faster."""
    try:
        import cupy

        if not cupy.cuda.runtime.getDeviceCount():
            raise RuntimeError("no card")
        a, b = (cupy.random.standard_normal((n, n), dtype=cupy.float32).astype(cupy.float16) for _ in range(2))
        product, event = (lambda: cupy.matmul(a, b)), cupy.cuda.Event

        def seconds(start: Any, end: Any) -> float:
            return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3

        product()
    except Exception as error:
        print(f"cupy makes no matrix product here ({error}); torch is tried")
        import torch

        x, y = (torch.randn(n, n, device="cuda", dtype=torch.float16) for _ in range(2))
        product = lambda: x @ y  # noqa: E731

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)

        def seconds(start: Any, end: Any) -> float:
            return float(start.elapsed_time(end)) / 1e3

    times = []
    for _ in range(12):
        start, end = event(), event()
        start.record()
        product()
        end.record()
        end.synchronize()
        times.append(seconds(start, end))
    return float(2 * n**3 / np.median(times[3:]))


def sane(sizes: Sizes) -> dict[str, Any]:
    """Logits of small models against the reference backend's: normalized mean square error."""
    from pyllm import archs, backends
    from pyllm.backends.base import Batch
    from pyllm.bench.presets import open_preset
    from pyllm.config import ExecutionOptions

    found = {}
    options = ExecutionOptions(n_pages=4, max_tokens=64, max_seqs=1, max_rows=8)
    for preset in ("tiny:Q4_K_M", "tiny-moe:Q8_0"):
        with open_preset(preset) as model:
            program = archs.load(model.metadata, model.tensors, 128).program
            logits = []
            for name in ("reference", "cuda"):
                executable = backends.get(name).compile(program, model.tensors, options)
                batch = Batch(options)
                batch.add(np.arange(3, 11 if sizes is TOY else 51), 0, range(4), want=[0, 5, 7])
                rows = executable.run(batch).copy()
                n = batch.n_tokens
                batch.clear()
                batch.add([7], n, range(4), generated=True)
                logits.append(np.concatenate([rows, executable.run(batch)]))
                executable.close()
        error = float(np.sum((logits[0] - logits[1]) ** 2, dtype=np.float64) / np.sum(logits[0] ** 2, dtype=np.float64))
        print(f"{preset}: NMSE {error:.2e}", flush=True)
        found[preset] = error
        if not error <= 1e-3:
            print("THIS IS WRONG: what follows is the speed of wrong results")
    return found


# --- models


@dataclass
class Runner:
    """A compiled model, and what its rates are measured against."""

    report: Report
    sizes: Sizes
    compiled: Any
    bytes_per_token: float
    """Of weights that one token's step reads."""
    flop_per_token: float

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

    def profile(self, n_tokens: int, n_seqs: int = 1, position: int = 64) -> dict[str, float]:
        """Microseconds by kind of launch, of one step; the slowest first."""
        from pyllm.backends.base import Batch

        executable = self.compiled.executable
        if not hasattr(executable, "profile"):
            return {}
        options = executable.options
        batch, each = Batch(options), options.n_pages // n_seqs
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
    from dataclasses import replace

    from pyllm.bench.presets import open_preset
    from pyllm.config import PlacementOptions
    from pyllm.loading import compile_model, execution_options

    start = time.monotonic()
    with open_preset(preset) as model:
        room = max(n_ctx, max_seqs * (sizes.n_gen + 64))
        options = execution_options(room, max_seqs=max_seqs, n_kv=room, n_batch=sizes.n_batch, n_rows=max_seqs)
        options = replace(options, max_rows=max_seqs)
        compiled = compile_model(model, n_ctx, options, "cuda", (), PlacementOptions(n_gpu_layers=n_gpu_layers))
        try:
            held = {k: v >> 20 for k, v in compiled.executable.memory().items()}
            print(f"{preset}, {compiled.n_gpu_layers} layers on GPUs: {time.monotonic() - start:.1f} s; MiB: {held}")
            yield Runner(report, sizes, compiled, *_per_token(model))
        finally:
            compiled.executable.close()


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


def dense(report: Report, sizes: Sizes) -> dict[str, Any]:
    """The model of the targets: one sequence, prompts, many sequences, depth, and where the time goes."""
    found: dict[str, Any] = {}
    most, n_ctx = max(sizes.parallel), sizes.depth + max(*sizes.prompts, sizes.n_gen) + 32
    with loaded(report, sizes, sizes.model, "all", most, n_ctx) as run:
        one = found["tg"] = run.rate(f"tg{sizes.n_gen}", n_gen=sizes.n_gen)
        for n in sizes.prompts:
            found[f"pp{n}"] = run.rate(f"pp{n}", n_prompt=n)
        for n in sizes.parallel:
            many = found[f"tg x{n}"] = run.rate(f"tg{sizes.n_gen} x{n}", n_gen=sizes.n_gen, parallel=n)
            many["times_one"] = many["best"] / one["best"]
            print(f"{'':24s} {many['times_one']:12.2f} times the rate of one")
        found["profile tg"] = run.profile(1)
        found["profile pp"] = run.profile(min(512, sizes.n_batch), position=0)
        found["profile tg many"] = run.profile(1, n_seqs=most)
        found["tg deep"] = run.rate(f"tg{sizes.n_gen} @ d{sizes.depth}", n_gen=sizes.n_gen, depth=sizes.depth)
        found["pp deep"] = run.rate(
            f"pp{sizes.prompts[0]} @ d{sizes.depth}", n_prompt=sizes.prompts[0], depth=sizes.depth
        )
        found["profile tg deep"] = run.profile(1, position=sizes.depth)
    return found


def plain(report: Report, sizes: Sizes, preset: str, n_gpu_layers: Any = "all") -> dict[str, Any]:
    """A prompt and generation of one sequence, and the profile of a token."""
    found: dict[str, Any] = {}
    with loaded(report, sizes, preset, n_gpu_layers, 1, max(*sizes.prompts, sizes.n_gen) + 160) as run:
        found["devices"] = [device.name for device in run.compiled.devices]
        found["tg"] = run.rate(f"tg{sizes.n_gen}", n_gen=sizes.n_gen)
        found[f"pp{sizes.prompts[0]}"] = run.rate(f"pp{sizes.prompts[0]}", n_prompt=sizes.prompts[0])
        found["profile tg"] = run.profile(1)
    return found


# --- others


def tests(seconds: float) -> dict[str, Any]:
    """The tests marked `gpu`, for as long as there is time."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "tests/backends",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )  # fmt: skip
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode("utf-8", "replace"), -1
        print(f"not done after {seconds:.0f} s")
    tail = output.strip().splitlines()[-40:]
    print("\n".join(tail), flush=True)
    return {"code": code, "output": tail}


def llama_cpp(report: Report, sizes: Sizes) -> dict[str, Any]:
    """llama.cpp on the same weights, by `peer.py`, if its package is here and was built for CUDA."""
    try:
        import llama_cpp as ll
    except ImportError as error:
        return {"skipped": str(error)}

    from pyllm.bench.presets import open_preset
    from pyllm.gguf.writer import GGUFWriter, TensorSpec

    if not ll.llama_supports_gpu_offload():
        return {"skipped": "llama-cpp-python is here, and was built without CUDA"}
    with tempfile.TemporaryDirectory() as folder, open_preset(sizes.model) as model:
        path = Path(folder, "model.gguf")
        tensors = list(model.tensors.values())
        specs = [TensorSpec(t.name, t.shape, t.format) for t in tensors]
        with GGUFWriter(path, {**model.metadata, "tokenizer.ggml.model": "none"}, specs) as writer:
            for tensor in tensors:
                writer.write(tensor.data)
        peer = [sys.executable, str(ROOT / "benchmarks" / "peer.py"), "speed", str(path), "-n", str(sizes.n_gen)]
        done = subprocess.run(
            [*peer, "-p", str(sizes.prompts[0]), "--parallel", str(max(sizes.parallel)), "-r", "3"],
            capture_output=True, text=True, timeout=max(30.0, report.left - 10),
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds for everything")
    parser.add_argument("--tests", type=float, default=150.0, help="seconds at most for the tests; 0: none")
    parser.add_argument("--toy", action="store_true", help="an emulated card and a tiny model")
    a = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    if a.toy:
        os.environ["PYLLM_CUDA_EMULATOR"] = "1"
    sizes, report = TOY if a.toy else REAL, Report(a.out, a.budget)
    report.section("environment", environment)
    if "error" in report.results["environment"]:
        raise SystemExit(1)
    report.section("sane", lambda: sane(sizes))
    report.section("ceilings", lambda: ceilings(sizes))
    report.section("dense", lambda: dense(report, sizes), least=0 if a.toy else 60)
    report.section("small", lambda: plain(report, sizes, sizes.small), least=0 if a.toy else 20)
    if a.tests and not a.toy:
        report.section("tests", lambda: tests(min(a.tests, report.left - 120)), least=150)
    report.section("experts", lambda: plain(report, sizes, sizes.experts), least=0 if a.toy else 60)
    half = 2 if a.toy else 16
    report.section("split", lambda: plain(report, sizes, sizes.model, half), least=0 if a.toy else 60)
    report.section("llama.cpp", lambda: llama_cpp(report, sizes), least=60)
    failed = [name for name, found in report.results.items() if isinstance(found, dict) and "error" in found]
    print(f"\n{time.monotonic() - report.start:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    raise SystemExit(bool(set(failed) - {"llama.cpp"}))


if __name__ == "__main__":
    main()
