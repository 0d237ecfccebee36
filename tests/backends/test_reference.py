"""The reference backend itself: its ops against loops in plain Python, its cache, its limits, its interruption."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import OPTIONS, Shape, Step, random_tokens, run, transformer

from pyllm import backends
from pyllm.backends.reference import weights
from pyllm.backends.reference.ops.attention import attention as reference_attention
from pyllm.backends.reference.ops.experts import route as reference_route
from pyllm.backends.reference.ops.gate import gated_activation, xielu
from pyllm.backends.reference.ops.norm import layer_norm, rms_norm
from pyllm.backends.reference.ops.rope import rope as reference_rope
from pyllm.errors import BackendError, ClosedError, FormatError, ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Value
from pyllm.program.ops.dot import Dot
from pyllm.program.ops.gate import ACTIVATIONS, LIMITED
from pyllm.program.ops.linear import HeadLinear
from pyllm.program.ops.position import PositionScale, log_factors
from pyllm.program.ops.select import JoinHeads, Slice
from pyllm.program.ops.streams import StreamMix


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- ops against loops


@pytest.mark.parametrize(
    ("reach", "window", "softcap", "sinks", "slopes", "far"),
    [
        ("causal", 0, 0.0, False, (), 0),
        ("causal", 3, 0.0, False, (), 0),
        ("causal", 2, 1.5, True, (), 0),
        ("causal", 1, 0.0, True, (), 0),
        ("causal", 0, 0.0, False, (0.5, 0.25, 0.1, 0.01), 0),
        ("causal", 0, 1.5, False, (), 3),
        ("chunked", 3, 0.0, False, (), 0),
        ("chunked", 4, 0.0, False, (), 0),
        ("whole", 0, 0.0, True, (), 0),
        ("whole", 2, 0.0, False, (0.5, 0.25, 0.1, 0.01), 0),
        ("whole", 5, 0.0, False, (), 0),
        ("whole", 0, 0.0, False, (), 2),
        ("source", 0, 1.5, True, (), 0),
    ],
)
def test_attention(
    reach: str, window: int, softcap: float, sinks: bool, slopes: tuple[float, ...], far: int
) -> None:  # fmt: skip
    """`far`: distance in positions up to which biases differ; 0: none."""
    n, n_heads, n_kv, dim, v_dim, position = 3, 4, 2, 8, 4, 5
    q, k, v = (
        normal(n, n_heads, dim),
        normal(position + n, n_kv, dim, seed=1),
        normal(position + n, n_kv, v_dim, seed=2),
    )
    sink, biases = normal(n_heads, seed=3) if sinks else None, normal(n_heads, 2 * far + 1, seed=4) if far else None
    options = {"window": window, "reach": reach, "softcap": softcap, "slopes": slopes, "biases": biases, "sinks": sink}
    got = reference_attention(q, k, v, position, 0, scale=0.5, **options)
    for t in range(n):
        for h in range(n_heads):
            at = position + t
            seen = {
                "causal": range(max(0, at - window + 1) if window else 0, at + 1),
                "chunked": range(at - at % max(1, window), at + 1),
                "source": range(position + n),
                "whole": [s for s in range(position + n) if not window or abs(at - s) <= window // 2],
            }[reach]
            scores = [0.5 * sum(float(q[t, h, i]) * float(k[s, h // 2, i]) for i in range(dim)) for s in seen]
            if softcap:
                scores = [softcap * math.tanh(s / softcap) for s in scores]
            if slopes:
                scores = [x - slopes[h] * abs(at - s) for x, s in zip(scores, seen, strict=True)]
            if biases is not None:
                after = [max(-far, min(far, s - at)) for s in seen]
                scores = [x + float(biases[h, far + r]) for x, r in zip(scores, after, strict=True)]
            total = sum(map(math.exp, scores)) + (math.exp(float(sink[h])) if sink is not None else 0.0)
            for i in range(v_dim):
                wanted = sum(
                    math.exp(s) / total * float(v[key, h // 2, i]) for s, key in zip(scores, seen, strict=True)
                )
                assert got[t, h * v_dim + i] == pytest.approx(wanted, abs=1e-6)


def test_attention_ignores_what_lies_before_the_keys_given() -> None:
    q, k, v = normal(2, 2, 8), normal(9, 2, 8, seed=1), normal(9, 2, 8, seed=2)
    whole = reference_attention(q, k, v, 7, 0, scale=1.0, window=4)
    np.testing.assert_allclose(reference_attention(q, k[4:], v[4:], 7, 4, scale=1.0, window=4), whole, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs_by_their_angle(interleaved: bool) -> None:
    x, positions, inv_freq = normal(4, 2 * 10), np.array([0, 1, 7, 1000], np.int32), (1.0, 0.25, 0.0625)
    got = reference_rope(x, positions, 10, inv_freq, 1.5, interleaved).reshape(4, 2, 10)
    for t, head in np.ndindex(4, 2):
        row = x.reshape(4, 2, 10)[t, head]
        for i, f in enumerate(inv_freq):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turned = complex(row[a], row[b]) * 1.5 * np.exp(1j * float(positions[t]) * f)
            assert complex(got[t, head, a], got[t, head, b]) == pytest.approx(turned, abs=1e-5)
        np.testing.assert_array_equal(got[t, head, 6:], row[6:])


@pytest.mark.parametrize("act", ACTIVATIONS)
@given(g=st.floats(-200, 200, width=32), u=st.floats(-20, 20, width=32))
@settings(max_examples=60, deadline=None)
def test_activations(act: str, g: float, u: float) -> None:
    g = min(g, 20.0) if act == "exp" else g  # within float32
    limit = 3.0 if act in LIMITED else 0.0

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    wanted = {
        "silu": lambda: g * sigmoid(g) * u,
        "gelu": lambda: 0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * u,
        "gelu_erf": lambda: 0.5 * g * (1 + math.erf(g / math.sqrt(2))) * u,
        "relu": lambda: max(g, 0.0) * u,
        "relu2": lambda: max(g, 0.0) ** 2 * u,
        "sigmoid": lambda: sigmoid(g) * u,
        "softplus": lambda: (max(g, 0.0) + math.log1p(math.exp(-abs(g)))) * u,
        "tanh": lambda: math.tanh(g) * u,
        "exp": lambda: math.exp(g) * u,
        "identity": lambda: g * u,
        "swiglu_clamp": lambda: min(g, 3) * sigmoid(min(g, 3)) * max(-3.0, min(u, 3.0)),
        "swiglu_clamp_act": lambda: min(g * sigmoid(g), 3) * max(-3.0, min(u, 3.0)),
        "swiglu_oai": lambda: min(g, 7) * sigmoid(1.702 * min(g, 7)) * (max(-7.0, min(u, 7.0)) + 1),
    }[act]()
    got = gated_activation(np.array([[g]], np.float32), np.array([[u]], np.float32), act, limit)
    assert got.dtype == np.float32
    assert got[0, 0] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@given(st.floats(-30, 30, width=32))
@settings(max_examples=60, deadline=None)
def test_xielu(x: float) -> None:
    alpha_n, alpha_p, beta, eps = 1.25, 0.75, 0.5, -1e-6
    wanted = alpha_p * x * x + beta * x if x > 0 else alpha_n * (math.expm1(min(x, eps)) - x) + beta * x
    assert xielu(np.array([x], np.float32), alpha_n, alpha_p, beta, eps)[0] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_number_of_a_gate_holds_for_columns() -> None:
    gate, up = np.array([[0.0, 3.0]], np.float32), normal(1, 6)
    half, most = 0.5, 1 / (1 + math.exp(-3))
    wanted = up[0] * np.array([half] * 3 + [most] * 3)
    np.testing.assert_allclose(gated_activation(gate, up, "sigmoid")[0], wanted, rtol=1e-6)


def test_stream_mix() -> None:
    """Two streams of x and one of y become two."""

    def record(b: oracle.Builder, x: Value) -> Value:
        coefs = b(Slice(x=x, start=2, width=6))
        y = b(Slice(x=x, start=16, width=16))
        return b(StreamMix(x=x, y=y, coefs=coefs, weight=b.t("fixed.scale", 2, 3), width=16))

    model = oracle.one_op(record, width=32)
    tensors, tokens = model.tensors(), random_tokens(4, 96)
    exe = oracle.compiled("reference", model, tensors)
    got = run(exe, [Step(tokens, 0, [0])])
    exe.close()
    rows, fixed = oracle.decoded(tensors["table"])[tokens], oracle.decoded(tensors["fixed.scale"])
    for t, row in enumerate(rows):
        streams, coefs = [row[:16], row[16:], row[16:]], row[2:8]
        for j in range(2):
            wanted = sum((float(coefs[3 * j + i]) + float(fixed[j, i])) * streams[i] for i in range(3))
            np.testing.assert_allclose(got[t, 16 * j : 16 * j + 16], wanted, rtol=1e-5, atol=1e-6)


def test_position_scale() -> None:
    factors, length, offset = (1.0, 3.0, -0.5), 4, 1
    model = oracle.one_op(lambda b, x: b(PositionScale(x=x, factors=factors, length=length, offset=offset)), width=32)
    tensors, tokens = model.tensors(), random_tokens(20, 96)
    exe = oracle.compiled("reference", model, tensors)
    got = run(exe, [Step(tokens, 0, [0, 1])])
    exe.close()
    rows = oracle.decoded(tensors["table"])[tokens]
    for p in range(20):
        np.testing.assert_allclose(got[p], rows[p] * factors[min((p + offset) // length, 2)], rtol=1e-6)


def test_factors_of_positions() -> None:
    assert log_factors(0.1, 8192, 1, 8191) == (1.0,)
    assert log_factors(0.1, 8192, 1, 8192) == (1.0, 1 + 0.1 * math.log(2))
    with pytest.raises(ModelError, match="do not go"):
        log_factors(0.1, 1, 0, 1 << 20)


@pytest.mark.parametrize("group", [1, 4, 12])
def test_dot(group: int) -> None:
    def record(b: oracle.Builder, x: Value) -> Value:
        first, second = (b(Slice(x=x, start=start, width=12)) for start in (0, 12))
        return b(Dot(a=first, b=second, group=group))

    model = oracle.one_op(record, width=24)
    tensors, tokens = model.tensors(), random_tokens(5, 96)
    exe = oracle.compiled("reference", model, tensors)
    got = run(exe, [Step(tokens, 0, [0])])
    exe.close()
    rows = oracle.decoded(tensors["table"])[tokens]
    for t, g in np.ndindex(5, 12 // group):
        wanted = sum(float(rows[t, c]) * float(rows[t, 12 + c]) for c in range(g * group, (g + 1) * group))
        assert got[t, g] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("group", [4, 12])
def test_layer_norm(group: int) -> None:
    x, w, b = normal(3, 12) + 5, normal(group, seed=1), normal(group, seed=2)
    got = layer_norm(x, w, b, 1e-5, group)
    for t, head in np.ndindex(3, 12 // group):
        row = [float(v) for v in x[t, group * head : group * (head + 1)]]
        mean = sum(row) / group
        size = math.sqrt(sum((v - mean) ** 2 for v in row) / group + 1e-5)
        for i in range(group):
            wanted = (row[i] - mean) / size * float(w[i]) + float(b[i])
            assert got[t, group * head + i] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_rms_norm_of_heads() -> None:
    x, w = normal(3, 12), normal(4, seed=1)
    got = rms_norm(x, w, 1e-5, 4)
    for t, head in np.ndindex(3, 3):
        row = [float(v) for v in x[t, 4 * head : 4 * head + 4]]
        size = math.sqrt(sum(v * v for v in row) / 4 + 1e-5)
        for i in range(4):
            assert got[t, 4 * head + i] == pytest.approx(row[i] / size * float(w[i]), rel=1e-5)


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax_chosen"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_route(gating: str, normalize: bool, biased: bool) -> None:
    router, bias = normal(20, 6), normal(6, seed=1)
    chosen, got = reference_route(
        router, 2, gating=gating, normalize=normalize, weight_scale=3.0, choice_bias=bias if biased else None
    )
    for t in range(20):
        logits = [float(v) for v in router[t]]
        scores = {
            "softmax": [math.exp(v) / sum(map(math.exp, logits)) for v in logits],
            "sigmoid": [1 / (1 + math.exp(-v)) for v in logits],
            "softmax_chosen": logits,
        }[gating]
        order = sorted(range(6), key=lambda e: -(scores[e] + (float(bias[e]) if biased else 0.0)))[:2]
        weight = [scores[e] for e in order]
        if gating == "softmax_chosen":
            weight = [math.exp(w) / sum(map(math.exp, weight)) for w in weight]
        if normalize:
            weight = [w / sum(weight) for w in weight]
        assert list(chosen[t]) == order
        np.testing.assert_allclose(got[t], [3 * w for w in weight], rtol=1e-5)


def test_equal_scores_choose_the_first_experts() -> None:
    logits = np.array([[0.0, 2.0, 1.0, 3.0]], np.float32)
    chosen, weights = reference_route(logits, 3, gating="sigmoid", sharing=2)
    assert chosen.tolist() == [[1, 0, 1]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, [1, 0, 1]])), rtol=1e-6)
    assert reference_route(np.zeros((1, 5), np.float32), 3)[0].tolist() == [[0, 1, 2]]


def test_experts_of_the_best_groups_are_chosen() -> None:
    """Sums of two: 5, 7 and 6. The best expert, of the first group, is not among those of the other two."""
    logits = np.array([[5, 0, 0, 4, 3, 0, 1, 3, 3]], np.float32)
    chosen, weights = reference_route(logits, 4, gating="softmax_chosen", n_groups=3, n_groups_used=2)
    assert chosen.tolist() == [[3, 4, 7, 8]]
    wanted = np.exp([4, 3, 3, 3])
    np.testing.assert_allclose(weights[0], wanted / wanted.sum(), rtol=1e-6)
    bias = np.array([1, 1.5, 0, 0, 0, 0, 0, 0, 0], np.float32)  # 7.5, 7 and 6
    chosen, _ = reference_route(logits, 3, gating="softmax_chosen", n_groups=3, n_groups_used=1, choice_bias=bias)
    assert chosen.tolist() == [[0, 1, 2]]


def of_rows(record: oracle.Record, n: int = 5) -> tuple[oracle.F32, oracle.F32, dict[str, TensorInfo]]:
    """What the ops of `record` make of rows of 24 columns, those rows, and the tensors."""
    model = oracle.one_op(record, width=24)
    tensors, tokens = model.tensors(), random_tokens(n, 96)
    exe = oracle.compiled("reference", model, tensors)
    got = run(exe, [Step(tokens, 0, [0])])
    exe.close()
    return got, oracle.decoded(tensors["table"])[tokens], tensors


def test_a_product_by_head() -> None:
    got, rows, tensors = of_rows(lambda b, x: b(HeadLinear(x=x, weight=b.t("w", 3, 5, 8), n_heads=3)))
    w = oracle.decoded(tensors["w"])
    for t, h, r in np.ndindex(5, 3, 5):
        wanted = sum(float(rows[t, 8 * h + c]) * float(w[h, r, c]) for c in range(8))
        assert got[t, 5 * h + r] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_columns_are_joined_by_head() -> None:
    got, rows, _ = of_rows(lambda b, x: b(JoinHeads(a=x, b=b(Slice(x=x, start=4, width=6)), n_heads=2)))
    np.testing.assert_array_equal(got, [[*r[:12], *r[4:7], *r[12:], *r[7:10]] for r in rows])
    got, rows, _ = of_rows(lambda b, x: b(JoinHeads(a=x, b=b(Slice(x=x, start=4, width=2)), n_heads=2, shared=True)))
    np.testing.assert_array_equal(got, [[*r[:12], *r[4:6], *r[12:], *r[4:6]] for r in rows])


# --- the executable


@pytest.fixture(scope="module")
def model() -> oracle.Model:
    return transformer(Shape(n_layers=2, n_embd=64, n_ff=96, head_dim=16, n_rot=16, window=11, n_vocab=50))


def test_cuts_and_neighbours_change_nothing(model: oracle.Model) -> None:
    tensors, tokens = model.tensors(), random_tokens(40, 50)
    exe = oracle.compiled("reference", model, tensors)
    whole = run(exe, [Step(tokens, 0, [7, 3, 0, 9, 12])])
    pages, parts = [1, 14, 2, 8, 5], []
    for first, last in ((0, 1), (1, 18), (18, 19), (19, 40)):
        other = Step(random_tokens(5, 50, seed=first), 3, [4], "none")
        parts.append(run(exe, [other, Step(tokens[first:last], first, pages)]))
    assert oracle.nmse(np.concatenate(parts), whole) < 1e-11


def test_hidden_is_what_logits_are_made_of(model: oracle.Model) -> None:
    tensors = model.tensors()
    exe = oracle.compiled("reference", model, tensors)
    step = Step(random_tokens(9, 50), 0, [0, 1], [2, 8])
    hidden, logits = run(exe, [step], "hidden"), run(exe, [step])
    assert hidden.shape == (2, 64)
    np.testing.assert_allclose(hidden @ oracle.decoded(tensors["output.weight"]).T, logits, atol=1e-4)


def test_a_step_may_want_no_rows(model: oracle.Model) -> None:
    exe, tokens = oracle.compiled("reference", model, model.tensors()), random_tokens(20, 50)
    wanted = run(exe, [Step(tokens, 0, [5, 6], [19])])
    assert run(exe, [Step(tokens[:19], 0, [0, 1], "none")]).shape == (0, 50)
    np.testing.assert_allclose(run(exe, [Step(tokens[19:], 19, [0, 1])]), wanted, atol=1e-5)


def test_f16_cache_halves_memory_and_hardly_changes_results(model: oracle.Model) -> None:
    steps = [Step(random_tokens(40, 50), 0, [7, 3, 0, 9, 12])]
    narrow = oracle.compiled("reference", model, model.tensors(), replace(OPTIONS, kv_dtype="f16"))
    wide = oracle.compiled("reference", model, model.tensors())
    error = oracle.nmse(run(narrow, steps), run(wide, steps))
    assert 0 < error < 1e-5
    assert 2 * narrow.memory()["kv"] == wide.memory()["kv"] == 2 * 2 * 4 * OPTIONS.n_pages * OPTIONS.page_size * 2 * 16


def test_weights_that_do_not_fit_the_budget_are_decoded_at_each_use(
    model: oracle.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, tensors = [Step(random_tokens(9, 50), 0, [0, 1])], model.tensors("Q8_0")
    wanted = run(oracle.compiled("reference", model, tensors), steps)
    monkeypatch.setattr(weights, "KEEP_BYTES", 30_000)
    monkeypatch.setattr(weights, "_SLAB", 64 * 7)
    exe = oracle.compiled("reference", model, tensors)
    for _ in range(2):
        np.testing.assert_allclose(run(exe, steps), wanted, atol=1e-5)
    vectors = sum(4 * t.n_elements for t in tensors.values() if len(t.shape) == 1)
    assert exe.memory()["weights"] <= 30_000 + vectors


def test_interrupt_stops_the_step_and_the_next_one_works(model: oracle.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = oracle.compiled("reference", model, model.tensors())
    steps = [Step(random_tokens(9, 50), 0, [0, 1])]
    wanted = run(exe, steps)
    exe.interrupt()  # nothing runs: nothing happens
    np.testing.assert_array_equal(run(exe, steps), wanted)
    plain = weights.Weights.slabs

    def slow(*arguments: Any) -> Iterator[Any]:
        for slab in plain(*arguments):
            time.sleep(0.02)
            yield slab

    monkeypatch.setattr(weights.Weights, "slabs", slow)
    timer = threading.Timer(0.05, exe.interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(exe, steps)
    timer.join()
    monkeypatch.undo()
    np.testing.assert_array_equal(run(exe, steps), wanted)


def test_close(model: oracle.Model) -> None:
    exe = oracle.compiled("reference", model, model.tensors())
    exe.close()
    exe.close()
    assert exe.memory()["kv"] == exe.memory()["weights"] == 0
    with pytest.raises(ClosedError):
        run(exe, [Step([1], 0, [0])])


def test_missing_weights_and_unknown_formats_are_refused(model: oracle.Model) -> None:
    tensors = model.tensors()
    with pytest.raises(BackendError, match=r"output\.weight"):
        oracle.compiled("reference", model, {n: t for n, t in tensors.items() if n != "output.weight"})
    t = tensors["output.weight"]
    with pytest.raises(FormatError, match="Q9_X"):
        oracle.compiled("reference", model, tensors | {t.name: TensorInfo(t.name, t.shape, "Q9_X", t.data)})


# --- finding backends


def test_names_and_unknown_backends() -> None:
    assert {"reference", "cpu"} <= set(backends.names())
    assert backends.get("reference").probe().available
    with pytest.raises(BackendError, match=r"'abacus' is unknown.*reference"):
        backends.get("abacus")
