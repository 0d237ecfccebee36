"""Models of real shapes with random weights: sizes as published, blocks that decode to finite numbers of one size."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm import archs
from pyllm.backends.base import Batch
from pyllm.bench.presets import ALIASES, PRESETS, open_preset, parse
from pyllm.bench.random_weights import DEVIATION, random_blocks
from pyllm.config import ExecutionOptions
from pyllm.errors import FormatError, ModelError
from pyllm.quant import formats


@pytest.mark.parametrize("name", formats.names())
def test_random_blocks_are_weights(name: str) -> None:
    weights = formats.get(name).decode(random_blocks(name))
    assert np.isfinite(weights).all()
    assert weights.std() == pytest.approx(DEVIATION, rel=0.6)
    assert abs(weights.mean()) < 0.15 * weights.std()
    assert np.abs(weights).max() < 6 * weights.std()
    assert len(np.unique(weights[:4096])) > 1


# Gigabytes of the files as they are published, with vocabularies of some megabytes; parameters as model cards count.
@pytest.mark.parametrize(
    ("preset", "n_params", "gigabytes"),
    [
        ("1b:Q4_K_M", 1_235_814_400, 0.81),
        ("3b:Q4_K_M", 3_212_749_824, 2.02),
        ("8b:Q4_K_M", 8_030_261_248, 4.92),
        ("70b:Q4_K_M", 70_553_706_496, 42.52),
        ("qwen3-30b-a3b:Q4_K_M", 30_532_122_624, 18.56),
        ("deepseek-v2-lite:Q4_K_M", 15_706_484_224, 10.36),
        ("llama4-scout:Q4_K_M", 107_769_861_120, 65.36),
        ("glm4.5-air:Q4_K_M", 106_852_251_264, 70.44),
        ("qwen3-embedding-0.6b:Q8_0", 595_776_512, 0.634),
    ],
)
def test_presets_have_the_size_of_the_model(preset: str, n_params: int, gigabytes: float) -> None:
    model = open_preset(preset, with_weights=False)
    assert sum(t.n_elements for t in model.tensors.values()) == pytest.approx(n_params, rel=1e-6)
    assert sum(t.n_bytes for t in model.tensors.values()) == pytest.approx(1e9 * gigabytes, rel=0.015)
    architecture = archs.load(model.metadata, model.tensors, 4096)
    used = {name.partition("[")[0] for name in architecture.program.weights()}  # some by rows
    assert used | {"rope_freqs.weight"} >= set(model.tensors)


@pytest.mark.parametrize("preset", ["tiny:Q4_K_M", "tiny:F16", "tiny:IQ3_XXS", "tiny-moe:Q4_K_M", "tiny-moe:MXFP4_MOE"])
def test_a_preset_runs_and_stays_finite(preset: str) -> None:
    from pyllm.backends.reference import BACKEND

    with open_preset(preset) as model:
        architecture = archs.load(model.metadata, model.tensors, 64)
        options = ExecutionOptions(n_pages=2, max_tokens=32, max_seqs=1, max_rows=1)
        executable = BACKEND.compile(architecture.program, model.tensors, options)
        batch = Batch(options)
        batch.add(np.arange(32), 0, [0, 1])
        logits = executable.run(batch)
        assert np.isfinite(logits).all()
        assert 0.05 < logits.std() < 50
        executable.close()


def test_tensors_are_not_one_another() -> None:
    with open_preset("tiny:Q8_0") as model:
        a, b = model.tensors["blk.0.ffn_up.weight"], model.tensors["blk.1.ffn_up.weight"]
        assert a.n_bytes == b.n_bytes
        assert (a.data != b.data).any()
        assert not a.data.flags.writeable


def test_names() -> None:
    assert parse("8B:q4_k_m") == parse("8b") == ("llama3-8b", "Q4_K_M")
    assert set(ALIASES.values()) <= set(PRESETS)
    with pytest.raises(ModelError, match="llama3-8b"):
        parse("llama9-8b")
    with pytest.raises(FormatError, match="Q4_K_M"):
        parse("8b:Q4_K_N")
