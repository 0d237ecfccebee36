"""Hugging Face folders → GGUF: `Conversion` reads one, and the quantization pipeline writes it in any format.

No torch, no transformers: safetensors are read by `safetensors.py`, families of models are described in `families/`
(docs/convert.md).
"""

from pyllm_convert.conversion import Conversion

__all__ = ["Conversion"]
