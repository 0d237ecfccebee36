"""Linear attention and shifts of tokens by the formulas of their papers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray

from pyllm import backends
from pyllm.program import Value
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.select import Slice
from pyllm.program.ops.shift import TokenShift
from pyllm.testing.models import Builder, one_op
from pyllm.testing.running import Step, compiled, random_tokens, run

F64 = NDArray[np.float64]

N = 21
TOKENS = random_tokens(N, 96, 7)
BACKENDS = [name for name in backends.names() if backends.get(name).keeps_recurrent_states]
HEADS, KEYS, VALUES = 2, 16, 32


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    oracle.need(request.param)
    return str(request.param)


def attention(backend: str, *names: str, key_heads: int = HEADS, **options: Any) -> tuple[F64, dict[str, F64]]:
    """What a backend computes of random rows [tokens, heads, value_dim]; and those rows by name, [tokens, heads,
    columns]."""
    heads = {name: key_heads if name in "kv" else HEADS for name in names}
    widths = {name: n * (VALUES if name == "v" else KEYS) for name, n in heads.items()}

    def record(b: Builder, x: Value) -> Value:
        values, start = {}, 0
        for name, width in widths.items():
            values[name] = b(Slice(x=x, start=start, width=width))
            start += width
        sizes = {"n_heads": HEADS, "n_key_heads": key_heads, "key_dim": KEYS, "value_dim": VALUES}
        return b(LinearAttention(**values, **sizes, **options))

    model = one_op(record, width=sum(widths.values()), embed_std=0.3)
    tensors = model.tensors()
    exe = compiled(backend, model, tensors)
    got = run(exe, [Step(TOKENS, 0, [3, 8, 5])]).astype(np.float64)
    exe.close()
    rows = tensors["table"].data.view(np.float32).reshape(96, -1)[TOKENS].astype(np.float64)
    parts = np.split(rows, np.cumsum([*widths.values()])[:-1], axis=1)
    given = {name: part.reshape(N, heads[name], -1) for name, part in zip(widths, parts, strict=True)}
    return got.reshape(N, HEADS, VALUES), given


def sums(q: F64, k: F64, v: F64, decay: F64, *, until: int = 0) -> F64:
    """out[t] = sum over i of (q[t] exp(sum of decay[i + 1 .. t + until]) . k[i]) v[i], i up to t + until; of one
    head."""
    total = np.cumsum(decay, axis=0)
    out = np.zeros(v.shape)
    for t in range(len(q)):
        for i in range(t + until + 1):
            out[t] += (q[t] * np.exp(total[t + until] - total[i])) @ k[i] * v[i]
    return out


def test_gated_linear_attention_is_the_papers(backend: str) -> None:
    """arXiv:2312.06635 in parallel form."""
    got, given = attention(backend, "q", "k", "v", "decay", scale=0.25)
    for h in range(HEADS):
        wanted = 0.25 * sums(*(given[name][:, h] for name in ("q", "k", "v", "decay")))
        np.testing.assert_allclose(got[:, h], wanted, rtol=1e-4, atol=1e-5)


def test_complement_and_shared_heads(backend: str) -> None:
    got, given = attention(backend, "q", "k", "v", "decay", key_heads=1, complement=True)
    for h in range(HEADS):
        q, decay = given["q"][:, h], given["decay"][:, h]
        wanted = sums(q, given["k"][:, 0] * (1 - np.exp(decay)), given["v"][:, 0], decay)
        np.testing.assert_allclose(got[:, h], wanted, rtol=1e-4, atol=1e-5)


def test_lightning_attention_is_the_papers(backend: str) -> None:
    """arXiv:2401.04658: scores times a power of each head's decay."""
    factors = np.array([0.5, 0.96])
    got, given = attention(backend, "q", "k", "v", decays=tuple(np.log(factors).tolist()))
    distance = np.subtract.outer(np.arange(N), np.arange(N))
    for h in range(HEADS):
        mask = np.where(distance >= 0, factors[h] ** np.maximum(distance, 0), 0)
        wanted = (given["q"][:, h] @ given["k"][:, h].T * mask) @ given["v"][:, h]
        np.testing.assert_allclose(got[:, h], wanted, rtol=1e-4, atol=1e-5)


def test_reading_before_the_token_is_rwkv_6s(backend: str) -> None:
    """arXiv:2404.05892, without the bonus: decays between a token and the one before the reading one."""
    got, given = attention(backend, "q", "k", "v", "decay", before=True)
    for h in range(HEADS):
        wanted = sums(*(given[name][:, h] for name in ("q", "k", "v", "decay")), until=-1)
        np.testing.assert_allclose(got[:, h], wanted, rtol=1e-4, atol=1e-5)


def test_erasing_is_rwkv_7s(backend: str) -> None:
    """arXiv:2503.14456 in its orientation: S = S (diag(w) + a b^T) + v^T k, out = S r."""
    got, given = attention(backend, "q", "k", "v", "decay", "erase", "insert")
    for h in range(HEADS):
        s = np.zeros((VALUES, KEYS))
        for t in range(N):
            q, k, v, decay, a, b = (given[name][t, h] for name in ("q", "k", "v", "decay", "erase", "insert"))
            s = s @ (np.diag(np.exp(decay)) + np.outer(a, b)) + np.outer(v, k)
            np.testing.assert_allclose(got[t, h], s @ q, rtol=1e-4, atol=1e-5)


def test_shift_is_of_rows(backend: str) -> None:
    model = one_op(lambda b, x: b(TokenShift(x=x)))
    tensors = model.tensors()
    exe = compiled(backend, model, tensors)
    got = run(exe, [Step(TOKENS, 0, [3, 8, 5])])
    exe.close()
    rows = tensors["table"].data.view(np.float32).reshape(96, -1)[TOKENS]
    np.testing.assert_allclose(got[0], -rows[0], atol=1e-6)
    np.testing.assert_allclose(got[1:] + rows[1:], rows[:-1], atol=1e-6)
