"""Everything worth knowing of pyllm on one NVIDIA card, in one run of less than nine minutes.

    python benchmarks/gpu.py --out gpu.json [--budget 500] [--tests 150]

Checks what is installed; compares a small model with the reference backend; measures what the card can do (B, bytes per
second of a copy within the device, read and written; F, rate of a large f16 matrix product); then models with random
weights: one and many sequences, short and long prompts, depth, layers split with the CPU, a mixture of experts, each
also as shares of B and F; the time of each kernel in a step; the tests marked `gpu`; llama.cpp, where its Python
package with CUDA is there. What is missing is said and left out. Prints as it goes, and writes all of it to the JSON
file after each section, so that a run that is cut short leaves what it had.

`--toy` does the same on an emulated card with a tiny model: it shows that the script works, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu_rates import REAL, TOY, Report, Sizes, ceilings, loaded

ROOT = Path(__file__).resolve().parents[1]


# --- the machine


def environment(found: dict[str, Any]) -> None:
    from importlib.metadata import PackageNotFoundError, version

    from pyllm import __version__, backends

    found |= {"pyllm": __version__, "python": platform.python_version(), "packages": {}}
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


def sane(found: dict[str, Any], sizes: Sizes) -> None:
    """Logits of small models against the reference backend's: normalized mean square error."""
    from pyllm import archs, backends
    from pyllm.backends.base import Batch
    from pyllm.bench.presets import open_preset
    from pyllm.config import ExecutionOptions

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


# --- models


def dense(found: dict[str, Any], report: Report, sizes: Sizes) -> None:
    """The model of the targets: one sequence, prompts, many sequences, depth, and where the time goes."""
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
        found["memory"] = run.memory()
        found["engine"] = run.engine()
        found["engine many"] = run.engine(most)


def plain(found: dict[str, Any], report: Report, sizes: Sizes, preset: str, n_gpu_layers: int | str = "all") -> None:
    """A prompt and generation of one sequence, and the profile of a token."""
    with loaded(report, sizes, preset, n_gpu_layers, 1, max(*sizes.prompts, sizes.n_gen) + 160) as run:
        found["devices"] = [device.name for device in run.compiled.devices]
        found["tg"] = run.rate(f"tg{sizes.n_gen}", n_gen=sizes.n_gen)
        found[f"pp{sizes.prompts[0]}"] = run.rate(f"pp{sizes.prompts[0]}", n_prompt=sizes.prompts[0])
        found["profile tg"] = run.profile(1)
        found["engine"] = run.engine()


# --- others


def tests(found: dict[str, Any], seconds: float) -> None:
    """The tests marked `gpu`, for as long as there is time."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--maxfail=10", "--no-header", "--tb=short"]
    # named one by one: collecting those of the CPU takes llvmlite
    files = [ROOT / "tests/backends/test_gpu.py", *sorted(ROOT.glob("tests/backends/test_cuda_*.py"))]
    command += ["-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            output = run.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            print(f"not done after {seconds:.0f} s")
            run.send_signal(signal.SIGINT)  # pytest then says what has failed so far
            try:
                output = run.communicate(timeout=15)[0]
            except subprocess.TimeoutExpired:
                run.kill()
                output = run.communicate()[0]
    found |= {"code": run.returncode, "output": output.strip().splitlines()[-100:]}
    print("\n".join(found["output"]), flush=True)


def llama_cpp(found: dict[str, Any], report: Report, sizes: Sizes) -> None:
    """llama.cpp on the same weights, by `peer.py`, if its package is here and was built for CUDA."""
    try:
        import llama_cpp as ll
    except ImportError as error:
        found["skipped"] = str(error)
        return

    from pyllm.bench.presets import open_preset
    from pyllm.gguf.values import Value
    from pyllm.gguf.writer import GGUFWriter, TensorSpec

    if not ll.llama_supports_gpu_offload():
        found["skipped"] = "llama-cpp-python is here, and was built without CUDA"
        return
    with tempfile.TemporaryDirectory() as folder, open_preset(sizes.model) as model:
        path = Path(folder, "model.gguf")
        tensors = list(model.tensors.values())
        specs = [TensorSpec(t.name, t.shape, t.format) for t in tensors]
        metadata = {**model.metadata, "tokenizer.ggml.model": "none"}
        with GGUFWriter(path, {key: Value.of(value) for key, value in metadata.items()}, specs) as writer:
            for tensor in tensors:
                writer.write(tensor.data)
        peer = [sys.executable, str(ROOT / "benchmarks" / "peer.py"), "speed", str(path), "-n", str(sizes.n_gen)]
        done = subprocess.run(
            [*peer, "-p", str(sizes.prompts[0]), "--parallel", str(max(sizes.parallel)), "-r", "3"],
            capture_output=True, text=True, timeout=max(30.0, report.left - 10),
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found |= json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))


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
    report.section("sane", lambda found: sane(found, sizes))
    report.section("ceilings", lambda found: ceilings(found, sizes))
    report.section("dense", lambda found: dense(found, report, sizes), least=0 if a.toy else 60)
    report.section("small", lambda found: plain(found, report, sizes, sizes.small), least=0 if a.toy else 20)
    if a.tests and not a.toy:
        report.section("tests", lambda found: tests(found, min(a.tests, report.left - 120)), least=150)
    report.section("experts", lambda found: plain(found, report, sizes, sizes.experts), least=0 if a.toy else 60)
    half = 2 if a.toy else 16
    report.section("split", lambda found: plain(found, report, sizes, sizes.model, half), least=0 if a.toy else 60)
    report.section("llama.cpp", lambda found: llama_cpp(found, report, sizes), least=60)
    failed = [name for name, found in report.results.items() if isinstance(found, dict) and "error" in found]
    print(f"\n{time.monotonic() - report.start:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    raise SystemExit(bool(set(failed) - {"llama.cpp"}))


if __name__ == "__main__":
    main()
