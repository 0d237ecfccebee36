"""The whole chain: distributions, seeds, order of steps, hostile values."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_oracle import OFF as PURE
from sampling_oracle import distribution

from pyllm.config import SamplingParams
from pyllm.errors import BackendError, RequestError
from pyllm.sampling import Sampler, chain, steps

NOTHING = np.empty(0, np.int32)
LOGITS = np.array([2.0, 1.5, 1.4, 1.0, 0.5, 0.4, 0.0, -0.5, -1.0, -2.0, -5.0, -np.inf], np.float32)


def chi_square_limit(k: int) -> float:
    """The 1 - 3e-7 quantile (five sigma) for k degrees of freedom, by Wilson and Hilferty's approximation."""
    return k * (1 - 2 / (9 * k) + 5 * math.sqrt(2 / (9 * k))) ** 3


def assert_distributed(p: SamplingParams, logits: NDArray[np.float32], seen: list[int], n: int = 4000) -> None:
    expected = distribution(p, logits, seen) * n
    sampler = Sampler(p, len(logits))
    history = np.array(seen, np.int32)
    counts = np.bincount([sampler(logits, history) for _ in range(n)], minlength=len(logits))
    assert not counts[expected == 0].any(), "a token was drawn that is cut off"
    likely = expected >= 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic <= chi_square_limit(max(1, int(likely.sum()) - 1))
    assert abs(counts[~likely].sum() - expected[~likely].sum()) <= 5 * math.sqrt(expected[~likely].sum() + 1)


CHAINS = [
    PURE,
    replace(PURE, temperature=0.6),
    replace(PURE, temperature=2.5),
    replace(PURE, top_k=3),
    replace(PURE, top_k=300, temperature=0.9),
    replace(PURE, top_k=5000, top_p=0.9),
    replace(PURE, top_p=0.7),
    replace(PURE, min_p=0.3),
    replace(PURE, typical_p=0.5),
    replace(PURE, typical_p=0.8, top_p=0.8, min_p=0.4),
    replace(PURE, top_k=8, typical_p=0.9, top_p=0.9, min_p=0.1, temperature=1.7),
    replace(PURE, repeat_penalty=1.8),
    replace(PURE, presence_penalty=0.7, frequency_penalty=0.4, repeat_last_n=-1),
    replace(PURE, repeat_penalty=1.3, frequency_penalty=-0.5, repeat_last_n=2),
    replace(PURE, logit_bias={0: -math.inf, 10: 6.0}, repeat_penalty=1.5),
    replace(PURE, top_n_sigma=0.8),
    replace(PURE, top_a=0.6),
    replace(PURE, tfs_z=0.8),
    replace(PURE, epsilon_cutoff=0.04),
    replace(PURE, eta_cutoff=0.5),
    replace(PURE, xtc_probability=0.4),
    replace(PURE, xtc_probability=1.0, xtc_threshold=0.05, temperature=0.9),
    replace(PURE, smoothing_factor=0.7, smoothing_curve=1.8),
    replace(PURE, temperature=1.2, dynatemp_range=0.7, dynatemp_exponent=1.5),
    replace(PURE, dry_multiplier=0.9, dry_allowed_length=1, dry_sequence_breakers=()),
    replace(
        PURE,
        samplers=("temperature", "min_p", "top_k", "penalties"),
        temperature=1.5,
        min_p=0.2,
        top_k=5,
        repeat_penalty=1.4,
    ),
    SamplingParams(seed=5),
]


@pytest.mark.parametrize("chain", CHAINS)
def test_distribution(chain: SamplingParams) -> None:
    assert_distributed(chain, LOGITS, [0, 3, 3, 7, 10, 0])


@pytest.mark.parametrize("chain", CHAINS)
def test_many_logits_give_what_few_give(chain: SamplingParams) -> None:
    n = 30000
    ids = np.random.default_rng(3).permutation(n)[: len(LOGITS)]
    many = np.full(n, -np.inf, np.float32)
    many[ids] = LOGITS
    seen = np.array([0, 3, 3, 7, 10, 0], np.int32)
    bias = {int(ids[t]): b for t, b in chain.logit_bias.items()}
    few, more = Sampler(chain, len(LOGITS)), Sampler(replace(chain, logit_bias=bias), n)
    expected = distribution(chain, LOGITS, seen.tolist())
    a = np.bincount([few(LOGITS, seen) for _ in range(1000)], minlength=len(LOGITS))
    drawn = [more(many, ids[seen].astype(np.int32)) for _ in range(1000)]
    b = np.array([drawn.count(int(i)) for i in ids])
    assert b.sum() == 1000
    # Both are of 1000 draws: five sigma of their difference.
    assert (np.abs(a - b) <= 5 * np.sqrt(2000 * expected * (1 - expected)) + 1e-9).all()


def test_the_usual_chain_is_llama_cpps_order() -> None:
    # top_p after top_k: of the two kept, the first alone has 0.55.
    logits = np.log(np.array([0.3, 0.25, 0.25, 0.2], np.float32))
    p = replace(PURE, top_k=2, top_p=0.54)
    assert {Sampler(replace(p, seed=s), 4)(logits, NOTHING) for s in range(50)} == {0}
    # temperature last: it does not change what top_p keeps.
    p = replace(PURE, top_p=0.5, temperature=100.0)
    assert {Sampler(replace(p, seed=s), 4)(logits, NOTHING) for s in range(100)} == {0, 1}


def test_greedy_takes_the_first_of_equals() -> None:
    greedy = SamplingParams(temperature=0, top_k=1, typical_p=0.01)
    assert Sampler(greedy, 5)(np.array([1, 3, 2, 3, 3], np.float32), NOTHING) == 1
    assert Sampler(greedy, 20000)(np.zeros(20000, np.float32), NOTHING) == 0
    biased = replace(greedy, logit_bias={1: -math.inf, 3: -0.5})
    assert Sampler(biased, 5)(np.array([1, 3, 2, 3, 3], np.float32), NOTHING) == 4


def test_seeds() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(replace(PURE, seed=seed), len(LOGITS))
        return [sampler(LOGITS, NOTHING) for _ in range(40)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)
    assert len(draws(2**64 - 1)) == 40
    # One number of numpy's generator for each token: quantiles in order of ids.
    u = np.random.Generator(np.random.PCG64(3)).random(40)
    e = np.exp(LOGITS.astype(np.float64))
    assert draws(3) == np.searchsorted(np.cumsum(e) / e.sum(), u, "right").tolist()


@pytest.mark.parametrize("chain", [*CHAINS, SamplingParams(temperature=0)])
@pytest.mark.parametrize("n", [4, 10000])
def test_hostile_logits(chain: SamplingParams, n: int) -> None:
    sampler = Sampler(replace(chain, logit_bias={}), n)
    best = n - 2

    def logits(rest: float, one: float) -> NDArray[np.float32]:
        x = np.full(n, rest, np.float32)
        x[best] = one
        return x

    for rest, one in [(math.nan, 1.0), (-math.inf, 0.0), (0.0, math.inf), (-math.inf, -3e38), (math.nan, math.inf)]:
        assert sampler(logits(rest, one), NOTHING) == best
    assert 0 <= sampler(np.full(n, math.inf, np.float32), NOTHING) < n
    assert 0 <= sampler(np.full(n, -3e38, np.float32), NOTHING) < n
    for nothing in (math.nan, -math.inf):
        with pytest.raises(BackendError, match="all NaN"):
            sampler(np.full(n, nothing, np.float32), NOTHING)


def test_a_huge_bias_forces_or_all_but_forbids() -> None:
    for temperature in (0.0, 1.0):
        params = replace(PURE, temperature=temperature, logit_bias={3: 1e300, 0: -1e300})
        assert Sampler(params, len(LOGITS))(LOGITS, NOTHING) == 3


def test_a_bias_that_leaves_nothing() -> None:
    for temperature in (0.0, 1.0):
        sampler = Sampler(replace(PURE, temperature=temperature, logit_bias={0: -math.inf, 1: -math.inf}), 2)
        with pytest.raises(RequestError, match="forbids every token"):
            sampler(np.zeros(2, np.float32), NOTHING)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -2},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": 1.5},
        {"typical_p": -1.0},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": math.nan},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"repeat_last_n": -2},
        {"seed": -2},
        {"logit_bias": {12: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {0: math.nan}},
        {"logit_bias": {0: math.inf}},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    name = next(iter(wrong))
    with pytest.raises(RequestError, match=name):
        Sampler(replace(PURE, **wrong), len(LOGITS))  # type: ignore[arg-type]


floats = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, -math.inf, 3e38, -3e38]))


@given(
    st.lists(floats, min_size=2, max_size=40).filter(lambda x: max(x) > -math.inf),
    st.builds(
        SamplingParams,
        top_k=st.integers(0, 50),
        typical_p=st.floats(0, 1),
        top_p=st.floats(0, 1),
        min_p=st.floats(0, 1),
        temperature=st.floats(0, 50),
        repeat_penalty=st.floats(0.1, 10),
        presence_penalty=st.floats(-5, 5),
        frequency_penalty=st.floats(-5, 5),
        repeat_last_n=st.integers(-1, 5),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.lists(st.integers(0, 1), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_always_a_token_that_is_possible(values: list[float], params: SamplingParams, seen: list[int]) -> None:
    logits = np.array(values, np.float32)
    before = logits.copy()
    history = np.array(seen, np.int32)
    token = Sampler(params, len(logits))(logits, history)
    assert logits[token] > -math.inf
    assert Sampler(params, len(logits))(logits, history) == token
    np.testing.assert_array_equal(logits, before)


def test_greedy_loads_neither_numba_nor_random_numbers() -> None:
    Sampler(SamplingParams(temperature=0), 3)(np.zeros(3, np.float32), NOTHING)  # compiled before, if need be
    code = (
        "import sys, numpy as np, pyllm.engine; from pyllm.sampling import Sampler; "
        "from pyllm.config import SamplingParams as P; "
        "Sampler(P(temperature=0), 3)(np.zeros(3, 'f4'), np.zeros(0, 'i4')); "
        "print(*(m for m in ('numba', 'numpy.random') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_a_change_of_any_compiled_file_makes_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    read, changed = Path.read_bytes, Path(steps.__file__).parent.parent / "compiled" / "mass.py"
    before = chain.chain_kernel.__wrapped__()
    assert chain.chain_kernel.__wrapped__() == before
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.samefile(changed) else b""))
    assert chain.chain_kernel.__wrapped__() != before
