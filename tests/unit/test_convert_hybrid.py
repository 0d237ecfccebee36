"""Conversion of families with state spaces: settings that are refused, kinds of layers, multipliers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families import family_of
from pyllm_convert.lazy import Lazy

FOLDER = Path(__file__).parents[1] / "golden" / "convert"


def config(case: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / case / "config.json").read_text())
    return found | changes


def metadata(case: str, **changes: Any) -> dict[str, Any]:
    made = config(case, **changes)
    return family_of(made)(made).metadata()


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("mamba2", {"time_step_limit": [0.001, 0.1]}, "time_step_limit"),
        ("mamba2", {"n_groups": 0}, "n_groups"),
        ("mamba2", {"state_size": -1}, "state_size"),
        ("falcon-h1", {"mamba_norm_before_gate": True}, "mamba_norm_before_gate"),
        ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers"),
        ("falcon-h1", {"mlp_multipliers": [1.0, "x"]}, "mlp_multipliers"),
        ("falcon-h1", {"attention_bias": True}, "attention_bias"),
        ("falcon-h1", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("granitehybrid", {"mamba_n_groups": 2}, "mamba_n_groups"),
        ("granitehybrid", {"layer_types": ["mamba", "other"]}, "other"),
        ("granitehybrid", {"layer_types": ["mamba"]}, "counts 2"),
        ("granitehybrid", {"layer_types": None, "num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ("nemotron_h", {"hybrid_override_pattern": "M-X"}, "X"),
        ("nemotron_h", {"hybrid_override_pattern": None}, "not named"),
        ("nemotron_h", {"hybrid_override_pattern": "M" * 5000}, "num_hidden_layers"),
        ("nemotron_h", {"use_bias": True}, "use_bias"),
        ("nemotron_h-moe", {"n_group": 2}, "n_group"),
        ("nemotron_h-moe", {"hybrid_override_pattern": "ME-"}, "both"),
    ],
)
def test_settings_without_a_place_are_refused(case: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        metadata(case, **changes)


def test_a_norm_before_the_gate_says_nothing_without_a_norm() -> None:
    assert metadata("falcon-h1-unnormed", mamba_norm_before_gate=True)["ssm.inner_size"] == 64


@pytest.mark.parametrize(
    ("changes", "arch"),
    [
        ({"layer_types": ["mamba", "attention"]}, "granitehybrid"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "granitehybrid"),
        ({"layer_types": ["attention", "attention"], "num_local_experts": 4}, "granitemoe"),
        ({"layer_types": ["attention", "attention"], "num_local_experts": 0}, "granite"),
        ({"layer_types": None}, "granitehybrid"),
    ],
)
def test_layers_tell_the_architecture_of_granite_4(changes: dict[str, Any], arch: str) -> None:
    assert family_of(config("granitehybrid", **changes)).arch == arch


@pytest.mark.parametrize(("pattern", "arch"), [("M-*", "nemotron_h"), ("MEM*", "nemotron_h_moe")])
def test_a_pattern_tells_the_architecture_of_nemotron(pattern: str, arch: str) -> None:
    assert family_of(config("nemotron_h", hybrid_override_pattern=pattern)).arch == arch


def test_layers_of_nemotron_have_heads_or_columns_or_states() -> None:
    keys = metadata("nemotron_h")
    assert (keys["block_count"], keys["attention.head_count_kv"], keys["feed_forward_length"]) == (
        3,
        [0, 0, 2],
        [0, 32, 0],
    )


def test_rows_have_multipliers_of_their_own() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    t = Lazy("w", (3, 2), "F16", lambda start, stop: values[start:stop].astype(np.float16))
    times = lazy.rows_times(t, np.array([1, 2, 3], np.float32))
    assert times.keep == "F16"
    assert times.floats(1, 3).tolist() == [[4, 6], [12, 15]]
    with pytest.raises(ModelError, match="3 rows"):
        lazy.rows_times(t, np.ones(4, np.float32))


def test_a_vector_becomes_a_matrix_of_as_many_numbers() -> None:
    t = Lazy("v", (4,), "F32", lambda start, stop: np.arange(4, dtype=np.float32)[None][start:stop])
    assert lazy.reshaped(t, (4, 1)).floats(1, 3).tolist() == [[1], [2]]
    assert lazy.reshaped(t, (2, 2)).floats(0, 2).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ModelError, match="4,"):
        lazy.reshaped(t, (3, 2))
