"""What a token becomes depends on its own sequence alone, to the last bit: not on cuts, company, or threads."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray
from oracle import Shape, Step, run, transformer

from pyllm.backends.base import Batch, Executable
from pyllm.backends.cpu import BACKEND
from pyllm.backends.cpu.linear import wide_supported
from pyllm.config import ExecutionOptions
from pyllm.jit.target import host
from pyllm.testing import running

SHAPES = {
    "one head each": Shape(n_heads=4, n_kv_heads=4),
    "groups of three": Shape(n_heads=6, n_kv_heads=2, n_embd=384),
    "groups of seven": Shape(n_heads=7, n_kv_heads=1, n_embd=448),
    "window": Shape(n_heads=6, n_kv_heads=2, n_embd=384, window=100),
}
PAGES = 40
"""Of a sequence: 1280 positions."""
N_SEQS = 5
OPTIONS = ExecutionOptions(
    n_pages=PAGES * N_SEQS, page_size=32, max_tokens=160, max_seqs=N_SEQS, max_rows=160, kv_dtype="f16", n_threads=2
)


@pytest.fixture(autouse=True)
def _here() -> None:
    oracle.need("cpu")


def compiled(name: str, n_threads: int = 2) -> Executable:
    model = transformer(SHAPES[name])
    return BACKEND.compile(model.program, model.tensors("Q8_0"), replace(OPTIONS, n_threads=n_threads))


def pages(sequence: int) -> list[int]:
    return list(range(PAGES * sequence, PAGES * (sequence + 1)))


def tokens(sequence: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(sequence).integers(0, Shape().n_vocab, 32 * PAGES)]


def read(exe: Executable, cuts: list[int]) -> NDArray[np.float32]:
    """Rows of a prompt that is cut so."""
    batch, rows, at = Batch(OPTIONS), [], 0
    for n in cuts:
        batch.clear()
        batch.add(tokens(0)[at : at + n], at, pages(0), "all")
        rows.append(exe.run(batch).copy())
        at += n
    return np.concatenate(rows)


@pytest.mark.skipif(wide_supported(host()), reason="with AMX, tiles of few rows are computed in another way")
@pytest.mark.parametrize("name", SHAPES)
def test_cuts_of_a_prompt_do_not_show(name: str) -> None:
    exe = compiled(name)
    whole = read(exe, [160, 140])
    for cuts in ([1] * 8 + [160, 132], [5, 7, 3, 160, 2, 2, 121], [99, 100, 101]):
        assert np.array_equal(read(exe, cuts), whole), cuts
    exe.close()


@pytest.mark.parametrize("name", SHAPES)
def test_drafts_get_the_rows_of_single_tokens(name: str) -> None:
    """At places where a context is divided into more parts than for the token before, or into longer ones."""
    options = replace(OPTIONS, max_drafts=16)
    model = transformer(SHAPES[name])
    exe = BACKEND.compile(model.program, model.tensors("Q8_0"), options)
    batch = Batch(options)
    for start, n in ((3, 12), (504, 17), (1018, 14), (1083, 9)):
        for s in (0, 1):
            for at in range(0, start, 160):
                batch.clear()
                batch.add(tokens(s)[at : min(at + 160, start)], at, pages(s), "none")
                exe.run(batch)
        alone = []
        for at in range(start, start + n):
            batch.clear()
            batch.add(tokens(0)[at : at + 1], at, pages(0), "all", generated=True)
            alone.append(exe.run(batch)[0].copy())
        batch.clear()
        batch.add(tokens(1)[start : start + 2], start, pages(1), "all", generated=True)
        batch.add(tokens(0)[start : start + n], start, pages(0), "all", generated=True)
        batch.add(tokens(2)[:40], 0, pages(2), "last")
        batch.check()
        assert np.array_equal(exe.run(batch)[2 : 2 + n], np.stack(alone)), start
    exe.close()


@pytest.mark.parametrize("name", SHAPES)
def test_neither_company_nor_threads_show_in_a_long_context(name: str) -> None:
    found: list[NDArray[np.float32]] = []
    for n_threads in (1, 2, 3):
        exe = compiled(name, n_threads)
        for others in (0, N_SEQS - 1):
            for s in range(others + 1):
                batch = Batch(OPTIONS)
                for at in range(0, 1120, 160):
                    batch.clear()
                    batch.add(tokens(s)[at : at + 160], at, pages(s), "none")
                    exe.run(batch)
            batch = Batch(OPTIONS)
            rows = []
            for n in range(1120, 1124):
                batch.clear()
                for s in range(others + 1):
                    batch.add(tokens(s)[n : n + 1], n, pages(s), "all", generated=True)
                rows.append(exe.run(batch)[0].copy())
            found.append(np.stack(rows))
        exe.close()
    assert all(np.array_equal(rows, found[0]) for rows in found)


RECURRENT = Shape(n_heads=2, n_kv_heads=1, head_dim=128, recurrent=True)
"""Heads that are divided into more or fewer parts, by the number of sequences and their tokens."""


def recurrent(n_threads: int = 2) -> Executable:
    model = transformer(RECURRENT)
    return running.compiled("cpu", model, model.tensors("Q8_0"), replace(running.OPTIONS, n_threads=n_threads))


def piece(sequence: int, first: int, last: int, generated: bool = False) -> Step:
    return Step(tokens(sequence)[first:last], first, range(4 * sequence, 4 * sequence + 4), generated=generated)


@pytest.mark.skipif(wide_supported(host()), reason="with AMX, tiles of few rows are computed in another way")
def test_cuts_do_not_show_in_recurrent_states() -> None:
    exe = recurrent()
    whole = run(exe, [replace(piece(0, 0, 60), also_after=(1, 7, 33))])
    for at in (1, 7, 33):
        assert np.array_equal(run(exe, [piece(0, at, 60)]), whole[at:]), at
    for cuts in ([*range(9), 60], [0, 1, 3, 29, 59, 60], [0, 16, 32, 48, 60]):
        pieces = [run(exe, [piece(0, a, b)]) for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(pieces), whole), cuts
    exe.close()


def test_neither_company_nor_threads_show_in_recurrent_states() -> None:
    found: list[NDArray[np.float32]] = []
    for n_threads in (1, 2, 3):
        exe = recurrent(n_threads)
        for others in (range(1), range(4)):
            for s in others:
                run(exe, [piece(s, 0, 40)])
            for n in range(40, 44):
                beside = [piece(s, n, n + 1, generated=True) for s in others]
                found.append(run(exe, beside)[0])
        exe.close()
    assert all(np.array_equal(rows, found[i % 4]) for i, rows in enumerate(found))
