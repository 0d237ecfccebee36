"""Frozen settings, each with its default, meaning and bounds; the command line derives its flags from them.

They can be pickled. A value of the wrong type raises RequestError; None stands for the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pyllm.arguments import FilePath, settle
from pyllm.config.sampling import SamplingOptions, SamplingParams

__all__ = [
    "AdapterChoice",
    "ExecutionOptions",
    "GPULayers",
    "KVDtype",
    "PlacementOptions",
    "Progress",
    "SamplingOptions",
    "SamplingParams",
]

KVDtype = Literal["f16", "f32", "q8_0"]
"""Type of the KV cache's numbers; a backend has some of them (`Backend.kv_dtypes`)."""
GPULayers = int | Literal["auto", "all"]
"""How many of the last layers run on GPUs; the output matrix counts as one more, "all" includes the token table."""
Progress = Callable[[str, float], None]
"""progress(what is being done, share done from 0 to 1)."""
AdapterChoice = FilePath | tuple[FilePath, float]
"""A LoRA adapter to load: its file, or file and scale."""


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """Capacities of an executable. KV memory holds n_pages * page_size positions over all sequences."""

    n_pages: int
    page_size: int = 32
    max_tokens: int = 512
    """Most tokens of one step."""
    max_seqs: int = 16
    """Most sequences of one step."""
    max_rows: int = 128
    """Most output rows of one step."""
    kv_dtype: KVDtype = "f16"
    """Type of the cache's numbers; a backend has some of them (`Backend.kv_dtypes`)."""
    device: int = 0
    """Which of the backend's devices, in the order of `Backend.devices()`."""
    n_threads: int = 1
    many_rows: bool = False
    """Output rows of prompts take the prefill path, where it differs from decode; scoring sets this."""
    collect_importance: bool = False
    """Sum the squares of every matrix product's input; `Executable.importance` returns the sums."""
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Which device computes what. Devices are named as `pyllm doctor` lists them: "cpu", "cuda0", "mlx0"."""

    n_gpu_layers: GPULayers = "auto"
    """How many layers run on GPUs, counted from the end; the output head counts as one more, and a larger number
    includes the token table. "auto" or -1: as many as fit the free memory."""
    override_tensors: tuple[tuple[str, str], ...] = ()
    """(regular expression, device): ops whose weights' names match run on the device; the first match counts."""
    n_cpu_moe: int = 0
    """Number of layers, from the first, whose experts stay on the CPU."""
    main_gpu: int = 0
    """Index, among the GPUs in use, of the one with the output head; ignored where layers are split in proportion."""
    tensor_split: tuple[float, ...] = ()
    """Each GPU's share of the layers, in proportion; empty: by free memory."""
    kv_offload: bool = True
    """Attention and its KV cache are on their layer's device; False: on the CPU."""
    devices: tuple[str, ...] = ()
    """The devices that take layers; empty: all GPUs."""

    def __post_init__(self) -> None:
        settle(self)
        if self.n_gpu_layers == -1:
            object.__setattr__(self, "n_gpu_layers", "auto")
