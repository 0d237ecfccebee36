"""Qwen 2, 2.5 and 3, dense and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pyllm.errors import ModelError
from pyllm.gguf.values import Value
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy
from pyllm_convert.names import folder_name
from pyllm_convert.sentence_transformers import RANK

_RERANKER = "qwen3-reranker"
_ANSWERS = ("yes", "no")
_RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""The published models' prompt, as llama.cpp's converter writes it."""


class Qwen2(Family):
    """Biases on queries, keys and values."""

    arch = "qwen2"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.config.flag("use_sliding_window"):
            self.notes.append(f"windows are left out: {self.arch} files have no place for them")


class Qwen2MoE(Qwen2):
    """Every layer's feed-forward is a mixture of experts, beside one that all tokens use, through a gate."""

    arch = "qwen2moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("norm_topk_prob", False)
        self.refuse("decoder_sparse_step", 1)
        self.refuse("mlp_only_layers", [])
        return super().metadata() | {
            "expert_feed_forward_length": self.config.integer("moe_intermediate_size"),
            "expert_shared_feed_forward_length": self.config.integer("shared_expert_intermediate_size"),
        }


class Qwen3(Qwen2):
    """Norms of each head's queries and keys."""

    arch = "qwen3"
    defaults: ClassVar[Mapping[str, Any]] = {"head_dim": 128}

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        return Qwen3Reranker if folder is not None and _is_reranker(config, folder) else cls


class Qwen3Reranker(Qwen3):
    """Scores are the logits of "yes" and "no", whose rows of the output matrix are the file's classifier."""

    has_head = False

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"pooling_type": RANK, "classifier.output_labels": [*_ANSWERS]}

    def with_vocabulary(
        self, placed: dict[str, Lazy], words: dict[str, Value]
    ) -> tuple[dict[str, Lazy], dict[str, Value]]:
        tokens = words["tokenizer.ggml.tokens"].value if "tokenizer.ggml.tokens" in words else []
        if any(answer not in tokens for answer in _ANSWERS):
            raise ModelError('the vocabulary has no tokens "yes" and "no", by which a reranker answers')
        head = placed.pop("output.weight", None) or placed["token_embd.weight"]
        rows = np.array([tokens.index(answer) for answer in _ANSWERS], np.int64)
        placed["cls.output.weight"] = lazy.take(head, rows)
        names = words.get("tokenizer.chat_templates")
        return placed, words | {
            "tokenizer.chat_templates": Value.of([*(names.value if names else []), "rerank"]),
            "tokenizer.chat_template.rerank": Value.of(_RERANK_TEMPLATE),
        }


class Qwen3MoE(Qwen3):
    """Every layer's feed-forward is a mixture of experts, whose weights sum to one."""

    arch = "qwen3moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("norm_topk_prob", True)
        self.refuse("decoder_sparse_step", 1)
        self.refuse("mlp_only_layers", [])
        return super().metadata() | {"expert_feed_forward_length": self.config.integer("moe_intermediate_size")}


def _is_reranker(config: Mapping[str, Any], folder: Path) -> bool:
    """By the model's name: its checkpoints are those of a language model."""
    named = (folder_name(folder), config.get("_name_or_path"))
    if any(_RERANKER in str(name).lower() for name in named):
        return True
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return f"# {_RERANKER}" in file.read(1 << 20).lower()
    except OSError:
        return False


FAMILIES = {
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2MoeForCausalLM": Qwen2MoE,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3MoeForCausalLM": Qwen3MoE,
}
