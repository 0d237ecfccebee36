"""Processes killed at random moments of a cold start and of a quantization: what they leave, and the next start.

    python benchmarks/kill.py start quantize --times 200

A start lacks one of its compiled kernels, in one case of forty all. After each kill, every file under a final name must
be whole; then the same command runs to its end, must give what it gives undisturbed, and must leave no temporary file.
Prints a line for each kind, and ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

from pyllm import env
from pyllm.jit import objects

LIMIT = 900.0
"""Seconds that an undisturbed command may take."""


@dataclass
class Case:
    """A command that is killed, and what is checked after it."""

    arguments: list[str]
    prepare: Callable[[int], None]
    """Called before each kill, with its number."""
    damaged: Callable[[], list[Path]]
    """Files under final names that are not whole."""
    result: Callable[[bytes], object]
    """What the command made, from its output."""
    folder: Path
    """Where it writes."""


def write_model(path: Path, n_embd: int, n_layers: int) -> None:
    """A llama model of random weights in half precision, whose tokens are bytes."""
    weights = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])
    writer.add_token_scores([0.0] * 259)
    writer.add_token_types([TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256])
    shapes = {"token_embd": (259, n_embd), "output": (259, n_embd), "output_norm": (n_embd,)}
    for i in range(n_layers):
        shapes |= {f"blk.{i}.{name}": (n_embd,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.attn_{name}": (n_embd, n_embd) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{name}": (2 * n_embd, n_embd) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down"] = n_embd, 2 * n_embd
    for name, shape in shapes.items():
        data = weights.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        writer.add_tensor(f"{name}.weight", data.astype(np.float16) if len(shape) > 1 else np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start_case(folder: Path, choose: random.Random) -> Case:
    """A start that compiles what it lacks: one kernel, and all of them in one case of forty."""
    model, cache = folder / "model.gguf", folder / "kernels"
    write_model(model, 64, 1)

    def kernels() -> list[Path]:
        return sorted(cache.rglob("*.o"))

    def prepare(i: int) -> None:
        there = kernels()
        for path in there if i % 40 == 20 else choose.sample(there, min(1, len(there))):
            path.unlink()

    return Case(
        ["run", "-m", str(model), "--raw", "-n", "8", "--temp", "0", "--ctx", "64", "-t", "1", "hello"],
        prepare,
        lambda: [path for path in kernels() if objects.read(path) is None],
        lambda output: output,
        cache,
    )


def quantize_case(folder: Path, choose: random.Random) -> Case:
    """Quantizing a model of 17 million weights, to a new file or over one that is there."""
    source, out = folder / "source.gguf", folder / "out"
    out.mkdir()
    write_model(source, 768, 3)
    whole: set[str] = set()

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def prepare(i: int) -> None:
        if i % 2:
            (out / "q.gguf").unlink(missing_ok=True)

    def result(_: bytes) -> str:
        whole.add(digest(out / "q.gguf"))
        return digest(out / "q.gguf")

    return Case(
        ["quantize", str(source), str(out / "q.gguf"), "Q4_K_M", "--overwrite", "-t", "1"],
        prepare,
        lambda: [path for path in out.glob("*.gguf") if digest(path) not in whole],
        result,
        out,
    )


def started(case: Case, folder: Path) -> subprocess.Popen[bytes]:
    command = [*(env.python() or [sys.executable]), "-m", "pyllm", *case.arguments]
    variables = env.for_child(PYLLM_KERNEL_CACHE=str(folder / "kernels"), PYTHONPATH=os.pathsep.join(env.search_path()))
    return subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(case: Case, folder: Path) -> tuple[object, float]:
    """Run the command to its end; gives its result and the seconds that it took. Raises RuntimeError."""
    begin = time.monotonic()
    process = started(case, folder)
    output, errors = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {errors.decode(errors='replace')[-500:]}")
    return case.result(output), time.monotonic() - begin


def kill_often(name: str, case: Case, folder: Path, times: int, choose: random.Random) -> bool:
    """Whether nothing was wrong."""
    wanted, _ = finish(case, folder)
    case.prepare(0)
    _, seconds = finish(case, folder)
    wrong: list[str] = []
    early = left = 0
    for i in range(times):
        case.prepare(i)
        process = started(case, folder)
        time.sleep(choose.uniform(0, seconds))
        early += process.poll() is None
        process.kill()  # its compile workers find out by themselves
        process.communicate(timeout=LIMIT)
        wrong += [f"kill {i}: {path.name} is damaged" for path in case.damaged()]
        left += sum(1 for _ in case.folder.rglob("*.part"))
        try:
            got, seconds = finish(case, folder)
            if got != wanted:
                wrong.append(f"kill {i}: the next run gave something else")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            wrong.append(f"kill {i}: the next run failed: {error}")
        wrong += [f"kill {i}: {path.name} is left" for path in case.folder.rglob("*.part")]
        if i % 20 == 19:
            print(f"{name}: {i + 1} kills, {early} before the end, wrong: {len(wrong)}", file=sys.stderr, flush=True)
    print(
        f"{name}: {times} kills, {early} before the end; temporary files left by them: {left}, all but "
        f"{sum('is left' in text for text in wrong)} removed by the next run; wrong: {len(wrong)}",
        flush=True,
    )
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return not wrong


CASES = {"start": start_case, "quantize": quantize_case}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--times", type=int, default=200, help="how often each is killed")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    good = True
    for name in a.cases:
        choose = random.Random(a.seed)
        with tempfile.TemporaryDirectory(prefix="pyllm-kill-") as text:
            folder = Path(text)
            good &= kill_often(name, CASES[name](folder, choose), folder, a.times, choose)
    sys.exit(not good)


if __name__ == "__main__":
    if not hasattr(signal, "SIGKILL"):
        sys.exit("this needs signals of POSIX")
    main()
