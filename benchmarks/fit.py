"""What `pyllm fit` predicts, and what a fresh process then takes: peak memory, of the process and of each GPU.

    python benchmarks/fit.py MODEL [MODEL …] [-c 512,4096] [--backend cpu] [-ngl N]

A model is a GGUF file, a name, or `preset:NAME:RECIPE`. The process fills the context with a prompt, in steps of 512
tokens, and generates one token. Prints a table; the exit code is 1 where a prediction is off by more than 5 %, 2 where
nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

LIMIT = 0.05


def predicted(a: argparse.Namespace, model: str, n_ctx: int) -> dict[str, Any]:
    """What `pyllm fit --json` says."""
    where = ["--preset", model.removeprefix("preset:")] if model.startswith("preset:") else ["-m", model]
    command = [sys.executable, "-m", "pyllm", "fit", *where, "-c", str(n_ctx), "--json", *_engine(a)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def measured(a: argparse.Namespace, model: str, n_ctx: int) -> dict[str, int]:
    """Peak memory by "process" and the names of GPUs, out of a process of its own."""
    command = [sys.executable, __file__, "--child", model, "-c", str(n_ctx), *_engine(a)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _engine(a: argparse.Namespace) -> list[str]:
    return ["--backend", a.backend, "-ngl", a.n_gpu_layers, "-t", str(a.threads), "--kv", a.kv]


def child(a: argparse.Namespace) -> None:
    """Load, fill the context, generate; print what was taken."""
    import numpy as np

    from sides import peak_bytes

    n_ctx = int(a.context)
    tokens = np.random.default_rng(0).integers(0, 100, n_ctx - 1).tolist()
    n_gpu_layers = int(a.n_gpu_layers) if a.n_gpu_layers.isdigit() else a.n_gpu_layers
    (model,) = a.models
    if model.startswith("preset:"):
        executable = _preset(model, n_ctx, a, n_gpu_layers, tokens)
    else:
        import pyllm

        settings = {"backend": a.backend, "n_gpu_layers": n_gpu_layers, "n_threads": a.threads, "kv_dtype": a.kv}
        llm = pyllm.load(model, n_ctx=n_ctx, max_seqs=1, **settings)
        llm.complete(tokens, max_tokens=1, temperature=0)
        executable = llm._executable
    parts = getattr(executable, "parts", {})
    held = {name: sum(part.memory().values()) for name, part in parts.items() if name != "cpu"}
    if not parts and a.backend in ("cuda", "mlx"):
        held = {f"{a.backend}0": sum(executable.memory().values())}
    for name in held:
        if name.startswith("mlx"):  # it allocates as it computes
            import mlx.core as mx

            held[name] = mx.get_peak_memory()
    print(json.dumps({"process": peak_bytes(), **held}))


def _preset(model: str, n_ctx: int, a: argparse.Namespace, n_gpu_layers: Any, tokens: list[int]) -> Any:
    """The same steps without an engine: a preset has no tokenizer to load it with."""
    from pyllm.backends.base import Batch
    from pyllm.bench.runner import open_model
    from pyllm.config import LoadSettings, PlacementOptions
    from pyllm.llm.loading import compile_model, execution_options

    options = execution_options(n_ctx, LoadSettings(max_seqs=1, n_threads=a.threads, kv_dtype=a.kv))
    placement = PlacementOptions(n_gpu_layers=n_gpu_layers)
    executable = compile_model(open_model(model), n_ctx, options, a.backend, (), placement).executable
    batch = Batch(options)
    for start in range(0, len(tokens), 512):
        batch.clear()
        batch.add(tokens[start : start + 512], start, range(options.n_pages))
        executable.run(batch)
    return executable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-c", "--context", default="512,4096")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("-ngl", "--n-gpu-layers", default="auto")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a)
        return
    worst = 0.0
    print("| model | context | of | predicted, MiB | measured, MiB | off by |\n|---|---|---|---|---|---|", flush=True)
    for model in a.models:
        for n_ctx in map(int, a.context.split(",")):
            try:
                found, taken = predicted(a, model, n_ctx), measured(a, model, n_ctx)
            except subprocess.CalledProcessError:  # it has said why
                sys.exit(2)
            sums = {"process": found["process"]} | {d["name"]: d["sum"] for d in found["devices"][:-1]}
            for name, n in taken.items():
                off = sums[name] / n - 1
                worst = max(worst, abs(off))
                name_of_model = model.rsplit("/", 1)[-1]
                print(
                    f"| {name_of_model} | {n_ctx} | {name} | {sums[name] / 2**20:.0f} | {n / 2**20:.0f} | {off:+.1%} |"
                )
                sys.stdout.flush()
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
