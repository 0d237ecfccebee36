"""Settings of loading a model: what `pyllm.load` takes beside the model, and the command line's flags for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

from pyllm.arguments import FilePath
from pyllm.config.setting import complete, refuse_unknown, setting
from pyllm.errors import RequestError
from pyllm.records import dataclass

KVDtype = Literal["f16", "f32", "q8_0"]
"""Type of the KV cache's numbers; a backend has some of them (`Backend.kv_dtypes`)."""
GPULayers = int | Literal["auto", "all"]
"""How many of the last layers run on GPUs; the output matrix counts as one more, "all" includes the token table."""
Progress = Callable[[str, float], None]
"""progress(what is being done, share done from 0 to 1)."""
AdapterChoice = FilePath | tuple[FilePath, float]
"""A LoRA adapter to load: its file, or file and scale."""

SPECULATION = ("off", "ngram", "mtp", "auto")
"""Values of `spec`, beside `draft=MODEL`."""
_DRAFT = "draft="
Size = int
"""Bytes; on the command line also "32MiB"."""

_MOST = (1 << 31) - 1
"""Positions and tokens are counted in 32 bits."""


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Which device computes what. Devices are named as `pyllm doctor` lists them: "cpu", "cuda0", "mlx0"."""

    n_gpu_layers: GPULayers = setting(
        "auto",
        'Layers that run on GPUs, counted from the end; the output counts as one more, and a larger number, or "all", '
        'includes the token table. "auto" or -1: as many as fit the free memory. Without a GPU this has no effect.',
        help="Layers that run on GPUs: a number, auto or all.",
        low=0,
        must="0 or more, 'auto' or 'all'",
        minus_one="auto",
        flags=("-ngl", "--n-gpu-layers", "--gpu-layers"),
    )
    devices: tuple[str, ...] = setting(
        (),
        'GPUs that take layers, "cuda0", "mlx0"; none named: all.',
        help="GPUs to use, such as cuda0,cuda1.",
        flags=("-dev", "--device"),
        metavar="NAME",
        commas=True,
    )
    override_tensors: tuple[tuple[str, str], ...] = setting(
        (),
        "(regular expression, device) pairs: ops whose weights' names match run on the device; the first match counts.",
        help="Device of tensors whose names match; may be repeated, or separated by commas.",
        flags=("-ot", "--override-tensor"),
    )
    n_cpu_moe: int = setting(
        0,
        "Number of layers, from the first, whose experts stay on the cpu.",
        help="First layers whose experts stay on the cpu.",
        low=0,
        flags=("-ncmoe", "--n-cpu-moe"),
    )
    main_gpu: int = setting(
        0,
        "Index, among the GPUs in use, of the one with the last layers and the output; ignored where layers are split "
        "in proportion.",
        help="The GPU, counted from 0, that has the last layers and the output head.",
        low=0,
        flags=("-mg", "--main-gpu"),
    )
    tensor_split: tuple[float, ...] = setting(
        (),
        "Each GPU's share of the layers, in proportion; none named: by free memory.",
        help="The GPUs' shares of the layers.",
        flags=("-ts", "--tensor-split"),
    )
    kv_offload: bool = setting(
        True,
        "Attention and its KV cache are on their layer's device; False: on the cpu.",
        help="Attention and its cache stay on the cpu.",
        flags=("-nkvo", "--no-kv-offload"),
    )

    def __post_init__(self) -> None:
        complete(self)
        if any(not 0 <= share < float("inf") for share in self.tensor_split) or (
            self.tensor_split and not sum(self.tensor_split)
        ):
            raise RequestError(
                f"tensor_split must be shares of 0 or more, and not all 0, not {list(self.tensor_split)}"
            )
        for pattern, _ in self.override_tensors:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RequestError(f"override_tensors: {pattern!r} is not a regular expression: {error}") from None


@dataclass(frozen=True, slots=True)
class LoadSettings(PlacementOptions):
    """How a model is loaded, complete and validated. `pyllm.load` takes the fields as keywords, `LoadOptions`."""

    backend: str = setting(
        "auto",
        '"auto": all GPUs, and the cpu for the rest; "cuda" or "mlx": GPUs of that kind, and the cpu; "cpu": the cpu '
        'alone; "reference": plain numpy, slow and exact.',
        help="Backend: auto, cpu, cuda, mlx, …; `pyllm doctor` lists them.",
        flags=("--backend",),
        metavar="NAME",
    )
    n_ctx: int | None = setting(
        None,
        "Longest prompt and answer together, in tokens; default: the model's trained length, at most 4096; 0: the "
        "trained length.",
        help="Context in tokens; 0: as trained [default: that, at most 4096].",
        low=0,
        high=_MOST,
        flags=("-c", "--ctx"),
    )
    n_threads: int | None = setting(
        None,
        "Threads; default: `PYLLM_THREADS`, else one per physical core that the process may use.",
        help="Threads [default: physical cores].",
        low=1,
        high=1024,
        flags=("-t", "--threads"),
    )
    kv_dtype: KVDtype = setting(
        "f16",
        'Type of the KV cache: "f16"; "f32" for twice the memory and slightly more precision; or "q8_0" for about '
        "half, where the backend supports it.",
        help="Cache format.",
        flags=("--kv",),
    )
    max_seqs: int = setting(
        16,
        "Most sequences in one step; further requests wait. Fewer, where their recurrent states would take more than "
        "an eighth of the machine's memory.",
        help="Sequences at once.",
        low=1,
        high=_MOST,
    )
    n_kv: int | None = setting(
        None,
        "Positions in the KV cache, which all sequences share; default: `n_ctx` for one, and 512 for each further.",
        low=1,
        high=_MOST,
    )
    n_batch: int = setting(
        512,
        "Most tokens in one step; long prompts are read in pieces of that size.",
        help="Tokens of a step.",
        low=1,
        high=_MOST,
    )
    n_rows: int = setting(
        128,
        "Most output rows of one step, which matters only to scoring; with more than 128, output rows of prompts take "
        "the prefill path.",
        low=1,
        high=_MOST,
    )
    spec: str = setting(
        "off",
        "Speculation: next tokens are guessed, and several verified in one step, so that answers come sooner and stay "
        'the same. "ngram": guesses are what followed the last tokens where they stood before; "mtp": also those of '
        'a head that the file, or a file mtp-*.gguf beside it, has for that; "draft=MODEL": also those of a smaller '
        "model of the same vocabulary or of a head made for the model (EAGLE-3), a path or a name; "
        '"auto": "mtp" where there is a head, else "ngram"; "off". Guesses that do not pay are not made.',
        help="Guess next tokens and verify several in a step: off, auto, ngram, mtp or draft=MODEL.",
        flags=("--spec",),
        metavar="METHOD",
    )
    adapters: tuple[AdapterChoice, ...] = setting(
        (), "LoRA adapters to apply, GGUF files, each alone or with a scale: `[(path, 0.5)]`."
    )
    max_waiting: int | None = setting(
        None,
        "Most requests that wait for others to end; further ones are refused with a QueueFullError. Default: any "
        "number.",
        low=0,
        must="0 or more, or None",
    )
    cache_dir: FilePath | None = setting(
        None,
        "Folder in which the prefix cache outlives the process; models and processes may share it. Default: none.",
        help="Folder in which what was read of prompts outlives the process.",
        flags=("--cache-dir",),
        metavar="DIR",
    )
    cache_size: Size = setting(
        10 << 30,
        "Most bytes in `cache_dir`; what was used longest ago is removed.",
        help="Most bytes in that folder; what was used longest ago is removed  [default: 10GiB].",
        low=1,
        flags=("--cache-size",),
    )
    progress: Progress | None = setting(
        None,
        "`progress(what, share)` is called while downloading, compiling and packing; `share` goes from 0 to 1.",
        compare=False,
    )

    def __post_init__(self) -> None:
        PlacementOptions.__post_init__(self)
        if self.spec not in SPECULATION and not self.draft_model:
            raise RequestError(f"spec must be {', '.join(SPECULATION)} or draft=MODEL, not {self.spec!r}")

    @classmethod
    def of(cls, caller: str, options: Mapping[str, Any]) -> LoadSettings:
        """Settings from a call's keywords. Raises RequestError."""
        refuse_unknown(caller, options, [f.name for f in fields(cls)])
        return cls(**options)

    @property
    def draft_model(self) -> str:
        """The path or name of the model that guesses; empty: none."""
        return self.spec.removeprefix(_DRAFT) if self.spec.startswith(_DRAFT) else ""

    @property
    def placement(self) -> PlacementOptions:
        """The part about devices."""
        return PlacementOptions(**{f.name: getattr(self, f.name) for f in fields(PlacementOptions)})
