"""Settings of sampling that are about texts and ends of answers, masks, functions, and many rows at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sampling_oracle import OFF, distribution, probabilities

from pyllm.config import SamplingParams
from pyllm.errors import BackendError, RequestError
from pyllm.sampling import Sampler, TopLogits, Vocabulary, advised, choose

NOTHING = np.empty(0, np.int32)
WORDS = ["a", "b", "ab", "c", "bc", " ", "abc", "cab", "\n", "a\n", "\nb", "ü"]
PIECES = [word.encode() for word in WORDS]
RANDOM = np.random.default_rng(4)


def vocabulary() -> Vocabulary:
    def encode(text: str) -> list[int]:
        return [WORDS.index(c) for c in text]

    return Vocabulary(len(PIECES), PIECES.__getitem__, encode)


def answer(sampler: Sampler, n: int, logits: NDArray[np.float32] | None = None) -> list[int]:
    tokens: list[int] = []
    for _ in range(n):
        row = RANDOM.normal(size=sampler.n_vocab).astype(np.float32) if logits is None else logits
        tokens.append(sampler(row, np.array(tokens, np.int32)))
    return tokens


@pytest.mark.parametrize("banned", [["abc"], ["bca", "\n"], ["aa", "ab", "ü"], "cab"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_strings_never_are_in_an_answer(banned: Any, temperature: float) -> None:
    params = replace(OFF, banned_strings=banned, temperature=temperature)
    text = b"".join(PIECES[i] for i in answer(Sampler(params, len(PIECES), vocabulary()), 1500))
    for word in params.banned_strings:
        assert word.encode() not in text
        # Nothing more is left out: all of it but the last letter is there.
        assert word[:-1].encode() in text


def test_texts_need_a_vocabulary() -> None:
    for settings in ({"banned_strings": "a"}, {"dry_multiplier": 1.0}):
        with pytest.raises(RequestError, match="tokenizer"):
            Sampler(replace(OFF, **settings), 9)
    with pytest.raises(RequestError, match="not empty"):
        Sampler(replace(OFF, banned_strings=("a", "")), 9, vocabulary())


def test_breakers_are_tokens_that_hold_a_text_and_the_ways_to_begin_one() -> None:
    flags, long = vocabulary().breakers(["ab", "\n"])
    assert {WORDS[i] for i in np.flatnonzero(flags & 1)} == {"ab", "abc", "cab", "\n", "a\n", "\nb"}
    assert {WORDS[i] for i in np.flatnonzero(flags & 2)} == {"a"}
    assert [row[: 1 + row[0]].tolist() for row in long] == [[2, 0, 1]]


@pytest.mark.parametrize("n", [12, 5000])
@pytest.mark.parametrize("breakers", [(), ("\n",), ("ab", "\n")])
@pytest.mark.parametrize("last_n", [-1, 8])
def test_dry(n: int, breakers: tuple[str, ...], last_n: int) -> None:
    p = replace(OFF, dry_multiplier=0.7, dry_base=1.3, dry_penalty_last_n=last_n, dry_sequence_breakers=breakers)
    known = Vocabulary(n, [*PIECES, *[b"x"] * (n - len(PIECES))].__getitem__, lambda t: [WORDS.index(c) for c in t])
    sequences = {(): [], ("\n",): [[8], [9], [10]], ("ab", "\n"): [[2], [6], [7], [8], [9], [10], [0, 1]]}
    logits = np.full(n, -np.inf, np.float32)
    logits[:12] = RANDOM.normal(size=12)
    for trial in range(60):
        random = np.random.default_rng(trial)
        seen = random.choice(12, 30, p=[0.3, 0.3, 0.02, 0.2, *[0.18 / 8] * 8]).tolist()
        expected = distribution(p, logits, seen, sequences[breakers])
        sampler = Sampler(p, n, known)
        edges = np.cumsum(expected[:12])
        for token in range(12):
            sampler._number = float(edges[token] - expected[token] / 2)
            assert sampler(logits, np.array(seen, np.int32)) == token


def test_min_tokens() -> None:
    logits = np.zeros(4, np.float32)
    logits[3] = 9
    sampler = Sampler(replace(OFF, temperature=0, min_tokens=5), 4, stop_ids={3, 2})
    assert answer(sampler, 7, logits) == [0] * 5 + [3, 3]
    assert Sampler(replace(OFF, temperature=0, min_tokens=5), 4).n_needed(NOTHING) == 1
    assert Sampler(replace(OFF, temperature=0, min_tokens=5), 4, stop_ids={3, 2}).n_needed(NOTHING) == 3


def test_banned_tokens() -> None:
    sampler = Sampler(replace(OFF, banned_tokens=[1, 3]), 5)
    assert set(answer(sampler, 200)) == {0, 2, 4}
    for wrong in ([5], [-1]):
        with pytest.raises(RequestError, match="banned_tokens names token"):
            Sampler(replace(OFF, banned_tokens=wrong), 5)


def mask_of(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    bits = np.zeros(-(-len(allowed) // 32) * 32, bool)
    bits[: len(allowed)] = allowed
    return np.packbits(bits, bitorder="little").view(np.int32)


@pytest.mark.parametrize("n", [5, 40, 20011])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.95])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "repeat_penalty": 2.0}, {"temperature": 0}, {"top_p": 0.6}])
def test_a_mask_comes_before_everything(n: int, share: float, settings: dict[str, Any]) -> None:
    logits = RANDOM.normal(size=n).astype(np.float32) * 3
    allowed = RANDOM.random(n) < share
    allowed[n // 3] = True
    seen = RANDOM.integers(0, n, 20).astype(np.int32)
    p = replace(OFF, **settings)
    before = logits.copy()
    masked, plain = Sampler(p, n), Sampler(p, n)
    for _ in range(50):
        expected = plain(np.where(allowed, logits, -np.inf).astype(np.float32), seen)
        assert masked(logits, seen, mask_of(allowed)) == expected
    np.testing.assert_array_equal(logits, before)


def test_a_mask_of_the_largest_alone() -> None:
    logits = RANDOM.normal(size=1000).astype(np.float32)
    ids = np.argsort(-logits)[:64].astype(np.int32)
    allowed = np.zeros(1000, bool)
    allowed[ids[[3, 9]]] = True
    part = TopLogits(ids, logits[ids], 0.0)
    p = SamplingParams(temperature=0)
    assert Sampler(p, 1000)(part, NOTHING, mask_of(allowed)) == ids[3]


def test_masks_that_leave_nothing() -> None:
    logits = np.array([0, 1, -np.inf], np.float32)
    for allowed in ([False, False, False], [False, False, True]):
        with pytest.raises(RequestError, match="allowed here"):
            Sampler(OFF, 3)(logits, NOTHING, mask_of(np.array(allowed)))
    with pytest.raises(RequestError, match="words of 32 bits"):
        Sampler(OFF, 40)(np.zeros(40, np.float32), NOTHING, np.zeros(1, np.int32))


def test_logits_processors() -> None:
    seen: list[list[int]] = []

    def doubled(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(ids.tolist())
        return 2 * logits

    def only_even(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        logits[1::2] = -np.inf

    logits = RANDOM.normal(size=50).astype(np.float32)
    before = logits.copy()
    sampler = Sampler(replace(OFF, logits_processors=[doubled, only_even]), 50)
    drawn = [sampler(logits, np.array([4, 2], np.int32)) for _ in range(2000)]
    expected = 2.0 * logits
    expected[1::2] = -np.inf
    counts = np.bincount(drawn, minlength=50)
    assert np.abs(counts - 2000 * probabilities(expected)).max() < 5 * math.sqrt(2000)
    assert not counts[1::2].any()
    assert seen[0] == [4, 2]
    assert sampler.n_needed(NOTHING) is None
    np.testing.assert_array_equal(logits, before)


def test_logits_processors_that_fail() -> None:
    def broken(ids: Any, logits: Any) -> Any:
        raise ValueError("no such thing")

    for function, words in ((broken, "no such thing"), (lambda ids, logits: logits[:3], "must return 5 logits")):
        with pytest.raises(RequestError, match=words):
            Sampler(replace(OFF, logits_processors=[function]), 5)(np.zeros(5, np.float32), NOTHING)


def test_rows_together_give_what_each_gives_alone() -> None:
    n = 3000
    params = [
        SamplingParams(seed=3),
        replace(OFF, temperature=0),
        replace(OFF, typical_p=0.8, repeat_penalty=1.2),
        replace(OFF, mirostat=2, seed=9),
        replace(OFF, dry_multiplier=0.8, dry_sequence_breakers=(), dry_penalty_last_n=-1),
        replace(OFF, adaptive_target=0.2),
    ]
    together, alone = ([Sampler(p, n) for p in params] for _ in range(2))
    for step in range(20):
        rows = np.random.default_rng(step).normal(size=(len(params), n)).astype(np.float32) * 3
        seen = [np.random.default_rng(100 * step + i).integers(0, 20, 10 * i).astype(np.int32) for i in range(6)]
        chosen = choose(rows, together, seen)
        assert choose(rows, together, seen) == chosen  # nothing has changed before a token is accepted
        assert chosen == [s(row, ids) for s, row, ids in zip(alone, rows, seen, strict=True)]
        for sampler, token in zip(together, chosen, strict=True):
            assert isinstance(token, int)
            sampler.accept(token)


def test_a_row_that_fails_leaves_the_others() -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[1] = np.nan
    samplers = [Sampler(replace(OFF, temperature=0), 4) for _ in range(3)]
    first, second, third = choose(rows, samplers, [NOTHING] * 3)
    assert (first, third) == (0, 0)
    assert isinstance(second, BackendError)


def test_tokens_that_were_not_chosen_cost_no_random_number() -> None:
    logits = RANDOM.normal(size=100).astype(np.float32)
    plain, forced = (Sampler(replace(OFF, seed=5), 100) for _ in range(2))
    expected = [plain(logits, NOTHING) for _ in range(6)]
    drawn = []
    for token in expected:
        forced.accept(7, chosen=False)
        drawn.append(forced(logits, NOTHING))
        assert drawn[-1] == token
    assert forced.n_accepted == 12


def test_order_of_samplers() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))

    def kept(*samplers: str, **settings: Any) -> set[int]:
        sampler = Sampler(replace(OFF, samplers=samplers, **settings), 3)
        return set(answer(sampler, 100, logits))

    # At temperature 3 the first has 0.41 of the probability; at 1 it has 0.5.
    assert kept("top_p", "temperature", top_p=0.45, temperature=3.0) == {0}
    assert kept("temperature", "top_p", top_p=0.45, temperature=3.0) == {0, 1}
    assert kept("temperature;top-p", top_p=0.45, temperature=3.0) == {0, 1}
    assert kept("temp", top_p=0.45, temperature=3.0) == {0, 1, 2}
    assert kept("top_k", top_k=1, top_p=0.45) == {0}
    for wrong, words in ((["top_q"], "there are penalties, dry"), (["top_k", "top_k"], "twice")):
        with pytest.raises(RequestError, match=words):
            Sampler(replace(OFF, samplers=wrong), 3)


def test_what_is_needed_depends_on_the_order() -> None:
    def needed(**settings: Any) -> int | None:
        return Sampler(replace(OFF, top_k=7, **settings), 100).n_needed(NOTHING)

    assert needed() == 7
    assert needed(min_p=0.1, samplers=("min_p", "temperature", "top_k"), temperature=0.5) == 7
    assert needed(top_p=0.5, samplers=("top_p", "top_k")) is None
    assert needed(temperature=0.5, dynatemp_range=0.2, samplers=("temperature", "top_k")) is None
    assert needed(mirostat=2) is None
    assert needed(top_n_sigma=1.0) is None
    assert needed(banned_tokens=[1, 2]) == 9
    assert needed(logits_processors=[lambda ids, logits: None]) is None


def test_two_steps_that_choose() -> None:
    with pytest.raises(RequestError, match="both choose"):
        Sampler(replace(OFF, mirostat=1, adaptive_target=0.5), 5)


def test_what_a_file_advises() -> None:
    keys: dict[str, Any] = {
        "temp": 0.6, "top_k": np.int32(20), "top_p": 0.8, "penalty_repeat": 1.05, "penalty_last_n": -1,
        "sequence": "top_k;temperature", "mirostat": 7, "min_p": "high", "xtc_probability": math.nan,
    }  # fmt: skip
    found = advised({f"general.sampling.{key}": value for key, value in keys.items()})
    expected = SamplingParams(temperature=0.6, top_k=20, top_p=0.8, repeat_penalty=1.05, repeat_last_n=-1)
    assert found == replace(expected, samplers=("top_k", "temperature"))
    assert advised({"general.sampling.sequence": "edkypmxt"}) == SamplingParams()
