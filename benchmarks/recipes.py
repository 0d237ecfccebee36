"""Every recipe: a model quantized by pyllm and by llama.cpp, and both files judged: size, time, perplexity, divergence.

    pip install llama-cpp-python gguf       # into any environment
    python benchmarks/recipes.py --model F16.gguf --text wiki.test.txt [--recipes Q4_K_M,IQ4_XS] [--imatrix FILE]
        [--peer-python PATH] [--windows 20] [--json OUT.json] [--plot OUT.svg]

Perplexity is llama.cpp's of both files (so it also shows that it reads pyllm's); the KL divergence is that from the
unquantized model, computed by pyllm for both files over the same windows. Times are whole processes, in turn.
`--plot` needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyllm.jit.processors import default_threads
from versus_llamacpp import Side, output_of

RECIPES = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0,IQ4_XS,IQ3_S"


def judge(a: argparse.Namespace, recipe: str, own: Side, peer: Side, base: Path, folder: Path) -> dict[str, Any]:
    """Both files of one recipe: bytes, seconds, perplexity, mean KL divergence, same-top share."""
    row: dict[str, Any] = {"recipe": recipe}
    importance = ["--imatrix", a.imatrix] if a.imatrix else []
    for side in (own, peer):
        file = folder / f"{side.name}.gguf"
        start = time.perf_counter()
        if side is own:
            arguments = [a.model, file, recipe, "-t", a.threads, "--overwrite", *importance]
            output_of([sys.executable, "-m", "pyllm", "quantize", *map(str, arguments)])
        else:
            peer.run("quantize", a.model, file, recipe, "-t", a.threads, *importance)
        seconds = time.perf_counter() - start
        scored = peer.run("perplexity", file, a.text, "-t", a.threads, "-c", 512, "--windows", a.windows)
        kl = own.run("divergence", file, a.text, base, "-t", a.threads, "-c", 512, "--windows", a.windows)
        row[side.name] = {"bytes": file.stat().st_size, "seconds": seconds, "ppl": scored["ppl"], **kl}
        if side is own and a.speed:
            speed = own.run("speed", file, "-t", a.threads, "-p", 512, "-n", 64, "--parallel", 0, "-r", 3)
            row |= {"pp512": max(speed["pp"]), "tg64": max(speed["tg"])}
        file.unlink()
    return row


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Size against divergence, a point for each file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, mark in (("pyllm", "o"), ("llama.cpp", "x")):
        points = sorted((r[name]["bytes"] / 1e6, r[name]["mean"], r["recipe"]) for r in rows if name in r)
        axes.plot([p[0] for p in points], [p[1] for p in points], mark, label=name, linestyle=":")
        if name == "pyllm":
            for x, y, recipe in points:
                axes.annotate(recipe, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="file, MB", ylabel="mean KL divergence from the unquantized model", yscale="log", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file in F16, BF16 or F32")
    parser.add_argument("--text", required=True, type=Path, help="WikiText-2's test split")
    parser.add_argument("--recipes", default=RECIPES, help="names, with commas between")
    parser.add_argument("--imatrix", help="a GGUF imatrix file, for both")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--speed", action="store_true", help="measure pp512 and tg64 of pyllm's files, too")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="draw size against divergence (SVG)")
    a = parser.parse_args()
    own = Side("pyllm", sys.executable, "own.py", [])
    peer = Side("llama.cpp", a.peer_python, "peer.py", [])
    rows = []
    print(f"{a.model.name}, {a.threads} threads, {a.windows} windows of 512; pyllm / llama.cpp\n")
    print("| recipe | MB | seconds | perplexity in llama.cpp | ratio | mean KL divergence | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        own.run("divergence", a.model, a.text, base, "--write", "-t", a.threads, "-c", 512, "--windows", a.windows)
        for recipe in a.recipes.split(","):
            row = judge(a, recipe, own, peer, base, folder)
            rows.append(row)
            ours, theirs = row["pyllm"], row["llama.cpp"]
            cells = [recipe]
            cells += [f"{ours['bytes'] / 1e6:.1f} / {theirs['bytes'] / 1e6:.1f}"]
            cells += [f"{ours['seconds']:.1f} / {theirs['seconds']:.1f}"]
            cells += [f"{ours['ppl']:.4f} / {theirs['ppl']:.4f}", f"{ours['ppl'] / theirs['ppl']:.4f}"]
            cells += [f"{ours['mean']:.4f} / {theirs['mean']:.4f}", f"{ours['mean'] / theirs['mean']:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")
    if a.plot:
        plot(rows, a.plot, a.model.stem)


if __name__ == "__main__":
    main()
