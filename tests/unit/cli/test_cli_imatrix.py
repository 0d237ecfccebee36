"""`pyllm imatrix` and the comparisons of `pyllm perplexity`, on a small random model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import Run

from pyllm.quant.imatrix import ImportanceMatrix

REFERENCE = ("--backend", "reference")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("It was a bright day, and the clocks were all wrong. " * 12)
    return str(path)


def test_collects(run: Run, model: str, text: str, tmp_path: Path) -> None:
    out = str(tmp_path / "m.gguf")
    done = run("imatrix", "-m", model, *REFERENCE, "-f", text, "-o", out, "--ctx", "64")
    assert (done.code, done.out) == (0, "")
    assert f"{out}: 14 weights, 9 chunks of 64 tokens" in done.err
    matrix = ImportanceMatrix.load(out)
    assert (matrix.datasets, matrix.chunks, matrix.chunk_size) == (["text.txt"], 9, 64)
    assert matrix.sums["blk.1.ffn_down.weight"].squares.shape == (1, 64)
    again = run("imatrix", "-m", model, *REFERENCE, "-f", text, "-o", out)
    assert (again.code, again.err) == (1, f"error: {out} exists already; --overwrite replaces it\n")


def test_goes_on_and_merges(run: Run, model: str, text: str, tmp_path: Path) -> None:
    a, b, c, d = (str(tmp_path / f"{n}.gguf") for n in "abcd")
    common = ("imatrix", "-m", model, *REFERENCE, "-f", text, "--ctx", "64")
    assert run(*common, "-o", a, "--process-output", "--save-every", "2").code == 0
    assert run(*common, "-o", b, "--chunks", "4").code == 0
    assert run(*common, "-o", b, "--from", b).code == 0
    whole, resumed = ImportanceMatrix.load(a), ImportanceMatrix.load(b)
    assert whole.chunks == resumed.chunks == 9
    assert set(whole.sums) - set(resumed.sums) == {"output.weight"}
    for name, sums in resumed.sums.items():
        np.testing.assert_allclose(whole.sums[name].squares, sums.squares, rtol=1e-4)
    assert run(*common, "-o", c, "--skip", "4").code == 0
    done = run("imatrix", "--merge", a, c, "-o", d)
    assert done.code == 0
    assert ImportanceMatrix.load(d).chunks == 14
    assert "nothing" not in done.err


def test_shows_statistics(run: Run, model: str, text: str, tmp_path: Path) -> None:
    out = str(tmp_path / "m.gguf")
    run("imatrix", "-m", model, *REFERENCE, "-f", text, "-o", out, "--ctx", "64", "--chunks", "2")
    done = run("imatrix", "--show-statistics", out)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{out}: 14 weights, 2 chunks of 64 tokens, from text.txt"
    assert lines[2].split()[:3] == ["layer", "weight", "sum"]
    assert lines[3].split()[:2] == ["0", "attn_k"]
    assert len(lines[-1].split()) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--show-statistics"], 2, "one file"),
        (["--merge"], 2, "--merge adds up files"),
        (["extra.gguf"], 2, "only --merge"),
        (["--merge", "missing.gguf"], 1, "missing.gguf cannot be opened"),
        (["-f", "missing.txt"], 1, "missing.txt"),
        (["-f", "short.txt"], 1, "windows of 512 need at least 512"),
        (["--from", "short.txt", "-f", "short.txt"], 1, "not an importance matrix"),
        (["-o", "no/folder.gguf", "-f", "short.txt"], 1, "there is no folder"),
    ],
)
def test_refusals(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short")
    done = run("imatrix", "-m", model, *REFERENCE, *arguments)
    assert done.code == code
    assert says in done.err
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".gguf"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals for single processes")
def test_interrupt_keeps_what_was_read(model: str, tmp_path: Path) -> None:
    file, out = tmp_path / "long.txt", tmp_path / "m.gguf"
    file.write_text("All the clocks were wrong that day. " * 30_000)
    command = [sys.executable, "-m", "pyllm", "imatrix", "-m", model, *REFERENCE, "-f", str(file), "-o", str(out)]
    process = subprocess.Popen([*command, "--ctx", "16", "--save-every", "10"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"stopped" in err
    matrix = ImportanceMatrix.load(out)
    assert matrix.chunks >= 10
    assert {int(s.counts[0]) for s in matrix.sums.values()} == {16 * matrix.chunks}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.txt", "m.gguf"]


def test_perplexity_against_another(run: Run, model: str, text: str, tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    plain = run("perplexity", "-m", model, *REFERENCE, "-f", text, "--ctx", "64")
    written = run("perplexity", "-m", model, *REFERENCE, "-f", text, "--ctx", "64", "--kl-divergence-base", base)
    assert written.out == plain.out
    done = run("perplexity", "-m", model, *REFERENCE, "--kl-divergence", "--kl-divergence-base", base, "--chunks", "3")
    assert done.code == 0
    assert "Mean    KLD:" in done.out
    assert "Same top p: 100.000 ± 0.000 %" in done.out
    assert done.out.splitlines()[3].split()[0] == "3"
    same = run("perplexity", "-m", model, *REFERENCE, "--kl-divergence", "--kl-divergence-base", base, "--json")
    figures = json.loads(same.out)
    assert (figures["windows"], figures["tokens"], figures["same_top"]) == (9, 9 * 31, 1)
    assert abs(figures["mean_kld"]) < 1e-3 > figures["kld_p99.9"]
    alone = json.loads(run("perplexity", "-m", model, *REFERENCE, "-f", text, "--ctx", "64", "--json").out)
    assert f"PPL = {alone['ppl']:.4f} +/- {alone['ppl_error']:.5f}" in plain.out
    again = run("perplexity", "-m", model, *REFERENCE, "-f", text, "--ctx", "64", "--kl-divergence-base", base)
    assert (again.code, "already" in again.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--file FILE"),
        (["--kl-divergence"], "--kl-divergence-base BASE"),
        (["--kl-divergence", "--kl-divergence-base", "b", "-f", "x"], "leave out --file"),
    ],
)
def test_perplexity_usage(run: Run, model: str, arguments: list[str], says: str) -> None:
    done = run("perplexity", "-m", model, *arguments)
    assert done.code == 2
    assert says in done.err
