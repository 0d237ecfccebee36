"""Files of many architectures against logits that llama.cpp gave for them; counts the exact ones.

    python benchmarks/arch_files.py FOLDER [--backend reference] [--only NAME] [--failed]

FOLDER has NAME.gguf and NAME.logits.npy, float32 [n_tokens, n_vocab], as `llama.cpp`'s architecture test makes them:
token i is 1 + (i*i*31 + i*17 + 5) % (n_vocab - 1), the KV cache is float32. A file is exact where the NMSE of all
logits is at most 1e-6 on the reference backend, 1e-5 on others. Exit status 1 where a file that loads is not exact.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import pyllm
from pyllm.errors import PyllmError
from pyllm.testing.running import nmse

_LIMITS = {"reference": 1e-6}
_OTHERS = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--only", default="", help="names that begin so")
    parser.add_argument("--failed", action="store_true", help="exact ones are counted and not listed")
    a = parser.parse_args()
    files = sorted(path for path in a.folder.glob("*.gguf") if path.name.startswith(a.only))
    if not files:
        sys.exit(f"{a.folder} has no GGUF files")
    limit = _LIMITS.get(a.backend, _OTHERS)
    counts: Counter[str] = Counter()
    for path in files:
        found, words = compare(path, a.backend, limit)
        counts[found] += 1
        if found != "exact" or not a.failed:
            print(f"{path.stem:32} {found:8} {words}", flush=True)
    print(f"{len(files)} files, {a.backend}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    sys.exit(counts["inexact"] > 0)


def compare(path: Path, backend: str, limit: float) -> tuple[str, str]:
    """ "exact", "inexact", "refused" or "unlogged" (without logits to compare with), and the reason in words."""
    logits = path.with_name(f"{path.stem}.logits.npy")
    if not logits.exists():
        return "unlogged", ""
    wanted = np.load(logits)
    n, n_vocab = wanted.shape
    tokens = [1 + (i * i * 31 + i * 17 + 5) % (n_vocab - 1) for i in range(n)]
    try:
        with pyllm.load(path, backend=backend, n_ctx=max(128, n), kv_dtype="f32", max_seqs=1) as llm:
            error = nmse(llm.logits(tokens), wanted)
    except PyllmError as refusal:
        return "refused", str(refusal).partition(";")[0]
    return ("exact" if error <= limit else "inexact"), f"NMSE {error:.1e}"


if __name__ == "__main__":
    main()
