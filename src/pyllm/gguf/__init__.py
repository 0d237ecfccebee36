"""GGUF files: metadata and tensors over a memory map, nothing decoded before it is asked for."""

from pyllm.gguf.reader import GGUFFile, open_gguf
from pyllm.gguf.tensor import TensorInfo

__all__ = ["GGUFFile", "TensorInfo", "open_gguf"]
