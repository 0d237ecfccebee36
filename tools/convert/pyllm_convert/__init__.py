"""Hugging Face folders → GGUF: `convert` does it, `Conversion` is a folder as the file would have it.

No torch, no transformers: safetensors are read by `safetensors.py`, families of models are described in `families/`
(docs/convert.md).
"""

from pyllm_convert.conversion import Conversion
from pyllm_convert.convert import convert

__all__ = ["Conversion", "convert"]
