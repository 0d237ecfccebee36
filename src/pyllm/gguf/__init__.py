"""GGUF files: metadata and tensors over a memory map, decoded on demand; and writing them, complete or not at all."""

from pyllm.gguf.reader import GGUFFile, open_gguf
from pyllm.gguf.tensor import TensorInfo
from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value, copy_metadata

__all__ = ["GGUFFile", "GGUFWriter", "TensorInfo", "TensorSpec", "Value", "copy_metadata", "open_gguf"]
