"""An encoder of a Hugging Face folder as an ONNX file with int8 weights, for embedding_speed.py.

    pip install torch transformers onnx onnxruntime
    python benchmarks/onnx_encoder.py FOLDER OUT.onnx

Weights are quantized by ONNX Runtime's dynamic quantization, activations when they are computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel


class States(torch.nn.Module):
    """Final states of BERT's inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return found.last_hidden_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    model = States(AutoModel.from_pretrained(a.folder, attn_implementation="eager").eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    inputs = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    axes = {name: {0: "texts", 1: "tokens"} for name in (*names, "states")}
    with TemporaryDirectory() as folder:
        whole = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            model, inputs, whole, input_names=names, output_names=["states"], dynamic_axes=axes, dynamo=False
        )
        quantize_dynamic(whole, str(a.out), weight_type=QuantType.QInt8)


if __name__ == "__main__":
    main()
