"""Loading of models with state spaces: which layer is what, and sizes that tensors do not have."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arch_models import ArchModel
from pyllm import archs
from pyllm.errors import ModelError, PyllmError
from pyllm.program import Program
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import Activation
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

HYBRID = ["falcon-h1", "granitehybrid-moe", "jamba", "mamba", "mamba2", "nemotron_h", "nemotron_h_moe", "plamo2"]


def load(name: str, **changes: Any) -> Program:
    """The program of a tiny model; changes of its metadata by key, with "__" for dots, None removes a key."""
    model = ArchModel.load(name)
    arch = model.metadata["general.architecture"]
    metadata = model.all_metadata | {f"{arch}.{key.replace('__', '.')}": value for key, value in changes.items()}
    return archs.load({key: v for key, v in metadata.items() if v is not None}, model.tensors, 64).program


def layers(program: Program, kind: type[Any]) -> list[int]:
    return [op.layer for op in program.ops if isinstance(op, kind)]


@pytest.mark.parametrize(
    ("name", "scans", "attention"),
    [
        ("falcon-h1", [0, 1], [0, 1]),
        ("granitehybrid-moe", [0, 2], [1]),
        ("jamba", [0, 2, 3], [1]),
        ("mamba", [0, 1], []),
        ("nemotron_h_moe", [0], [2]),
        ("plamo2", [0, 2], [1]),
    ],
)
def test_layers_are_what_their_numbers_of_heads_say(name: str, scans: list[int], attention: list[int]) -> None:
    program = load(name)
    assert layers(program, SSMScan1) + layers(program, SSMScan2) == scans
    assert layers(program, Attention) == attention
    assert len(program.slots) == 2 * len(scans)


@pytest.mark.parametrize("name", HYBRID)
@pytest.mark.parametrize("key", ["inner_size", "state_size", "time_step_rank"])
@pytest.mark.parametrize("value", [None, 0, 1, 7, -4, 1 << 24, "8"])
def test_sizes_that_tensors_do_not_have_are_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(ModelError):
        load(name, **{f"ssm__{key}": value})


@pytest.mark.parametrize("value", [None, 0, 3, 1 << 24])
@pytest.mark.parametrize("name", ["mamba2", "falcon-h1"])
def test_groups_that_do_not_share_heads_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ModelError):
        load(name, ssm__group_count=value)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(HYBRID),
    changes=st.dictionaries(
        st.sampled_from(["inner_size", "state_size", "time_step_rank", "group_count", "dt_b_c_rms"]),
        st.one_of(st.integers(-3, 300), st.integers(-(1 << 63), 1 << 64), st.floats(width=32), st.booleans()),
        min_size=1,
    ),
)
def test_any_sizes_load_or_are_refused(name: str, changes: dict[str, Any]) -> None:
    with contextlib.suppress(PyllmError):
        load(name, **{f"ssm__{key}": value for key, value in changes.items()})


def test_falcon_mamba_norms_steps_inputs_and_outputs() -> None:
    """By groups of all columns: 8 of steps, 16 of inputs and outputs."""
    norms = [op for op in load("mamba.falcon").ops if isinstance(op, RMSNorm) and op.weight is None]
    assert [op.group for op in norms] == [8, 16, 16] * 2
    assert not [op for op in load("mamba").ops if isinstance(op, RMSNorm) and op.weight is None]


def test_older_files_of_nemotron_tell_an_experts_columns_by_those_of_a_token() -> None:
    n_ff = np.array([0, 80, 0, 80], np.uint32)
    program = load("nemotron_h_moe", expert_feed_forward_length=None, feed_forward_length=n_ff)
    assert [op.n_ff for op in program.ops if isinstance(op, MixtureOfExperts)] == [40, 40]


def test_experts_of_nemotron_have_no_gate_and_a_space_of_their_own() -> None:
    program = load("nemotron_h_moe")
    (op, _) = (op for op in program.ops if isinstance(op, MixtureOfExperts))
    assert (op.gate, op.act, op.x.width, op.router.width) == (None, "relu2", 32, 6)
    assert [op.act for op in program.ops if isinstance(op, Activation) and op.layer == 1] == ["relu2"]


def test_norms_of_nemotron_may_have_the_other_epsilon() -> None:
    program = load(
        "nemotron_h", attention__layer_norm_rms_epsilon=None, attention__layer_norm_epsilon=float(np.float32(1e-3))
    )
    assert {op.eps for op in program.ops if isinstance(op, RMSNorm)} == {float(np.float32(1e-3))}
