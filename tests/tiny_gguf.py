"""Writes a small llama model, with the gguf package: random weights, a byte-level vocabulary, a chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the rest follow after 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_tiny_gguf(
    path: Path,
    template: str | None = TEMPLATE,
    name: str = "tiny",
    arch: str = "llama",
    embed_scale: float = 1.0,
    more: Callable[[GGUFWriter], object] | None = None,
) -> Path:
    """A model of 2 layers, 32 wide, whose 258 tokens are the bytes, `<eos>` and `<bos>`.

    `embed_scale` multiplies the embeddings of that same model. `more` may add metadata and tensors.
    """
    n_embd, n_ff, n_layers, n_head, n_vocab = 32, 64, 2, 4, 258
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(512)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_letters(), "<eos>", "<bos>"])
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 2)
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(257)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)

    if more is not None:
        more(writer)

    def add(tensor: str, *shape: int) -> None:
        if len(shape) == 1:
            data = np.ones(shape, np.float32)
        else:
            data = random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        if tensor == "token_embd.weight":
            data *= np.float32(embed_scale)
        writer.add_tensor(tensor, data)

    add("token_embd.weight", n_vocab, n_embd)
    add("output.weight", n_vocab, n_embd)
    add("output_norm.weight", n_embd)
    for i in range(n_layers):
        for tensor in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{tensor}.weight", n_embd)
        for tensor in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{tensor}.weight", n_embd, n_embd)
        for tensor in ("ffn_gate", "ffn_up"):
            add(f"blk.{i}.{tensor}.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
