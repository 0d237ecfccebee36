"""A model's forward pass as a list of ops: the only thing that architectures and backends know of each other.

An architecture records its pass once through a `Recorder`; a backend compiles the resulting `Program`. Every value
is a float32 matrix [tokens, width]; `SelectRows` reduces its first axis to the rows whose logits are wanted. Weights
are named as in the GGUF file. Nothing here imports a backend or reads a file.
"""

from __future__ import annotations

from pyllm.program.ops import (
    ACTIVATIONS,
    GATINGS,
    Add,
    Attention,
    Embed,
    GatedActivation,
    KVSpec,
    Linear,
    MixtureOfExperts,
    Op,
    Program,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Slice,
    SoftCap,
    Stage,
    Value,
    inputs,
    weight_names,
)
from pyllm.program.recorder import Recorder, as_inv_freq

__all__ = [
    "ACTIVATIONS",
    "GATINGS",
    "Add",
    "Attention",
    "Embed",
    "GatedActivation",
    "KVSpec",
    "Linear",
    "MixtureOfExperts",
    "Op",
    "Program",
    "RMSNorm",
    "Recorder",
    "Rope",
    "Scale",
    "SelectRows",
    "Slice",
    "SoftCap",
    "Stage",
    "Value",
    "as_inv_freq",
    "inputs",
    "weight_names",
]
