"""Speculation beside none: tokens per second on an edit, on code and on free text, in turn; answers must be equal.

    python benchmarks/speculation.py MODEL --spec ngram draft=SMALLER [-r 3] [-n 256] [-t 2]

The same as `pyllm bench MODEL --spec …`: a row for each task and method, with medians of ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse

from pyllm.bench.speculation import compare, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--spec", nargs="+", default=["ngram"])
    parser.add_argument("-r", type=int, default=3)
    parser.add_argument("-n", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("-t", type=int, default=2, help="threads")
    args = parser.parse_args()
    options = {"n_ctx": 4096, "n_threads": args.t, "max_seqs": 4}
    for line in table(compare(args.model, args.spec, options, args.n, args.r)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
