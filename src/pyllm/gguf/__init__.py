"""GGUF files: metadata and tensors over a memory map, decoded on demand; and writing them, complete or not at all.

What writes is imported when it is first used: most processes only read.
"""

from typing import TYPE_CHECKING, Any

from pyllm.gguf.reader import GGUFFile, open_gguf
from pyllm.gguf.tensor import TensorInfo

if TYPE_CHECKING:
    from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value, copy_metadata

__all__ = ["GGUFFile", "GGUFWriter", "TensorInfo", "TensorSpec", "Value", "copy_metadata", "open_gguf"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyllm.gguf import writer

    return getattr(writer, name)
