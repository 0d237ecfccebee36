"""Hugging Face folders → GGUF: `convert` does it, `Conversion` is a folder as the file would have it.

No torch, no transformers: safetensors are read by `safetensors.py`, families of models are described in `families/`
(docs/convert.md). Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyllm_convert.conversion import Conversion
    from pyllm_convert.writing import convert

_HOME_OF = {"Conversion": "pyllm_convert.conversion", "convert": "pyllm_convert.writing"}

__all__ = ["Conversion", "convert"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
