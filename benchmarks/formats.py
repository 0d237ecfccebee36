"""Every tensor format: speed of pyllm beside llama.cpp on the same file, in the same run.

    pip install llama-cpp-python            # into any environment
    pyllm imatrix -m F16.gguf -o FILE       # the smallest formats cannot be made without one
    python benchmarks/formats.py --model F16.gguf --imatrix FILE [--formats Q4_K,IQ3_S] [--peer-python PATH] [-t 2]

All matrices of the model are brought into one format (but token embeddings of the smallest ones: Q2_K), then the
engines take turns on that file, each measurement a process of its own. Rates are the best of all repetitions. A model
whose rows are not whole blocks of 256 weights keeps other formats there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pyllm
from pyllm.jit.processors import default_threads
from versus_llamacpp import Side, output_of

_HERE = Path(__file__).resolve().parent
FORMATS = (
    "F16,BF16,Q8_0,Q6_K,Q5_K,Q5_1,Q5_0,Q4_K,Q4_1,Q4_0,IQ4_NL,IQ4_XS,MXFP4,NVFP4,Q3_K,IQ3_S,IQ3_XXS,Q2_K,IQ2_S,IQ2_XS,"
    "IQ2_XXS,TQ2_0,TQ1_0,Q2_0,IQ1_M,IQ1_S,Q1_0"
)


NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")


def make(model: Path, target: Path, format: str, n_threads: int, imatrix: str | None) -> float:
    """Write the model with all matrices in `format`; bits per weight of the whole."""
    command = [sys.executable, "-m", "pyllm", "quantize", str(model), str(target), "Q8_0", "--pure"]
    if format in NEED_IMPORTANCE:
        command += ["--tensor-type", "token_embd=Q2_K"]
    if imatrix:
        command += ["--imatrix", imatrix]
    command += ["--tensor-type", f".*={format}", "--allow-requantize", "--overwrite", "-t", str(n_threads)]
    output_of(command)
    with pyllm.open_gguf(target) as file:
        return 8 * sum(t.n_bytes for t in file.tensors.values()) / sum(t.n_elements for t in file.tensors.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file, best one in F16")
    parser.add_argument("--formats", default=FORMATS, help="names, with commas between")
    parser.add_argument("--imatrix", help="an importance matrix of the model")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=2, help="how often the engines take turns")
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="in each round")
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    a = parser.parse_args()
    own = Side("pyllm", sys.executable, "own.py", [])
    peer = Side("llama.cpp", a.peer_python, "peer.py", [])
    print(f"{a.model.name}, {a.threads} threads, best of {a.rounds} x {a.repetitions}; tokens/s, pyllm / llama.cpp\n")
    print(f"| format | bits per weight | pp{a.p} | ratio | tg{a.n} | ratio |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        for format in a.formats.split(","):
            bits = make(a.model, file, format, a.threads, a.imatrix)
            arguments = ("speed", file, "-t", a.threads, "-p", a.p, "-n", a.n, "--parallel", 0, "-r", a.repetitions)
            runs = [(own.run(*arguments), peer.run(*arguments)) for _ in range(a.rounds)]
            cells = [format, f"{bits:.2f}"]
            for key in ("pp", "tg"):
                ours, theirs = (max(rate for run in runs for rate in run[side][key]) for side in range(2))
                cells += [f"{ours:.1f} / {theirs:.1f}", f"{ours / theirs:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
