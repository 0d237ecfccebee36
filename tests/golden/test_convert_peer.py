"""Converted checkpoints against llama.cpp's converter (make_convert_peer.py): the same bytes, the same metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_convert_peer import COMPUTED, digest

from pyllm.quant import formats
from pyllm_convert import Conversion

HERE = Path(__file__).parent
PEER: dict[str, Any] = json.loads((HERE / "convert_peer.json").read_text())

OTHERWISE = {
    "general.name",
    "general.basename",
    "general.finetune",
    "general.size_label",
    "hunyuan-dense.rope.scaling.factor",  # one, and the next as well: without scaling, where they say nothing
    "hunyuan-dense.rope.scaling.original_context_length",
    "hunyuan-dense.rope.scaling.type",
    "granitehybrid.expert_count",  # of dense models: zero there
    "granitehybrid.expert_used_count",
    "granitehybrid.feed_forward_length",  # of dense models: not that of the network that they have
    "granitehybrid.context_length",  # 2^20 there, as these models have no positions; what they were trained for is here
    "nemotron_h.context_length",
    "nemotron_h_moe.context_length",
    "phi2.feed_forward_length",  # four times embedding_length there, whatever config.json says
    "tokenizer.ggml.add_bos_token",  # belongs to the vocabulary, which is left out here
    "bloom.context_length",  # the width there, where config.json has no seq_length
    "phi3.attention.sliding_window",  # zero there
    "phi3.rope.scaling.original_context_length",  # also without scaling, where it says nothing
    "olmo2.rope.freq_base_swa",  # also where it is that of the other layers
    "modern-bert.attention.layer_norm_rms_epsilon",  # of norms that it does not have
    "general.version",  # by a name that ends like one
    "olmo2.rope.scaling.yarn_attn_factor",  # a key that engines do not read; rope.scaling.attn_factor is here
}
"""Keys that are not there, or not the same, on purpose."""
BESIDE = {"bert-classifier": {"cls.weight", "cls.bias"}}
"""Tensors that are not there: it leaves out the layer between BERT and its classifier."""
SINGLE = ("llama-f32-tied", "bert")
"""Cases in single precision, of which it makes F16."""


@pytest.mark.parametrize("case", PEER)
def test_tensors(case: str) -> None:
    with Conversion(HERE / "convert" / case, tokenizer=False) as model:
        assert set(model.tensors) == set(PEER[case]["tensors"]) | BESIDE.get(case, set())
        for name, (shape, format, wanted) in PEER[case]["tensors"].items():
            t = model.tensors[name]
            rows = t.read(0, t.values.n_rows)
            if t.format != format:
                rows = formats.get(format).encode(formats.get(t.format).decode(rows))
            if name.endswith("exp_probs_b.bias"):  # a matrix of one row there, of ERNIE's
                shape = shape[-1:]
            data = np.ascontiguousarray(rows)
            if name.endswith(COMPUTED):
                assert data.view(np.float32).reshape(-1).tolist() == pytest.approx(wanted, rel=2e-7), name
            else:
                assert (list(t.shape), digest(data.tobytes())) == (shape, wanted), name
            assert t.keep == format or case in SINGLE, name


@pytest.mark.parametrize("case", PEER)
def test_metadata(case: str) -> None:
    with Conversion(HERE / "convert" / case, tokenizer=False) as model:
        keys = {key: value.value for key, value in model.metadata.items()}
    differing = set() if case not in SINGLE else {"general.file_type"}
    for key, wanted in PEER[case]["metadata"].items():
        if key not in OTHERWISE | differing:
            assert keys[key] == (pytest.approx(wanted, rel=1e-6) if isinstance(wanted, float) else wanted), key
