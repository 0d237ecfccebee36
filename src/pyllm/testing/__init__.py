"""Tools for authors of backends and ops: tiny random models, ragged batches, and conformance checks of backends.

    from pyllm.testing import conformance

    CHECKS = conformance.checks("mine")

    @pytest.mark.parametrize("name", CHECKS)
    def test_mine_conforms(name):
        CHECKS[name]()

Nothing here needs pytest: a check returns, or raises AssertionError. Adding a case of an op: `pyllm.testing.ops`.
"""

from __future__ import annotations

from pyllm.testing.models import MIXED, Builder, Model, Record, Shape, mixed_tensors, one_op, transformer
from pyllm.testing.running import (
    OPTIONS,
    Step,
    assert_close,
    compiled,
    nmse,
    ragged_batches,
    random_tokens,
    run,
    run_all,
    run_both,
)
from pyllm.testing.tensors import decoded, random_tensor

__all__ = [
    "MIXED",
    "OPTIONS",
    "Builder",
    "Model",
    "Record",
    "Shape",
    "Step",
    "assert_close",
    "compiled",
    "decoded",
    "mixed_tensors",
    "nmse",
    "one_op",
    "ragged_batches",
    "random_tensor",
    "random_tokens",
    "run",
    "run_all",
    "run_both",
    "transformer",
]
