"""pyllm beside llama.cpp on one model, in the same run: speed, start, memory, perplexity, logits.

    pip install llama-cpp-python            # into any environment; builds llama.cpp for this processor
    python benchmarks/versus_llamacpp.py --model FILE [--peer-python PATH] [--text wiki.test.txt] [-t 2]

Each measurement is a process of its own, and the engines take turns (A B A B …), so that neither disturbs the other
and a noisy machine disturbs both alike. Rates are the best, and in brackets the median, of all repetitions. llama.cpp
runs with its defaults (and an f32 KV cache where logits are compared). Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import pyllm
from pyllm.jit.processors import default_threads
from pyllm.llm.loading import find_model

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent


class Side:
    """One engine: an interpreter and the script that it runs, and the command that makes one token."""

    def __init__(self, name: str, python: str, script: str, one_token: list[str], *always: str) -> None:
        self.name = name
        self._script = [python, str(_HERE / script)]
        self._always = always
        self._one_token = [python, *one_token]

    def first_token(self) -> float:
        """Seconds from the start of a process that makes one token to its end."""
        start = time.perf_counter()
        output_of(self._one_token)
        return time.perf_counter() - start

    def run(self, *arguments: object) -> dict[str, Any]:
        """What the script reports."""
        report: dict[str, Any] = json.loads(
            output_of([*self._script, *map(str, arguments), *self._always]).splitlines()[-1]
        )
        return report


class Table:
    """Rows of what, pyllm, llama.cpp, ratio; printed as they come."""

    def __init__(self) -> None:
        print("| | pyllm | llama.cpp | pyllm / llama.cpp |\n|---|---|---|---|", flush=True)

    def row(self, what: str, own: str, peer: str = "", ratio: float | None = None) -> None:
        print(f"| {what} | {own} | {peer} | {'' if ratio is None else f'{ratio:.2f}'} |", flush=True)

    def rates(self, what: str, own: list[float], peer: list[float]) -> None:
        """Tokens per second: best (median), and the ratio of the bests."""
        self.row(f"{what}, tokens/s", _best_and_median(own), _best_and_median(peer), max(own) / max(peer))


def speeds(own: Side, peer: Side, a: argparse.Namespace, table: Table) -> None:
    arguments = ("speed", a.model, "-t", a.threads, "-p", 512, "-n", 64, "--parallel", 16, "-r", a.repetitions)
    results: dict[str, list[dict[str, Any]]] = {own.name: [], peer.name: []}
    reads = []
    n_bytes = bytes_per_token(a.model)
    for _ in range(a.rounds):
        reads.append(read_rate(n_bytes, a.threads))
        for side in (own, peer):
            results[side.name].append(side.run(*arguments))
    ours, theirs = results[own.name], results[peer.name]

    def samples(runs: list[dict[str, Any]], key: str) -> list[float]:
        return [rate for run in runs for rate in run[key]]

    table.rates("pp512", samples(ours, "pp"), samples(theirs, "pp"))
    table.rates("tg64", samples(ours, "tg"), samples(theirs, "tg"))
    table.rates("tg64 of 16 sequences at once", samples(ours, "tg_parallel"), samples(theirs, "tg_parallel"))
    gains = [max(samples(runs, "tg_parallel")) / max(samples(runs, "tg")) for runs in (ours, theirs)]
    table.row("… times the rate of one", f"{gains[0]:.2f}", f"{gains[1]:.2f}")
    shares = [max(samples(runs, "tg")) * n_bytes / max(reads) for runs in (ours, theirs)]
    table.row(f"tg64, share of a plain read ({max(reads) / 1e9:.1f} GB/s)", f"{shares[0]:.0%}", f"{shares[1]:.0%}")
    peaks = [max(run["peak_bytes"] for run in runs) / 2**20 for runs in (ours, theirs)]
    table.row("peak memory of pp512 and tg64, MiB", f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", peaks[0] / peaks[1])


def starts(own: Side, peer: Side, a: argparse.Namespace, table: Table) -> None:
    """One token, whole process; the first run of each only warms up."""
    seconds: dict[str, list[float]] = {own.name: [], peer.name: []}
    for _ in range(a.rounds + 1):
        for side in (own, peer):
            seconds[side.name].append(side.first_token())
    ours, theirs = seconds[own.name][1:], seconds[peer.name][1:]
    row = [f"{min(s):.2f} ({statistics.median(s):.2f})" for s in (ours, theirs)]
    table.row("one token, whole process, s", row[0], row[1], min(ours) / min(theirs))


def perplexities(own: Side, peer: Side, a: argparse.Namespace, table: Table) -> None:
    arguments = ("perplexity", a.model, a.text, "-t", a.threads, "-c", 512, "--windows", a.windows)
    ours, theirs = own.run(*arguments), peer.run(*arguments)
    what = f"perplexity, {a.windows} windows of 512"
    table.row(what, f"{ours['ppl']:.4f}", f"{theirs['ppl']:.4f}", ours["ppl"] / theirs["ppl"])
    table.row("… seconds", f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}", ours["seconds"] / theirs["seconds"])
    seconds = [side["tokenize_seconds"] for side in (ours, theirs)]
    table.row("… seconds to tokenize", f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", seconds[0] / seconds[1])


def divergence(own: Side, peer: Side, a: argparse.Namespace, table: Table) -> None:
    """Mean over one window's positions of KL(llama.cpp || pyllm), and how often both prefer the same token."""
    tokenizer = pyllm.load_tokenizer(a.model)
    tokens = tokenizer.encode(Path(a.text).read_text(encoding="utf-8")[:20_000])[:512]
    with tempfile.TemporaryDirectory() as folder:
        window = Path(folder, "tokens.json")
        window.write_text(json.dumps(tokens))
        files = [Path(folder, f"{i}.npy") for i in range(2)]
        for side, file in zip((own, peer), files, strict=True):
            side.run("logits", a.model, window, file, "-t", a.threads)
        q, p = (np.load(file, mmap_mode="r") for file in files)
        kl = [_kl(p[i], q[i]) for i in range(len(tokens))]
        same = float(np.mean([p[i].argmax() == q[i].argmax() for i in range(len(tokens))]))
        del p, q
    table.row("mean KL divergence from llama.cpp, 512 positions", f"{np.mean(kl):.5f}")
    table.row("same most likely token", f"{same:.1%}")


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def read_rate(n_bytes: int, n_threads: int) -> float:
    """Bytes per second that plain reading reaches with so many threads, over a buffer of `n_bytes`."""
    parts = np.array_split(np.ones(n_bytes // 8, np.int64), n_threads)
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, n_bytes / (time.perf_counter() - start))
    return best


def bytes_per_token(model: Path) -> int:
    """Bytes of weights that a token of a dense model reads: all but an embedding table that is not the output too."""
    with pyllm.open_gguf(model) as file:
        sizes = {name: tensor.n_bytes for name, tensor in file.tensors.items()}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight", None)
    return sum(sizes.values())


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def _log_softmax(row: np.ndarray) -> np.ndarray:
    x = row.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def _best_and_median(values: list[float]) -> str:
    return f"{max(values):.1f} ({statistics.median(values):.1f})"


def main() -> None:
    beside = _ROOT.parent / "shared" / "data" / "wiki.test.txt"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file, or a name that pyllm knows")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument(
        "--text", type=Path, default=beside if beside.exists() else None, help="WikiText-2's test split"
    )
    parser.add_argument("--backend", default="cpu", help="pyllm's backend")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3, help="how often the engines take turns")
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="in each round")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--only-speed", action="store_true", help="no starts, texts or logits: needs no vocabulary")
    a = parser.parse_args()
    a.model = find_model(a.model)
    threads = ["-t", str(a.threads)]
    question = ["-p", "The capital of France is"]
    run_one = ["-m", "pyllm", "run", "-m", str(a.model), *question, *threads, "--raw", "-n", "1", "--temp", "0"]
    own = Side("pyllm", sys.executable, "own.py", [*run_one, "--backend", a.backend], "--backend", a.backend)
    run_one = [str(_HERE / "peer.py"), "first", str(a.model), *question, *threads]
    peer = Side("llama.cpp", a.peer_python, "peer.py", run_one)
    print(f"{a.model.name}, {a.threads} threads, {a.rounds} rounds of {a.repetitions}\n")
    if a.only_speed:
        own.run("speed", a.model, "-t", a.threads, "-p", 8, "-n", 1, "--parallel", 1, "-r", 1)
        speeds(own, peer, a, Table())
        return
    own.first_token()  # kernels that are not compiled yet are compiled now
    table = Table()
    speeds(own, peer, a, table)
    starts(own, peer, a, table)
    if a.text is None:
        print("\nPerplexity and KL divergence need --text.")
        return
    perplexities(own, peer, a, table)
    divergence(own, peer, a, table)


if __name__ == "__main__":
    main()
