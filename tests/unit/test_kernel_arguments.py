"""Arguments of kernels: a wrong one is refused when it is given, and slots are in the order of the declaration."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

from pyllm.backends.cpu import arguments
from pyllm.jit.arguments import Address, Arguments, Place, Rows, Written, WrittenAddress


class Sample(Arguments):
    x: Rows
    y: Written | None = None
    where: Address | None = None
    eps: float
    n: int = 3
    counts: WrittenAddress


X, COUNTS = Place(1 << 40, 64), Place(24)


def test_slots_follow_the_declaration() -> None:
    block = Sample(x=X, eps=-0.5, counts=COUNTS).block(7, 8)
    assert Sample.slots() == ["x", "ld_x", "y", "ld_y", "where", "eps", "n", "counts"]
    assert block.tolist() == [7, 8, 1 << 40, 64, 0, 0, 0, np.float64(-0.5).view(np.int64), 3, 24]


def test_what_is_written_is_told_from_what_is_read() -> None:
    args = Sample(x=X, y=Place(16, 4), eps=1.0, counts=COUNTS)
    assert list(args.places(written=True)) == [Place(16, 4), COUNTS]
    assert list(args.places(written=False)) == [X]


def test_addresses_are_asked_for_when_they_are_written() -> None:
    class Later:
        address = ld = 0

    later = Later()
    args = Sample(x=later, eps=1.0, counts=COUNTS)
    later.address, later.ld = 4096, 32
    assert args.values()[:2] == [4096, 32]


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": X, "eps": 1.0},
        {"x": X, "eps": 1.0, "counts": COUNTS, "z": 1},
        {"x": 4096, "eps": 1.0, "counts": COUNTS},
        {"x": None, "eps": 1.0, "counts": COUNTS},
        {"x": X, "eps": "1", "counts": COUNTS},
        {"x": X, "eps": 1.0, "n": 1.5, "counts": COUNTS},
    ],
    ids=["missing", "unknown", "a number for memory", "nothing for memory", "text", "a fraction for a whole number"],
)
def test_wrong_arguments_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        Sample(**wrong)  # type: ignore[arg-type]


def test_a_kernel_takes_numbers_and_memory_only() -> None:
    with pytest.raises(TypeError, match="name"):

        class Wrong(Arguments):
            name: str


def test_every_declaration_is_sound() -> None:
    for module in pkgutil.iter_modules(arguments.__path__):
        kinds = vars(importlib.import_module(f"{arguments.__name__}.{module.name}")).values()
        own = [k for k in kinds if isinstance(k, type) and issubclass(k, Arguments) and k is not Arguments]
        assert own
        for kind in own:
            assert len(set(kind.slots())) == len(kind.slots()) > 0


def test_plans_are_made_without_numba() -> None:
    script = "import sys, pyllm.backends.cpu.lowering; assert not {'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
