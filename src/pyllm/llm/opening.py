"""`load` and `load_tokenizer`: the entry points of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pyllm.arguments import FilePath, checked
from pyllm.config import AdapterChoice, GPULayers, KVDtype, PlacementOptions, Progress
from pyllm.errors import OutOfMemoryError, RequestError
from pyllm.llm.loading import (
    DEFAULT_N_CTX,
    TokenizerLoader,
    check_placement,
    compile_model,
    default_n_ctx,
    execution_options,
    find_model,
    token_rows,
)
from pyllm.llm.model import LLM

if TYPE_CHECKING:
    from pyllm.llm.adapters import Adapter
    from pyllm.tokenizers import Tokenizer

_MOST = (1 << 31) - 1
"""Positions and tokens are counted in 32 bits."""
_MOST_THREADS = 1024


@checked
def load(
    model: FilePath,
    backend: str = "auto",
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_dtype: KVDtype = "f16",
    max_seqs: int = 16,
    *,
    n_kv: int | None = None,
    n_batch: int = 512,
    n_rows: int = 128,
    n_gpu_layers: GPULayers = "auto",
    devices: Sequence[str] = (),
    override_tensors: Sequence[tuple[str, str]] = (),
    n_cpu_moe: int = 0,
    main_gpu: int = 0,
    tensor_split: Sequence[float] = (),
    kv_offload: bool = True,
    adapters: Sequence[AdapterChoice] = (),
    max_waiting: int | None = None,
    progress: Progress | None = None,
) -> LLM:
    """Load a model to run it.

    `model`: path of a GGUF file, or a name that `pyllm pull` knows; a model that is not here yet is downloaded.
    `backend`: "auto": all GPUs, and the cpu for the rest; "cuda" or "mlx": GPUs of that kind, and the cpu; "cpu": the
    cpu alone; "reference": plain numpy, slow and exact.
    `n_ctx`: longest prompt and answer together, in tokens; default: the model's trained length, at most 4096; 0: the
    trained length.
    `n_threads`: default: `PYLLM_THREADS`, else one per physical core that the process may use.
    `kv_dtype`: type of the KV cache: "f16"; "f32" for twice the memory and slightly more precision; or "q8_0" for
    about half, where the backend supports it.
    `max_seqs`: most sequences in one step; further requests wait.
    `n_kv`: positions in the KV cache, which all sequences share; default: `n_ctx` for one, and 512 for each further.
    `n_batch`: most tokens in one step; long prompts are read in pieces of that size.
    `n_rows`: most output rows of one step, which matters only to scoring; with more than 128, output rows of prompts
    take the prefill path.
    `n_gpu_layers`: layers that run on GPUs, counted from the end; the output counts as one more, "all" is everything,
    "auto" (or -1) as many as fit the free memory. Without a GPU this has no effect.
    `devices`: GPUs to use, "cuda0", "mlx0" (default: all). `tensor_split`: their shares of the layers (default: by free
    memory). `main_gpu`: index of the one with the parts that are not split.
    `override_tensors`: (regular expression, device) pairs: ops whose weights' names match run on the device.
    `n_cpu_moe`: number of first layers whose experts stay on the cpu. `kv_offload` False: attention stays there.
    `adapters`: LoRA adapters to apply, GGUF files, each alone or with a scale: `[(path, 0.5)]`.
    `max_waiting`: most requests that wait for others to end; further ones are refused with a QueueFullError. Default:
    any number.
    `progress(what, share)` is called while downloading, compiling and packing; `share` goes from 0 to 1.

    Raises GGUFError, ModelError, HubError, BackendError, OutOfMemoryError, RequestError (a setting out of bounds).
    """
    from pyllm import env, sampling
    from pyllm.gguf import open_gguf

    env.open_missing_descriptors()
    sizes = {"n_ctx": n_ctx or 1, "n_kv": n_kv or 1, "max_seqs": max_seqs, "n_batch": n_batch, "n_rows": n_rows}
    if wrong := [name for name, size in sizes.items() if not 1 <= size <= _MOST]:
        raise RequestError(f"{wrong[0]} must be from 1 to {_MOST}, not {sizes[wrong[0]]}")
    if max_waiting is not None and max_waiting < 0:
        raise RequestError(f"max_waiting must be 0 or more, or None, not {max_waiting}")
    if not 1 <= (n_threads or 1) <= _MOST_THREADS:
        raise RequestError(f"n_threads must be from 1 to {_MOST_THREADS}, not {n_threads}")
    placement = PlacementOptions(
        n_gpu_layers=n_gpu_layers,
        override_tensors=tuple(override_tensors),
        n_cpu_moe=n_cpu_moe,
        main_gpu=main_gpu,
        tensor_split=tuple(tensor_split),
        kv_offload=kv_offload,
        devices=tuple(devices),
    )
    check_placement(placement)
    file = open_gguf(find_model(model, progress))
    tokenizer = TokenizerLoader(file)
    opened: list[Adapter] = []
    try:
        if adapters:
            from pyllm.llm.adapters import open_adapters

            opened = open_adapters(adapters)
        n_ctx = n_ctx or default_n_ctx(file.metadata, most=None if n_ctx == 0 else DEFAULT_N_CTX)
        options = execution_options(
            n_ctx, max_seqs=max_seqs, n_kv=n_kv, n_batch=n_batch, n_rows=n_rows, kv_dtype=kv_dtype, n_threads=n_threads
        )
        compiled = compile_model(file, n_ctx, replace(options, progress=progress), backend, opened, placement)
        sampling.prepare(progress)
        return LLM(file, tokenizer, compiled, n_ctx, opened, max_waiting)
    except BaseException as error:
        tokenizer.wait()
        file.close()
        for adapter in opened:
            adapter.close()
        if isinstance(error, MemoryError) and not isinstance(error, OutOfMemoryError):
            raise OutOfMemoryError(
                f"there is not enough memory ({error}); a smaller n_ctx, n_batch, n_rows or max_seqs takes less"
            ) from error
        raise


@checked
def load_tokenizer(path: FilePath) -> Tokenizer:
    """The tokenizer of a GGUF file; the file need not hold a model. `path` may also be a name, as for `load`.

    Raises GGUFError, TokenizerError (the file has no vocabulary that pyllm can use), ModelError, HubError.
    """
    from pyllm import tokenizers
    from pyllm.gguf import open_gguf

    with open_gguf(find_model(path)) as file:
        return tokenizers.from_gguf(file.metadata, token_rows(file))
