"""Write tests/golden/convert_peer.json: what llama.cpp's converter makes of the folders in tests/golden/convert/.

    python tests/golden/make_convert_peer.py LLAMA_CPP

LLAMA_CPP is a checkout with `conversion/` and `gguf-py/` (written with the one in llama-cpp-python 0.3.36); torch and
transformers are needed. Vocabularies are left out. For each folder: metadata (numbers, words, lists of flags), and of
each tensor its shape, its format and a hash of its bytes, or its values.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOT_CONVERTED = {
    "internlm2-bias", "stablelm-parallel", "granitehybrid-attention", "nemotron_h", "nomic-bert", "eurobert",
    "modern-bert-pattern",
}  # fmt: skip
"""Cases at which llama.cpp's converter fails: it splits no fused biases, loses the norms of heads, takes settings that
transformers 5 adds to dense models of Granite 4 and Nemotron-H for experts, does not know transformers' names of Nomic
BERT's settings, nor its pooling of EuroBERT, nor ModernBERT's head that guesses tokens."""
COMPUTED = (".ssm_a",)
"""Tensors that are functions of the checkpoint's, whose last bits depend on who computes them."""


def digest(data: bytes) -> str:
    """What stands for a tensor's bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def write(folder: Path, target: Path) -> None:
    """Have llama.cpp convert a folder, without vocabulary."""
    import gguf
    from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

    config = ModelBase.load_hparams(folder, False)
    base: Any = ModelBase.from_model_architecture(get_model_architecture(config, ModelType.TEXT))

    class WithoutVocabulary(base):
        model_arch = base.model_arch
        # Of Qwen's it wants to know whether further tokens are predicted.
        no_mtp = base.no_mtp or (hasattr(base, "opt_num_mtp_layers") and "mtp_num_hidden_layers" not in config)

        def _is_tokenizer_xlmroberta(self) -> bool:
            return False

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("none")

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            # Gemma 3 and 4 would look into the vocabulary; what is Gemma 4's own is not more than its router's scales.
            if hasattr(self, "norm_shift") and "router" not in name:
                return TextModel.modify_tensors(self, data_torch + self.norm_shift(name), name, bid)
            return super().modify_tensors(data_torch, name, bid)

    # transformers 5 gives some settings other names (GPT-NeoX's rotary_pct), by which the converter does not find them.
    own = json.loads((folder / "config.json").read_text())
    # Of Nomic BERT's, which had other names before transformers had the class, it would find defaults instead.
    config = own if "n_embd" in own else own | config | {key: own[key] for key in ("layer_types",) if key in own}
    WithoutVocabulary(folder, gguf.LlamaFileType.GUESSED, target, hparams=config).write()


def described(path: Path) -> dict[str, Any]:
    """A file as the JSON has it."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {
        "metadata": {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")},
        "tensors": {
            t.name: [
                [int(n) for n in reversed(t.shape)],
                t.tensor_type.name,
                t.data.reshape(-1).tolist() if t.name.endswith(COMPUTED) else digest(t.data.tobytes()),
            ]
            for t in reader.tensors
        },
    }


def main(llama_cpp: Path) -> None:
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import conversion

    conversion.load_all_models()
    logging.disable(logging.CRITICAL)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted(p for p in (HERE / "convert").iterdir() if p.is_dir() and p.name not in NOT_CONVERTED):
            target = Path(scratch) / f"{folder.name}.gguf"
            write(folder, target)
            found[folder.name] = described(target)
    lines = [f" {json.dumps(name)}: {json.dumps(case, sort_keys=True)}" for name, case in found.items()]
    (HERE / "convert_peer.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
