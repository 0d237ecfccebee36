"""`load` and `load_tokenizer`: the entry points of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.arguments import FilePath, checked
from pyllm.config import LoadSettings
from pyllm.errors import OutOfMemoryError
from pyllm.llm.loading import (
    TokenizerLoader,
    compile_encoder,
    compile_model,
    execution_options,
    find_model,
    n_ctx_of,
    token_rows,
)
from pyllm.llm.model import LLM
from pyllm.llm.recipes import recipe_of
from pyllm.llm.speculating import drafters_of, head_of

if TYPE_CHECKING:
    from typing import Unpack

    from pyllm.config.options import LoadOptions
    from pyllm.llm.adapters import Adapter
    from pyllm.tokenizers import Tokenizer


@checked
def load(model: FilePath, **options: Unpack[LoadOptions]) -> LLM:
    """Load a model to run it.

    `model`: path of a GGUF file, or a name that `pyllm pull` knows; a model that is not here yet is downloaded. A named
    model (`pyllm create`) brings its options, template, system message and first messages.

    Options:

    `backend`: "auto": all GPUs, and the cpu for the rest; "cuda" or "mlx": GPUs of that kind, and the cpu; "cpu": the
    cpu alone; "reference": plain numpy, slow and exact.
    `n_ctx`: Longest prompt and answer together, in tokens; default: the model's trained length, at most 4096; 0: the
    trained length.
    `n_threads`: Threads; default: `PYLLM_THREADS`, else one per physical core that the process may use.
    `kv_dtype`: Type of the KV cache: "f16"; "f32" for twice the memory and slightly more precision; or "q8_0" for about
    half, where the backend supports it.
    `max_seqs`: Most sequences in one step; further requests wait. Fewer, where their recurrent states would take more
    than an eighth of the machine's memory.
    `n_kv`: Positions in the KV cache, which all sequences share; default: `n_ctx` for one, and 512 for each further.
    `n_batch`: Most tokens in one step; long prompts are read in pieces of that size.
    `n_rows`: Most output rows of one step, which matters only to scoring; with more than 128, output rows of prompts
    take the prefill path.
    `spec`: Speculation: next tokens are guessed, and several verified in one step, so that answers come sooner and stay
    the same. "ngram": guesses are what followed the last tokens where they stood before; "mtp": also those of a head
    that the file, or a file mtp-*.gguf beside it, has for that; "draft=MODEL": also those of a smaller model of the
    same vocabulary or of a head made for the model (EAGLE-3), a path or a name; "auto": "mtp" where there is a head,
    else "ngram"; "off". Guesses that do not pay are not made.
    `adapters`: LoRA adapters to apply, GGUF files, each alone or with a scale: `[(path, 0.5)]`.
    `max_waiting`: Most requests that wait for others to end; further ones are refused with a QueueFullError. Default:
    any number.
    `cache_dir`: Folder in which the prefix cache outlives the process; models and processes may share it. Default:
    none.
    `cache_size`: Most bytes in `cache_dir`; what was used longest ago is removed.
    `progress`: `progress(what, share)` is called while downloading, compiling and packing; `share` goes from 0 to 1.
    `n_gpu_layers`: Layers that run on GPUs, counted from the end; the output counts as one more, and a larger number,
    or "all", includes the token table. "auto" or -1: as many as fit the free memory. Without a GPU this has no effect.
    `devices`: GPUs that take layers, "cuda0", "mlx0"; none named: all.
    `override_tensors`: (regular expression, device) pairs: ops whose weights' names match run on the device; the first
    match counts.
    `n_cpu_moe`: Number of layers, from the first, whose experts stay on the cpu.
    `main_gpu`: Index, among the GPUs in use, of the one with the last layers and the output; ignored where layers are
    split in proportion.
    `tensor_split`: Each GPU's share of the layers, in proportion; none named: by free memory.
    `kv_offload`: Attention and its KV cache are on their layer's device; False: on the cpu.

    Raises GGUFError, ModelError, HubError, BackendError, OutOfMemoryError, RequestError (an option that is none, or out
    of bounds), CacheError (a `cache_dir` that cannot be used).
    """
    from pyllm import env, sampling
    from pyllm.gguf import open_gguf

    env.open_missing_descriptors()
    recipe = recipe_of(model)
    settings = LoadSettings.of("load", options if recipe is None else recipe.loading(options))
    file = open_gguf(find_model(model, settings.progress))
    tokenizer = TokenizerLoader(file)
    opened: list[Adapter] = []
    head = None
    try:
        if settings.adapters:
            from pyllm.llm.adapters import open_adapters

            opened = open_adapters(settings.adapters)
        n_ctx = n_ctx_of(settings, file.metadata)
        execution = execution_options(n_ctx, settings)
        head = head_of(settings, file)
        features = None if head is None else head.model.features
        compiled = compile_model(
            file, n_ctx, execution, settings.backend, opened, settings.placement, features, encodes=True
        )
        sampling.prepare(settings.progress)
        encoder = None
        try:
            folder = None
            if settings.cache_dir is not None:
                from pyllm.llm.saving import folder_of

                folder = folder_of(settings, file, opened, compiled)
            encoder = compile_encoder(compiled, n_ctx)
            drafters = drafters_of(settings, file.metadata, n_ctx, compiled, head)
        except BaseException:
            if encoder is not None:
                encoder.close()
            compiled.executable.close()
            raise
        return LLM(file, tokenizer, compiled, n_ctx, opened, settings.max_waiting, recipe, drafters, folder, encoder)
    except BaseException as error:
        tokenizer.wait()
        file.close()
        if head is not None:
            head.close()
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
