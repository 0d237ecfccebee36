"""From the command to the first token of a long prompt: `pyllm run` cold, and with what --prompt-cache kept, in turn.

    python benchmarks/prompt_cache.py -m MODEL [-m MODEL …] [-n 4000] [-r 3]

Seconds from the start of the process to the first byte of the answer, medians; the file's size, and what a run takes
longer that writes it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyllm

_LIMIT = 1800.0
"""Seconds that one run may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("-n", "--tokens", type=int, default=4000)
    parser.add_argument("-r", "--runs", type=int, default=3)
    a = parser.parse_args()
    print("| model | tokens | cold, s | from the file, s | ratio | file, MiB | writing it, s |\n" + "|---" * 7 + "|")
    for model in a.model:
        with tempfile.TemporaryDirectory() as folder:
            prompt, cache = Path(folder, "prompt.txt"), Path(folder, "prompt.cache")
            prompt.write_text(text_of(model, a.tokens))
            command = [
                sys.executable, "-m", "pyllm", "run", "-m", model, "--raw", "-f", str(prompt), "-n", "1", "--temp", "0",
                "-c", str(a.tokens + 96),
            ]  # fmt: skip
            first_byte([*command[:8], str(prompt), "-n", "1"])  # kernels are compiled, files are read
            cold, warm, writing = [], [], []
            for _ in range(a.runs):
                cache.unlink(missing_ok=True)
                cold.append(first_byte(command)[0])
                began, ended = first_byte([*command, "--prompt-cache", str(cache)])
                writing.append(ended - began)
                warm.append(first_byte([*command, "--prompt-cache", str(cache), "--prompt-cache-ro"])[0])
            size = os.path.getsize(cache) / (1 << 20)
        x, y, z = (statistics.median(seconds) for seconds in (cold, warm, writing))
        print(
            f"| {Path(model).name} | {a.tokens} | {x:.2f} | {y:.2f} | {x / y:.1f} | {size:.0f} | {z:.2f} |", flush=True
        )


def text_of(model: str, n: int) -> str:
    """A text of about n tokens."""
    tokenizer = pyllm.load_tokenizer(model)
    words = " ".join(f"Item {i} of the list has the number {i * i % 9973}." for i in range(n))
    return tokenizer.decode(tokenizer.encode(words)[: n - 8])


def first_byte(command: list[str]) -> tuple[float, float]:
    """Seconds to the first byte of the answer, and to the end."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.read(1)
            first = time.perf_counter() - began
            process.stdout.read()
            if process.wait(_LIMIT):
                sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        finally:
            process.kill()
    return first, time.perf_counter() - began


if __name__ == "__main__":
    main()
