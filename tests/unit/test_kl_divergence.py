"""Comparing two models: the file between them as it is described, figures as defined, files that are not right."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_fakes import BOS, fake_llm

from pyllm.errors import RequestError
from pyllm.evaluation.kl_divergence import BaseFile, Divergence, kl_divergence
from pyllm.evaluation.perplexity import perplexity
from pyllm.evaluation.scoring import Scorer, coded_width

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 11, 100)]


def log_softmax(rows: Any) -> Any:
    x = np.asarray(rows, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def write_base(path: Path, n_windows: int | None = None, **options: Any) -> Any:
    llm = fake_llm(3, True, **options)
    estimates = list(perplexity(llm, TOKENS, 12, n_windows, base=path))
    return llm, estimates


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("n_vocab", [11, 12, 40])
def test_file_is_as_described(tmp_path: Path, side: int, n_vocab: int) -> None:
    path = tmp_path / "base"
    llm, estimates = write_base(path, n_vocab=n_vocab, side=side)
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    n_ctx, vocab, n = struct.unpack_from("<Iii", data, 8)
    assert (n_ctx, vocab, n) == (12, n_vocab, 8)
    tokens = np.frombuffer(data, "<i4", n * n_ctx, 20).reshape(n, n_ctx)
    np.testing.assert_array_equal(tokens.ravel(), TOKENS[: n * n_ctx])
    width = 2 * ((n_vocab + 1) // 2) + 4
    codes = np.frombuffer(data, "<u2", offset=20 + tokens.nbytes).reshape(n, 5, width)
    scale, least = np.moveaxis(np.ascontiguousarray(codes[..., :4]).view("<f4"), -1, 0)
    got = scale[..., None] * codes[..., 4 : 4 + n_vocab] + least[..., None]
    for k in range(n):
        wanted = log_softmax(llm.engine.logits([BOS, *tokens[k, 1:]])[6:11])
        wanted = np.maximum(wanted, wanted.max(axis=-1, keepdims=True) - 16)
        assert np.abs(got[k] - wanted).max() <= 0.51 * scale[k].max() + 2e-6
    assert len(estimates) == 8
    assert estimates == list(perplexity(llm, TOKENS, 12))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n_vocab", [3, 16, 50, 1500])
def test_divergence_of_rows(n_vocab: int) -> None:
    random = np.random.default_rng(n_vocab)
    base = random.normal(0, 2, (20, n_vocab)).astype(np.float32)
    rows = (base + random.normal(0, 0.5, base.shape)).astype(np.float32)
    base[0] = rows[0]
    targets = random.integers(0, n_vocab, 20).astype(np.int32)
    codes = np.empty((20, coded_width(n_vocab)), np.uint16)
    with Scorer(2) as scorer:
        scorer.score(base, targets, codes)
        got, best = scorer.compare(rows, scorer.score(rows, targets), codes)
    p, q = log_softmax(base), log_softmax(rows)
    wanted = (np.exp(p) * (p - q)).sum(axis=1)
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)
    assert abs(got[0]) < 2e-4
    np.testing.assert_array_equal(best, base.argmax(axis=1))


@settings(max_examples=20, deadline=None)
@given(st.floats(-300, 300, width=32), st.floats(0, 200, width=32), st.integers(1, 40))
def test_codes_of_odd_rows(start: float, span: float, n_vocab: int) -> None:
    """Rows that are flat, or wider than codes reach."""
    rows = np.linspace(start, start + span, n_vocab, dtype=np.float32)[None]
    codes = np.empty((1, coded_width(n_vocab)), np.uint16)
    with Scorer(1) as scorer:
        scores = scorer.score(rows, np.zeros(1, np.int32), codes)
        kld, _ = scorer.compare(rows, scores, codes)
    scale, least = codes[0, :4].view(np.float32)
    wanted = log_softmax(rows[0])
    got = scale * codes[0, 4 : 4 + n_vocab].astype(np.float32) + least
    assert np.abs(got - np.maximum(wanted, wanted.max() - 16)).max() < 3e-4
    assert abs(kld[0]) < 1e-3


def test_figures_are_their_definitions(tmp_path: Path) -> None:
    llm, _ = write_base(tmp_path / "base", n_vocab=40)
    other = fake_llm(4, True, n_vocab=40, side=2)
    other.engine.table = llm.engine.table + np.random.default_rng(1).normal(0, 0.4, llm.engine.table.shape).astype("f")
    results = list(kl_divergence(other, tmp_path / "base"))
    assert [r.n_windows for r in results] == list(range(1, 9))
    last = results[-1]
    p, q, targets = [], [], []
    for k in range(8):
        window = [BOS, *TOKENS[12 * k + 1 : 12 * k + 12]]
        p.append(log_softmax(llm.engine.logits(window)[6:11]))
        q.append(log_softmax(other.engine.logits(window)[6:11]))
        targets += window[7:12]
    lp, lq = np.concatenate(p), np.concatenate(q)
    at = np.arange(40), np.array(targets)
    kld = (np.exp(lp) * (lp - lq)).sum(axis=1)
    np.testing.assert_allclose(last.nll, -lq[at], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.nll_base, -lp[at], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(last.kld, kld, rtol=2e-3, atol=2e-4)
    np.testing.assert_array_equal(last.same_top, lp.argmax(axis=1) == lq.argmax(axis=1))
    assert last.mean_kld.value == pytest.approx(kld.mean(), rel=1e-3)
    assert last.mean_kld.error == pytest.approx(kld.std(ddof=1) / np.sqrt(40), rel=1e-3)
    assert last.ppl.value == pytest.approx(np.exp(-lq[at].mean()), rel=1e-4)
    assert last.ratio.value == pytest.approx(np.exp((lp - lq)[at].mean()), rel=1e-3)
    assert last.correlation == pytest.approx(np.corrcoef(lp[at], lq[at])[0, 1], rel=1e-3)
    assert last.rms_delta_p.value == pytest.approx(np.sqrt(np.mean((np.exp(lq[at]) - np.exp(lp[at])) ** 2)), rel=1e-3)
    # the error of a ratio of correlated figures is that of their difference, token by token
    cov = np.cov(lp[at], lq[at])
    error = np.sqrt((cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) / 40)
    assert last.log_ratio.error == pytest.approx(error, rel=1e-3)
    text = str(last)
    for line in ("Mean    KLD", "Median  KLD", "99.9%   KLD", " 1.0%   KLD", "RMS Δp", "Same top p", "Cor(ln"):
        assert line in text


def test_a_model_against_itself(tmp_path: Path) -> None:
    llm, estimates = write_base(tmp_path / "base")
    *_, last = kl_divergence(llm, tmp_path / "base", 3)
    assert last.n_windows == last.n_total == 3
    assert last.ppl.value == pytest.approx(estimates[2].ppl)
    assert abs(last.mean_kld.value) < 1e-4
    assert last.top_share.value == 1
    assert last.ratio.value == pytest.approx(1, abs=1e-3)


def test_one_token_has_no_errors() -> None:
    one = Divergence(1, 1, np.array([1.0]), np.array([1.5]), np.array([0.1]), np.array([True]))
    assert one.mean_kld.error == one.log_ratio.error == one.top_share.error == 0
    assert "Mean    KLD:   0.100000" in str(one)


def test_nothing_stays_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    running = perplexity(fake_llm(3, True), TOKENS, 12, base=tmp_path / "base")
    next(running)
    assert not (tmp_path / "base").exists()
    running.close()
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.write_text("precious")
    with pytest.raises(RequestError, match="already"):
        perplexity(fake_llm(3, True), TOKENS, 12, base=path)
    assert path.read_text() == "precious"
    list(perplexity(fake_llm(3, True), TOKENS, 12, base=path, overwrite=True))
    assert BaseFile(path).n_windows == 8
    with pytest.raises(RequestError, match="no folder"):
        perplexity(fake_llm(3, True), TOKENS, 12, base=tmp_path / "no" / "base")


def test_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(RequestError, match="are free"):
        perplexity(fake_llm(3, True), TOKENS, 12, base=tmp_path / "base")


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "base"
    write_base(path)
    data = path.read_bytes()
    for damaged, says in (
        (b"", "begin with"),
        (b"GGUF" + data[4:], "begin with"),
        (data[:-1], "not whole"),
        (data[:40], "not whole"),
        (data[:8] + struct.pack("<Iii", 12, 11, -1) + data[20:], "damaged"),
        (data[:8] + struct.pack("<Iii", 0, 11, 8) + data[20:], "damaged"),
        (data[:8] + struct.pack("<Iii", 1 << 20, 1 << 20, 1 << 30) + data[20:], "not whole"),
        (data[:20] + struct.pack("<i", 11) + data[24:], "not in its vocabulary"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=says):
            kl_divergence(fake_llm(3, True), path)
    path.write_bytes(data)
    with pytest.raises(RequestError, match="vocabulary of 11"):
        kl_divergence(fake_llm(3, True, n_vocab=12), path)
    with pytest.raises(RequestError, match="at least one"):
        kl_divergence(fake_llm(3, True), path, 0)
    short = fake_llm(3, True)
    short.n_ctx = 8
    with pytest.raises(RequestError, match="do not fit"):
        kl_divergence(short, path)
    with pytest.raises(RequestError, match="cannot be opened"):
        kl_divergence(fake_llm(3, True), tmp_path / "none")
