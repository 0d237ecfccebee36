"""Two checkouts of pyllm on the same models, in turn: speed, start to first token, peak memory.

    git worktree add --detach ../before COMMIT
    python benchmarks/two_checkouts.py ../before --model A.gguf B.gguf [--rounds 5] [-t 2]

Each measurement is a process of its own, and the checkouts take turns (A B B A A B …). A row has the median of each
checkout, the ratio of medians, and the ratio of the best. Kernels are compiled once before. Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pyllm.jit.processors import default_threads

_HERE = Path(__file__).resolve().parent.parent


class Checkout:
    """A checkout's own benchmark, run by this interpreter and its packages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        path = os.pathsep.join(str(self._folder / part) for part in ("src", "tools/convert"))
        self._env = {**os.environ, "PYTHONPATH": path}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)

    def speed(self, model: Path, threads: int, repetitions: int) -> dict[str, Any]:
        script = [str(self._folder / "benchmarks" / "own.py"), "speed", str(model)]
        found: dict[str, Any] = json.loads(self._output([*script, "-t", str(threads), "-r", str(repetitions)]))
        return found

    def start(self, model: Path, threads: int) -> float:
        """Seconds of a process that makes one token."""
        begun = time.perf_counter()
        self._output(["-P", "-m", "pyllm", "run", "-m", str(model), "--raw", "-n", "1", "-t", str(threads), "Hello"])
        return time.perf_counter() - begun

    def _output(self, arguments: list[str]) -> str:
        done = subprocess.run([sys.executable, *arguments], env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr.strip()}")
        return done.stdout


def compare(before: Checkout, after: Checkout, model: Path, a: argparse.Namespace) -> None:
    speeds: dict[Checkout, list[dict[str, Any]]] = {before: [], after: []}
    starts: dict[Checkout, list[float]] = {before: [], after: []}
    for side in (before, after):
        side.start(model, a.threads)
        side.speed(model, a.threads, 1)
    for i in range(a.rounds):
        for side in (before, after) if i % 2 == 0 else (after, before):
            speeds[side].append(side.speed(model, a.threads, a.repetitions))
            starts[side].append(side.start(model, a.threads))
    print(f"\n{model.stem}\n\n| | before | after | medians' ratio | bests' ratio |\n|---|---|---|---|---|")
    for what, key in (("pp512, tokens/s", "pp"), ("tg64", "tg"), ("tg64 of 16 at once", "tg_parallel")):
        _row(what, *([rate for run in speeds[side] for rate in run[key]] for side in (before, after)), best=max)
    _row("start to first token, s", starts[before], starts[after], best=min)
    _row("peak memory, MiB", *([run["peak_bytes"] / 2**20 for run in speeds[s]] for s in (before, after)), best=max)


def _row(what: str, before: list[float], after: list[float], best: Any) -> None:
    a, b = statistics.median(before), statistics.median(after)
    digits = 2 if a < 10 else 1
    print(f"| {what} | {a:.{digits}f} | {b:.{digits}f} | {b / a:.3f} | {best(after) / best(before):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--model", nargs="+", type=Path, required=True)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="in each round")
    a = parser.parse_args()
    for model in a.model:
        compare(Checkout(a.before), Checkout(_HERE), model, a)


if __name__ == "__main__":
    main()
