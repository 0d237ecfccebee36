"""Models of golden/archs with pooling, dense layers and classifiers, and what llama.cpp makes of a sequence's tokens.

`tests/golden/pooling.json`, by case: the pooled vector or the scores; made by `tests/golden/make_pooling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arch_models import ArchModel

RESULTS = Path(__file__).parent / "golden" / "pooling.json"
MEAN, CLS, LAST, RANK = 1, 2, 3, 4
N_TOKENS = 40


@dataclass(frozen=True)
class Case:
    """A model, metadata under its architecture's name, and tensors by name: shapes, E for the width of states."""

    model: str
    metadata: dict[str, Any]
    tensors: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def made(self) -> ArchModel:
        model = ArchModel.load(self.model)
        arch = model.metadata["general.architecture"]
        width = model.metadata[f"{arch}.embedding_length"]
        more = {f"{arch}.{key}": value for key, value in self.metadata.items()}
        shapes = {name: tuple(width if n == "E" else n for n in shape) for name, shape in self.tensors.items()}
        return replace(model, metadata=model.metadata | more, shapes=model.shapes | shapes)


_HEAD = {"cls.weight": ("E", "E"), "cls.bias": ("E",), "cls.output.weight": (2, "E"), "cls.output.bias": (2,)}
_LABELS = {"classifier.output_labels": ["no", "yes"]}

CASES = {
    "bert-mean": Case("bert", {"pooling_type": MEAN}),
    "bert-cls": Case("bert", {"pooling_type": CLS}),
    "bert-rank": Case("bert", {"pooling_type": RANK, **_LABELS}, _HEAD),
    "modern-bert-rank": Case(
        "modern-bert",
        {"pooling_type": RANK, **_LABELS},
        {"cls.weight": ("E", "E"), "cls.norm.weight": ("E",), "cls.output.weight": (2, "E"), "cls.output.bias": (2,)},
    ),
    "gemma-embedding-dense": Case(
        "gemma-embedding",
        {"pooling_type": MEAN, "dense_2_feat_in": 64, "dense_2_feat_out": 96, "dense_3_feat_in": 96,
         "dense_3_feat_out": 64},
        {"dense_2.weight": (96, "E"), "dense_3.weight": ("E", 96)},
    ),
    "qwen3-last": Case("qwen3-dense", {"pooling_type": LAST}),
    "qwen3-rank": Case("qwen3-dense", {"pooling_type": RANK, **_LABELS}, {"cls.output.weight": (2, "E")}),
}  # fmt: skip
