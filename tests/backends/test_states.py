"""Recurrent states: however a sequence is cut, whatever shares its steps, and from whichever save it goes on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import backends
from pyllm.backends.base import Batch, Executable
from pyllm.errors import BackendError
from pyllm.testing import ops
from pyllm.testing.models import one_op
from pyllm.testing.running import OPTIONS, Step, compiled, random_tokens, run

N = 40
RECURRENT = sorted(name for name, record in ops.cases().items() if one_op(record).program.slots)
BACKENDS = [name for name in backends.names() if backends.get(name).keeps_recurrent_states]
TOKENS = random_tokens(N, 96, 5)


def _compiled(backend: str, case: str) -> Executable:
    oracle.need(backend)
    model = one_op(ops.cases()[case])
    return compiled(backend, model, model.tensors())


def _close(got: Any, wanted: Any) -> None:
    """The products before an op may round by the number of rows; a sum rounds by its largest summands."""
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(np.std(wanted))))


@pytest.mark.parametrize("case", RECURRENT)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_cut_gives_the_same(backend: str, case: str, data: st.DataObject) -> None:
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, N - 1), max_size=6))), N]
    exe = _compiled(backend, case)
    try:
        whole = run(exe, [Step(TOKENS, 0, [9, 2, 11])])
        pieces = [run(exe, [Step(TOKENS[a:b], a, [4, 6, 1])]) for a, b in pairwise(cuts)]
    finally:
        exe.close()
    _close(np.concatenate(pieces), whole)


@pytest.mark.parametrize("case", RECURRENT)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_save_is_the_state_of_its_tokens(backend: str, case: str, data: st.DataObject) -> None:
    """A sequence goes on from saves within a step, several times, beside another that begins at the same one."""
    saves = sorted(data.draw(st.sets(st.integers(1, N - 1), min_size=1, max_size=5)))
    exe = _compiled(backend, case)
    try:
        whole = run(exe, [Step(TOKENS, 0, [3, 8, 5], also_after=saves)])
        for at in saves:
            rest = Step(TOKENS[at:], at, [3, 8, 5])
            _close(run(exe, [rest]), whole[at:])
            again = Batch(exe.options)
            first = rest.state_in()
            again.add(rest.tokens, at, [3, 8, 5], "all", state_in=first, saves=[(N - at, 0)])
            again.add(rest.tokens[:1], at, [7, 10, 12], "all", state_in=first, saves=[(1, 1)])
            again.check()
            got = exe.run(again).copy()
            _close(got[:-1], whole[at:])
            _close(got[-1], whole[at])
    finally:
        exe.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_with_states_needs_slots(backend: str) -> None:
    oracle.need(backend)
    model = one_op(ops.cases()[RECURRENT[0]])
    with pytest.raises(BackendError, match="n_slots"):
        backends.get(backend).compile(model.program, model.tensors(), OPTIONS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_are_counted(backend: str) -> None:
    exe = _compiled(backend, "delta-plain")
    try:
        needed = 4 * 2 * 32 * 32 * exe.options.n_slots
        assert needed <= exe.memory()["kv"] <= 1.1 * needed
    finally:
        exe.close()
    assert exe.memory()["kv"] == 0


def test_convolution_is_numpys() -> None:
    model = one_op(ops.cases()["conv-kernel_of_3"])
    tensors = model.tensors()
    weight, bias, table = (
        tensors[name].data.view(np.float32).reshape(tensors[name].shape) for name in ("conv", "conv.bias", "table")
    )
    exe = compiled("reference", model, tensors)
    got = run(exe, [Step(TOKENS, 0, [3, 8, 5])])
    exe.close()
    x = table[TOKENS]
    wanted = np.stack([np.convolve(x[:, c], weight[c, ::-1])[:N] for c in range(x.shape[1])], 1) + bias
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("by_row", [False, True])
def test_delta_rule_is_the_papers(by_row: bool) -> None:
    """S = S (a (I - b k k^T)) + b v k^T of arXiv:2412.06464, equation 10, in its orientation and in float64; with a
    diagonal a, Kimi's."""
    from pyllm.backends.reference.ops.delta import delta_step

    rng = np.random.default_rng(3)
    keys, values, n = 6, 4, 9
    state = np.zeros((1, keys, values), np.float32)
    s = np.zeros((values, keys))
    for _ in range(n):
        q, k, v = rng.normal(size=keys), rng.normal(size=keys), rng.normal(size=values)
        k /= np.linalg.norm(k)
        beta, decay = rng.uniform(), -rng.uniform(size=keys if by_row else 1)
        a = np.diag(np.exp(np.broadcast_to(decay, keys)))
        s = s @ a @ (np.eye(keys) - beta * np.outer(k, k)) + beta * np.outer(v, k)
        f32 = [np.float32(x)[None] for x in (q, k, v, decay, [beta])]
        np.testing.assert_allclose(delta_step(state, *f32)[0], s @ q, rtol=1e-4, atol=1e-5)


def _softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def test_mamba_1_is_the_papers() -> None:
    """Equation 2a of arXiv:2312.00752 with A discretized by equation 4 and B by delta B, in float64, channel by
    channel."""
    from pyllm.backends.reference.ops.ssm import step_1

    rng = np.random.default_rng(4)
    width, n, tokens = 5, 3, 9
    a = -rng.uniform(0.1, 2, size=(width, n))
    state, h = np.zeros((n, width), np.float32), np.zeros((width, n))
    for _ in range(tokens):
        x, delta, b, c = rng.normal(size=width), rng.uniform(0.1, 1, width), rng.normal(size=n), rng.normal(size=n)
        y = np.empty(width)
        for i in range(width):
            h[i] = np.diag(np.exp(delta[i] * a[i])) @ h[i] + delta[i] * b * x[i]
            y[i] = c @ h[i]
        f32 = [np.float32(v) for v in (x, delta, b, c, a)]
        np.testing.assert_allclose(step_1(state, *f32), y, rtol=1e-4, atol=1e-5)


def test_mamba_2_is_the_papers_matrix() -> None:
    """y = M x of arXiv:2405.21060, equation 3: M[j, i] = c[j] (a[j] ... a[i + 1]) b[i], in float64 and at once."""
    from pyllm.backends.reference.ops.ssm import step_2

    rng = np.random.default_rng(5)
    heads, columns, n, tokens = 2, 3, 4, 9
    a = -rng.uniform(0.1, 2, size=heads)
    x, delta = rng.normal(size=(tokens, heads, columns)), rng.uniform(0.1, 1, (tokens, heads))
    b, c = rng.normal(size=(2, tokens, heads, n))
    wanted = np.zeros((tokens, heads, columns))
    for h in range(heads):
        decays = np.cumsum(delta[:, h] * a[h])
        m = np.tril(np.exp(decays[:, None] - decays)) * (c[:, h] @ b[:, h].T)
        wanted[:, h] = m @ (delta[:, h, None] * x[:, h])
    state = np.zeros((heads, n, columns), np.float32)
    for t in range(tokens):
        f32 = [np.float32(v) for v in (x[t], delta[t], b[t], c[t], a)]
        np.testing.assert_allclose(step_2(state, *f32), wanted[t], rtol=1e-4, atol=1e-5)


def _whole(case: str) -> tuple[Any, dict[str, Any]]:
    """What the reference backend gives for a case, and the case's tensors."""
    model = one_op(ops.cases()[case])
    tensors = model.tensors()
    exe = compiled("reference", model, tensors)
    got = run(exe, [Step(TOKENS, 0, [3, 8, 5])])
    exe.close()
    values = {name: t.data.view(np.float32).reshape(t.shape).astype(np.float64) for name, t in tensors.items()}
    return got, values


def test_a_scan_1_has_softplus_steps_and_adds_its_input() -> None:
    got, w = _whole("ssm-mamba1_odd")
    e = w["table"][TOKENS]
    x, dt, b, c = (e @ w[name].T for name in ("x", "dt", "b", "c"))
    h, wanted = np.zeros_like(w["ssm_a"]), []
    for t in range(N):
        step = _softplus(dt[t])[:, None]
        h = np.exp(step * w["ssm_a"]) * h + step * np.outer(x[t], b[t])
        wanted.append(h @ c[t] + w["d"] * x[t])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_scan_2_has_groups_biases_and_adds_its_input() -> None:
    """8 heads of 32 columns; the first four read group 0."""
    got, w = _whole("ssm-mamba2_groups")
    e = w["table"][TOKENS]
    x, dt, b, c = (e @ w[name].T for name in ("x", "dt", "b", "c"))
    wanted = np.empty((N, 256))
    for head in range(8):
        group, columns = slice(16 * (head // 4), 16 * (head // 4) + 16), slice(32 * head, 32 * head + 32)
        h = np.zeros((16, 32))
        for t in range(N):
            step = _softplus(dt[t, head] + w["dt.bias"][head])
            h = np.exp(step * w["ssm_a"][head]) * h + np.outer(b[t, group], step * x[t, columns])
            wanted[t, columns] = c[t, group] @ h + w["d"][head] * x[t, columns]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
