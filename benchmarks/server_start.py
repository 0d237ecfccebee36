"""From the command to the first answer: `pyllm serve` with one request, beside `pyllm run`, in turn.

    python benchmarks/server_start.py -m MODEL [-m MODEL …] [-r 7]

Seconds from the start of the process; for the server until the answer of one token is read whole. Medians.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import ask, free_port, pyllm_command, stop

_PROMPT = "The capital of France is"
_LIMIT = 120.0
"""Seconds that one start may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("-r", "--runs", type=int, default=7)
    a = parser.parse_args()
    print("| model | pyllm run, s | pyllm serve, s | ratio |\n|---|---|---|---|")
    for model in a.model:
        run(model)
        serve(model)  # kernels are compiled, files are read
        runs, serves = zip(*((run(model), serve(model)) for _ in range(a.runs)), strict=True)
        ours, theirs = statistics.median(serves), statistics.median(runs)
        print(f"| {Path(model).name} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |", flush=True)


def run(model: str) -> float:
    """Seconds of `pyllm run`."""
    command = [sys.executable, "-m", "pyllm", "run", "-m", model, "-n", "1", "--temp", "0", _PROMPT]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_LIMIT)
    return time.perf_counter() - began


def serve(model: str) -> float:
    """Seconds of `pyllm serve` until a first answer. Raises SystemExit with what it wrote where none comes."""
    body = {"messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 1, "temperature": 0}
    port = free_port()
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        command = [*pyllm_command([model]), "--port", str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                while process.poll() is None and time.perf_counter() - began < _LIMIT:
                    try:
                        status, answer = ask(port, "/v1/chat/completions", body, _LIMIT)
                    except (ConnectionError, http.client.HTTPException):
                        time.sleep(0.005)
                        continue
                    seconds = time.perf_counter() - began
                    if status == 200:
                        return seconds
                    sys.exit(f"the answer was {status}: {answer[:2000].decode(errors='replace')}")
            finally:
                stop(process)
        log.seek(0)
        sys.exit(f"no answer came:\n{log.read()[-4000:].decode(errors='replace')}")


if __name__ == "__main__":
    main()
