"""Every op, format and small model on every backend that is there: what `pyllm.testing.conformance` asks of each."""

from __future__ import annotations

import importlib

import numpy as np
import oracle
import pytest

from pyllm import backends
from pyllm.backends.rules import Rules
from pyllm.program import Op
from pyllm.quant import formats
from pyllm.testing import conformance, ops

BUILT_IN = ("cpu", "cuda", "mlx", "reference")


COMPARED = ("format-", "model-")
"""Checks that compare with the reference backend and ask nothing else: of itself they would ask nothing."""


def pairs(cross: bool) -> list[tuple[str, str]]:
    """(backend, check)"""
    checks = conformance.checks("", cross=cross)
    return [(b, c) for b in backends.names() for c in checks if b != "reference" or not c.startswith(COMPARED)]


@pytest.mark.parametrize(("backend", "check"), pairs(cross=False))
def test_conforms(backend: str, check: str) -> None:
    oracle.need(backend)
    conformance.checks(backend)[check]()


@pytest.mark.cross
@pytest.mark.parametrize(("backend", "check"), pairs(cross=True))
def test_every_format(backend: str, check: str) -> None:
    oracle.need(backend)
    conformance.checks(backend, cross=True)[check]()


@pytest.mark.parametrize("kind", ops.op_kinds(), ids=lambda kind: kind.__name__)
def test_every_op_has_a_case_in_the_module_of_its_name(kind: type[Op]) -> None:
    module = kind.__module__.rpartition(".")[2]
    programs = [oracle.one_op(case).program for name, case in ops.cases().items() if name.split("-")[0] == module]
    assert any(type(op) is kind for program in programs for op in program.ops)


def test_every_case_is_of_its_module() -> None:
    """A case records an op of the module that it is named for."""
    for name, case in ops.cases().items():
        modules = {type(op).__module__.rpartition(".")[2] for op in oracle.one_op(case).program.ops}
        assert name.split("-")[0] in modules, name


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_op_has_a_rule(name: str) -> None:
    oracle.need(name)
    module = importlib.import_module(f"pyllm.backends.{name}.rules")
    (rules,) = (found for found in vars(module).values() if isinstance(found, Rules))
    assert [kind.__name__ for kind in ops.op_kinds() if rules.find(kind) is None] == []


def test_decoded_weights_are_sane() -> None:
    """The random blocks test something: finite, of the spread that was asked for, and not one-sided."""
    for fmt in formats.names():
        w = oracle.decoded(oracle.random_tensor("w", (64, 512), fmt, std=0.05))
        assert np.isfinite(w).all()
        assert w.std() == pytest.approx(0.05, rel=0.25)
        assert abs(w.mean()) < 0.01
