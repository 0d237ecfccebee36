"""Named sizes against recipes: files of a recipe's size by `pyllm quantize --size`, and how far each is from the model.

    python benchmarks/target_size.py --model F16.gguf --text wiki.test.txt [--recipes Q4_K_M,IQ4_XS,Q3_K_M]
        [--imatrix FILE] [--calibrate TEXT] [--windows 8] [--json OUT.json]

Three files for each recipe: the recipe's, one of its size with sensitivities measured on TEXT (default: pyllm's own
mix, which has nothing of WikiText), one of its size with typical ones (--fast). Judged by the mean KL divergence of
predictions from the unquantized model's over windows of 512 tokens of `--text`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyllm
from pyllm.evaluation.kl_divergence import kl_divergence
from pyllm.evaluation.perplexity import load_options, perplexity
from pyllm.jit.processors import default_threads
from pyllm.quant.calibrate.target_size import quantize_to_size
from pyllm.quant.pipeline import Summary

N_CTX = 512


def divergence(path: Path, base: Path, windows: int, threads: int) -> tuple[float, float]:
    """Mean KL divergence, and its standard error."""
    with pyllm.load(path, n_threads=threads, **load_options(N_CTX)) as llm:
        *_, last = kl_divergence(llm, base, windows)
    return last.mean_kld.value, last.mean_kld.error


def judge(a: argparse.Namespace, recipe: str, base: Path, folder: Path) -> list[dict[str, Any]]:
    """The recipe's file and the two of its size."""
    rows: list[dict[str, Any]] = []
    text = a.calibrate.read_text(encoding="utf-8") if a.calibrate else None
    for kind in (recipe, "measured", "typical"):
        path = folder / f"{kind}.gguf"
        start = time.perf_counter()
        summary: Summary
        if kind == recipe:
            summary = pyllm.quantize(a.model, path, recipe, imatrix=a.imatrix, n_threads=a.threads)
            n_bytes = summary.n_bytes
        else:
            summary = quantize_to_size(
                a.model,
                path,
                n_bytes=n_bytes,
                imatrix=a.imatrix,
                text=text,
                fast=kind == "typical",
                n_threads=a.threads,
            )
        seconds = time.perf_counter() - start
        mean, error = divergence(path, base, a.windows, a.threads)
        path.unlink()
        used = Counter(t.format for t in summary.tensors if len(t.shape) > 1)
        rows.append(
            {
                "size_of": recipe,
                "formats": dict(used),
                "kind": kind,
                "bytes": summary.n_bytes,
                "bits": summary.bits_per_weight,
                "seconds": seconds,
                "kl": mean,
                "kl_error": error,
            }
        )
        print(
            f"| {recipe if kind == recipe else kind} | {summary.n_bytes / 1e6:.1f} | {summary.bits_per_weight:.3f} | "
            f"{mean:.5f} ± {error:.5f} | {mean / rows[0]['kl']:.2f} | {seconds:.0f} | "
            f"{', '.join(f'{n} {f}' for f, n in used.most_common())} |",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file in F16, BF16 or F32")
    parser.add_argument("--text", required=True, type=Path, help="WikiText-2's test split")
    parser.add_argument("--recipes", default="Q4_K_M,IQ4_XS,Q3_K_M", help="names, with commas between")
    parser.add_argument("--imatrix", type=Path, help="a GGUF imatrix file, for all")
    parser.add_argument("--calibrate", type=Path, help="text to measure sensitivities on")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write all figures there")
    a = parser.parse_args()
    print("| | MB | bits per weight | mean KL divergence | ratio | seconds | matrices |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        with pyllm.load(a.model, n_threads=a.threads, **load_options(N_CTX)) as llm:
            *_, _written = perplexity(llm, a.text.read_text(encoding="utf-8"), N_CTX, a.windows, base=base)
        for recipe in a.recipes.split(","):
            rows += judge(a, recipe, base, folder)
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
