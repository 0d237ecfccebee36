"""Lists, ranges and the crossing of settings, as llama-bench documents them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.bench import BenchOptions, parse_devices, parse_gpu_layers, parse_ints, parse_pairs
from pyllm.errors import RequestError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", (512,)),
        ("512,1024", (512, 1024)),
        ("1-4", (1, 2, 3, 4)),
        ("1-8+2", (1, 3, 5, 7)),
        ("1-8*2", (1, 2, 4, 8)),
        ("0, 16-64*2", (0, 16, 32, 64)),
        ("3-3", (3,)),
    ],
)
def test_parse_ints(text: str, values: tuple[int, ...]) -> None:
    assert parse_ints(text) == values


@pytest.mark.parametrize("text", ["", "a", "4-1", "1-4+0", "1-4*1", "0-4*2", "1,,2", "-3", "1.5"])
def test_parse_ints_refuses(text: str) -> None:
    with pytest.raises(RequestError):
        parse_ints(text)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 50))
def test_ranges_are_pythons(first: int, more: int, step: int) -> None:
    assert parse_ints(f"{first}-{first + more}+{step}") == tuple(range(first, first + more + 1, step))


def test_parse_pairs() -> None:
    assert parse_pairs("512,128") == ((512, 128),)
    assert parse_pairs("512,128; 64,16/1,2") == ((512, 128), (64, 16), (1, 2))
    with pytest.raises(RequestError):
        parse_pairs("512")


def test_parse_gpu_layers() -> None:
    assert parse_gpu_layers("0,16,99") == (0, 16, 99)
    assert parse_gpu_layers("auto, ALL,-1,8-24+8") == ("auto", "all", "auto", 8, 16, 24)
    with pytest.raises(RequestError):
        parse_gpu_layers("some")


def test_parse_devices() -> None:
    assert parse_devices("cuda0,cuda0/cuda1,auto") == (("cuda0",), ("cuda0", "cuda1"), ())
    with pytest.raises(RequestError, match="cuda0/cuda1"):
        parse_devices("cuda0,,cuda1")


def test_placements_are_crossed() -> None:
    options = BenchOptions(("m",), n_gen=(), n_gpu_layers=(0, "all"), n_cpu_moe=(0, 3), devices=((), ("cuda0",)))
    placements = [case.placement for case in options.cases()]
    assert [(p.devices, p.n_cpu_moe, p.n_gpu_layers) for p in placements] == [
        (devices, n_cpu_moe, n) for devices in ((), ("cuda0",)) for n_cpu_moe in (0, 3) for n in (0, "all")
    ]


def test_cases_are_crossed() -> None:
    options = BenchOptions(
        ("m",), n_prompt=(0, 512), n_gen=(0, 64), pg=((256, 32),), n_depth=(0, 1024), n_threads=(1, 2)
    )
    names = [(case.n_threads, case.name) for case in options.cases()]
    tests = ["pp512", "tg64", "pp256+tg32", "pp512 @ d1024", "tg64 @ d1024", "pp256+tg32 @ d1024"]
    assert names == [(t, n) for t in (1, 2) for n in tests]


def test_parallel_cases_take_room_for_each() -> None:
    (case,) = BenchOptions(("m",), n_prompt=(), n_gen=(64,), n_parallel=(16,), n_depth=(100,)).cases()
    assert case.name == "tg64 x16 @ d100"
    assert case.n_positions == 164


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ()},
        {"repetitions": 0},
        {"n_prompt": (-1,)},
        {"n_parallel": (0,)},
        {"n_batch": (0,)},
        {"n_threads": (0,)},
        {"kv_dtype": ("q4",)},
        {"n_gpu_layers": (-2,)},
        {"n_cpu_moe": (-1,)},
    ],
)
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        BenchOptions(**{"models": ("m",), **wrong})
