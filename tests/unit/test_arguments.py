"""Arguments are taken by annotation, wherever they come from, and refused in words that say what fits."""

from __future__ import annotations

import copy
import math
import pickle
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest

from pyllm.arguments import FilePath, TokenIds, checked, settle
from pyllm.config import ExecutionOptions, GenerateSettings, PlacementOptions, SamplingParams
from pyllm.errors import RequestError
from pyllm.quant.recipes import RecipeOptions


@dataclass(frozen=True, slots=True)
class Settings:
    n: int = 3
    x: float = 0.5
    on: bool = False
    name: str = "a"
    most: int | None = None
    layers: int | Literal["auto", "all"] = "auto"
    kind: Literal["f16", "f32"] = "f16"
    texts: tuple[str, ...] = ()
    shares: Sequence[float] = ()
    pairs: Sequence[tuple[str, int]] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    function: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        settle(self)


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("n", np.int64(7), 7),
        ("n", np.array(7), 7),
        ("n", None, 3),
        ("x", 2, 2.0),
        ("x", np.float32(0.25), 0.25),
        ("x", Fraction(1, 4), 0.25),
        ("x", -math.inf, -math.inf),
        ("on", np.bool_(True), True),
        ("on", None, False),
        ("name", None, "a"),
        ("most", None, None),
        ("layers", 5, 5),
        ("layers", "all", "all"),
        ("layers", None, "auto"),
        ("kind", "f32", "f32"),
        ("texts", "one", ("one",)),
        ("texts", ["one", "two"], ("one", "two")),
        ("texts", None, ()),
        ("shares", np.array([1, 2]), (1.0, 2.0)),
        ("shares", deque([1]), (1.0,)),
        ("pairs", [["a", 1]], (("a", 1),)),
        ("bias", {"260": 100}, {260: 100.0}),
        ("bias", {np.int32(1): -math.inf}, {1: -math.inf}),
        ("bias", [(1, 2), ["3", 4]], {1: 2.0, 3: 4.0}),
        ("bias", None, {}),
        ("function", print, print),
    ],
)
def test_what_fits_is_taken_in_its_usual_type(name: str, value: Any, taken: Any) -> None:
    found = getattr(Settings(**{name: value}), name)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n", "128", "n must be a whole number, not '128'"),
        ("n", 1.0, "n must be a whole number, not 1.0"),
        ("n", True, "n must be a whole number, not True"),
        ("n", 1 << 64, "n must be a whole number of at most 64 bits"),
        pytest.param("n", 10**5000, "at most 64 bits, not a number of thousands of digits", id="huge"),
        ("n", [1], "n must be a whole number, not a list"),
        ("x", "0.5", "x must be a number, not '0.5'"),
        ("x", math.nan, "x must be a number, not nan"),
        ("x", np.float32("nan"), "x must be a number, not nan"),
        ("x", False, "x must be a number, not False"),
        ("x", 1j, "x must be a number, not a complex"),
        pytest.param("x", 10**400, "x must be a number that a double holds", id="large"),
        ("on", "no", "on must be True or False, not 'no'"),
        ("on", 1, "on must be True or False, not 1"),
        ("name", b"a", "name must be a text, not b'a'; decode it first"),
        ("name", Path("a"), "name must be a text"),
        ("most", "x", "most must be a whole number, not 'x'"),
        ("layers", "5", "layers must be a whole number or 'auto' or 'all', not '5'"),
        ("kind", "q8", "kind must be 'f16' or 'f32', not 'q8'"),
        ("kind", [], "kind must be 'f16' or 'f32', not a list"),
        ("texts", 5, "texts must be a text or a list of texts, not 5"),
        ("texts", ["a", 5], r"texts\[1\] must be a text, not 5"),
        ("texts", {"a": 1}, "not a dict"),
        ("texts", {"a"}, "not a set"),
        ("texts", b"ab", "not b'ab'"),
        ("shares", "3,1", "shares must be a list of numbers, not '3,1'"),
        ("shares", [1, None], r"shares\[1\] must be a number, not None"),
        ("pairs", ["ab"], r"pairs\[0\] must be a pair of a text and a whole number, not 'ab'"),
        ("pairs", [("a",)], r"pairs\[0\] must be a pair"),
        ("pairs", [("a", "1")], r"pairs\[0\]\[1\] must be a whole number, not '1'"),
        ("bias", {"hello": 1}, "a key of bias must be a whole number, not 'hello'"),
        ("bias", {"²": 1}, "a key of bias"),
        ("bias", {1: "x"}, r"bias\[1\] must be a number, not 'x'"),
        ("bias", {1: math.nan}, r"bias\[1\] must be a number, not nan"),
        ("bias", 5, "bias must be a dictionary from whole numbers to numbers, not 5"),
        ("bias", [5], r"bias\[0\] must be a pair"),
        ("function", "print", "function must be a function, not 'print'"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Settings(**{name: value})


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


def test_the_value_that_is_shown_is_short_and_harmless() -> None:
    for value in ("x" * 1000, b"x" * 1000, [1] * 1000, Rude(), np.zeros(1000)):
        with pytest.raises(RequestError) as refused:
            Settings(n=value)
        assert len(str(refused.value)) < 120


@checked
def example(path: FilePath, ids: TokenIds = (1,), *more: int, scale: float = 1.0, unknown: NotThere = 5, **rest: Any):  # type: ignore # noqa: F821
    """Says what came."""
    return path, ids, more, scale, unknown, rest


def test_arguments_of_a_function_are_taken_by_position_and_by_name() -> None:
    assert example(PurePosixPath("a/b")) == ("a/b", (1,), (), 1.0, 5, {})
    assert example("a", np.array([1, 2]), 7, 8, scale=np.int8(2), x=9) == ("a", [1, 2], (7, 8), 2.0, 5, {"x": 9})
    assert example(ids=range(3), path="a", unknown="kept", scale=None) == ("a", [0, 1, 2], (), 1.0, "kept", {})
    assert example.__doc__ == "Says what came."
    assert example.__name__ == "example"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5,), "path must be a path"),
        ((b"a",), "decode it first"),
        (("",), "path is '', which no file can be called"),
        (("a\0b",), "which no file can be called"),
        (("\ud800",), "which no file can be called"),
        (("a", "text"), "ids must be a list of token ids, not 'text'; a tokenizer's encode"),
        (("a", [1.5]), r"ids\[0\] must be a whole number, not 1.5"),
        (("a", [1, True]), r"ids\[1\] must be a whole number, not True"),
        (("a", np.array([1.0])), r"ids\[0\] must be a whole number, not 1.0"),
        (("a", [[1]]), r"ids\[0\] must be a whole number, not a list"),
        (("a", b"ab"), "ids must be a list of token ids, not b'ab'"),
        (("a", {1: 2}), "ids must be a list of token ids, not a dict"),
        (("a", 5), "ids must be a list of token ids, not 5"),
    ],
)
def test_arguments_of_a_function_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        example(*arguments)


def test_a_signature_that_is_not_met_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required"):
        example()


def test_conventions_of_the_field() -> None:
    assert SamplingParams(seed=-1, top_k=-1) == SamplingParams(seed=None, top_k=0)
    assert SamplingParams(logit_bias={"260": 100}).logit_bias == {260: 100.0}  # type: ignore[dict-item]
    assert PlacementOptions(n_gpu_layers=-1).n_gpu_layers == "auto"
    assert GenerateSettings(max_tokens=-1) == GenerateSettings(max_tokens=None)


@pytest.mark.parametrize(
    "settings",
    [
        SamplingParams(logit_bias={3: -math.inf}, seed=7, temperature=0.3),
        ExecutionOptions(n_pages=4, kv_dtype="q8_0"),
        PlacementOptions(n_gpu_layers=3, override_tensors=(("exps", "cpu"),), devices=("cuda0",)),
        GenerateSettings(SamplingParams(top_k=1), max_tokens=5, stop=("a", "b"), logprobs=2),
        RecipeOptions(tensor_types=[("attn", "Q8_0")], pure=True),
    ],
    ids=lambda s: type(s).__name__,
)
def test_settings_can_be_pickled_and_copied(settings: Any) -> None:
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings
