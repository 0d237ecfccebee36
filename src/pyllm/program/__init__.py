"""A model's forward pass as a list of ops: the only thing that architectures and backends know of each other.

An architecture records its pass once through a `Recorder`; a backend compiles the resulting `Program`. Every value
is a float32 matrix [tokens, width]; `SelectRows` reduces its first axis to the output rows. Weights are named as in
the GGUF file. Ops are modules of `pyllm.program.ops`, listed nowhere. Nothing here imports a backend or reads a file.
"""

from __future__ import annotations

from pyllm.program.op import Cached, Op, Recurrent, Shapes, inputs, weight_names
from pyllm.program.program import Program, Stage
from pyllm.program.recorder import Recorder, as_inv_freq
from pyllm.program.values import KVSpec, SlotSpec, StateSpec, Value, Weight

__all__ = [
    "Cached",
    "KVSpec",
    "Op",
    "Program",
    "Recorder",
    "Recurrent",
    "Shapes",
    "SlotSpec",
    "Stage",
    "StateSpec",
    "Value",
    "Weight",
    "as_inv_freq",
    "inputs",
    "weight_names",
]
