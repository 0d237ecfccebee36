"""How well files with few bits predict, beside llama.cpp's of the same recipes, importance matrix and formats.

    pip install llama-cpp-python gguf       # into any environment
    python benchmarks/importance.py A-f16.gguf B-f16.gguf --text wiki.test.txt --cache FOLDER
        [--recipes Q2_K,IQ3_S] [--peer-python PATH] [--windows 16] [--no-matrix] [--json OUT.json]

The importance matrix is made of the text that comes with pyllm, and given to both. Both files are read by pyllm, over
windows of 512 tokens of `--text`. Errors are of windows' means, for tokens of one window are easy or hard together;
errors of differences are of pairs: both files score the same windows.
FOLDER keeps what does not change when pyllm's encoders do: matrices, predictions, results of llama.cpp's files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import pyllm
from pyllm.evaluation.kl_divergence import kl_divergence
from pyllm.evaluation.perplexity import load_options, n_scored, perplexity
from pyllm.jit.processors import default_threads
from pyllm.quant.calibrate import text as calibration
from pyllm.quant.calibrate.collection import Collector
from versus_llamacpp import Side

RECIPES = "Q2_K,Q3_K_M,Q4_K_M,IQ4_XS,IQ3_S,IQ3_XXS,IQ2_XXS,IQ1_S"
N_CTX = 512
Scores = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


def prepare(a: argparse.Namespace, model: Path, folder: Path) -> tuple[Path | None, Path]:
    """The importance matrix and the model's own predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix, base = folder / "matrix.gguf", folder / f"base-{a.windows}"
    if not a.no_matrix and not matrix.exists():
        with Collector(model, n_threads=a.threads) as collector:
            for _ in collector.read(calibration.text(), dataset="pyllm calibration mix"):
                pass
            collector.matrix().save(matrix)
    if not base.exists():
        with pyllm.load(model, n_threads=a.threads, **load_options(N_CTX)) as llm:
            *_, written = perplexity(llm, a.text.read_text(encoding="utf-8"), N_CTX, a.windows, base=base)
            (folder / "base.json").write_text(json.dumps({"ppl": written.ppl}))
    return None if a.no_matrix else matrix, base


def scores(a: argparse.Namespace, file: Path, base: Path) -> Scores:
    """By scored token: divergence from the model, and negative log likelihood."""
    with pyllm.load(file, n_threads=a.threads, **load_options(N_CTX)) as llm:
        *_, last = kl_divergence(llm, base, a.windows)
    return {"kld": last.kld, "nll": last.nll, "nll_base": last.nll_base, "bytes": np.array(file.stat().st_size)}


def theirs(a: argparse.Namespace, peer: Side, model: Path, recipe: str, matrix: Path | None, base: Path) -> Scores:
    kept = base.parent / f"{recipe}-{a.windows}{'' if matrix else '-plain'}.npz"
    if not kept.exists():
        file = base.parent / f"{recipe}.gguf"
        importance = ["--imatrix", matrix] if matrix else []
        start = time.perf_counter()
        peer.run("quantize", model, file, recipe, "-t", a.threads, *importance)
        seconds = time.perf_counter() - start
        np.savez(kept, **scores(a, file, base), seconds=np.array(seconds))
        file.unlink()
    return dict(np.load(kept))


def ours(a: argparse.Namespace, model: Path, recipe: str, matrix: Path | None, base: Path) -> Scores:
    file = base.parent / f"own-{recipe}.gguf"
    start = time.perf_counter()
    pyllm.quantize(model, file, recipe, imatrix=matrix, n_threads=a.threads, overwrite=True)
    seconds = time.perf_counter() - start
    found = {**scores(a, file, base), "seconds": np.array(seconds)}
    file.unlink()
    return found


def mean(values: Any) -> tuple[float, float]:
    """Of all scored tokens, and its standard error, from the means of windows."""
    windows = values.reshape(-1, n_scored(N_CTX)).mean(axis=1)
    return float(windows.mean()), float(windows.std(ddof=1) / math.sqrt(len(windows)))


def compare(recipe: str, own: Scores, peer: Scores) -> dict[str, Any]:
    row: dict[str, Any] = {"recipe": recipe, "bytes": [int(own["bytes"]), int(peer["bytes"])]}
    row["kl"] = [mean(own["kld"]), mean(peer["kld"])]
    row["ppl"] = [(math.exp(m), math.exp(m) * e) for m, e in (mean(own["nll"]), mean(peer["nll"]))]
    row["kl_difference"] = mean(own["kld"] - peer["kld"])
    row["log_ppl_difference"] = mean(own["nll"] - peer["nll"])
    row["seconds"] = [float(own["seconds"]), float(peer["seconds"])]
    return row


def cells(row: dict[str, Any]) -> list[str]:
    (kl, kl_error), (peer_kl, peer_kl_error) = row["kl"]
    (ppl, ppl_error), (peer_ppl, peer_ppl_error) = row["ppl"]
    change, change_error = row["kl_difference"]
    ratio, ratio_error = math.exp(row["log_ppl_difference"][0]), row["log_ppl_difference"][1]
    return [
        row["recipe"],
        f"{row['bytes'][0] / 1e6:.1f}",
        f"{kl:.4f} ± {kl_error:.4f}",
        f"{peer_kl:.4f} ± {peer_kl_error:.4f}",
        f"{change:+.4f} ± {change_error:.4f}",
        f"{ppl:.2f} ± {ppl_error:.2f}",
        f"{peer_ppl:.2f} ± {peer_ppl_error:.2f}",
        f"{ratio:.3f} ± {ratio * ratio_error:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files in F16, BF16 or F32")
    parser.add_argument("--text", required=True, type=Path, help="WikiText-2's test split")
    parser.add_argument("--cache", required=True, type=Path, help="a folder for what can be used again")
    parser.add_argument("--recipes", default=RECIPES, help="names, with commas between")
    parser.add_argument("--no-matrix", action="store_true", help="without an importance matrix")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--only-peer", action="store_true", help="fill the cache, and no more")
    parser.add_argument("--json", type=Path, help="write all figures there")
    a = parser.parse_args()
    peer = Side("llama.cpp", a.peer_python, "peer.py", [])
    results: dict[str, list[dict[str, Any]]] = {}
    for model in a.models:
        matrix, base = prepare(a, model, a.cache / model.stem)
        own_ppl = json.loads((base.parent / "base.json").read_text())["ppl"]
        print(f"\n{model.stem}, perplexity {own_ppl:.2f}\n")
        print("| recipe | MB | KL | llama.cpp's | difference | perplexity | llama.cpp's | ratio |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for recipe in a.recipes.split(","):
            judged = theirs(a, peer, model, recipe, matrix, base)
            if a.only_peer:
                continue
            row = compare(recipe, ours(a, model, recipe, matrix, base), judged)
            results.setdefault(model.stem, []).append(row)
            print(f"| {' | '.join(cells(row))} |", flush=True)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
