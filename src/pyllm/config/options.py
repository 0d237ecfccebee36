"""Keyword options as type checkers see them. Written by `python tools/write_settings.py`; change the settings, not this
file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from pyllm.arguments import FilePath
from pyllm.config.loading import AdapterChoice, GPULayers, KVDtype, Progress, Size
from pyllm.config.sampling import SamplingParams


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, where they and their defaults are described. None: as if it were not given."""

    logit_bias: Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int, float]] | None
    banned_tokens: Sequence[int] | None
    banned_strings: Sequence[str] | None
    min_tokens: int | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repeat_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    top_n_sigma: float | None
    top_k: int | None
    tfs_z: float | None
    typical_p: float | None
    top_p: float | None
    top_a: float | None
    min_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    smoothing_factor: float | None
    smoothing_curve: float | None
    temperature: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    adaptive_target: float | None
    adaptive_decay: float | None
    seed: int | None
    samplers: Sequence[str] | None
    logits_processors: Sequence[Callable[[Any, Any], Any]] | None


class GenerateOptions(SamplingOptions, total=False):
    """Keyword options of `LLM.complete`, `LLM.chat` and `LLM.generate`."""

    sampling: SamplingParams | None
    """Base of the sampling options; single options override it. Default: what the model's file advises."""
    max_tokens: int | None
    """Most tokens to generate; None or -1: until the model ends the text. A full context ends the answer too, with
    finish_reason "length"."""
    stop: str | Sequence[str] | None
    """Texts that end the generation; they are not part of the result."""
    logprobs: int | None
    """Report each token's log probability, and those of the `logprobs` most likely tokens (0: its own only)."""
    prompt_logprobs: int | None
    """The same for the prompt's tokens; the prompt is then computed anew, not read from the prefix cache."""
    n: int | None
    """Number of answers; those after the first are the result's `others`. They share the prompt's state. With a seed,
    each has the next one."""
    best_of: int | None
    """Generate so many answers and return the `n` of the highest mean log probability."""
    response_format: Any | None
    """What the answer must be: a JSON schema, OpenAI's `response_format`, or a class (pydantic model, dataclass,
    TypedDict), of which the result's `parsed` is one."""
    regex: str | None
    """A regular expression that the whole answer matches (Rust's syntax: no look-around, no back-references)."""
    choice: Sequence[str] | None
    """Texts of which the answer is one."""
    grammar: str | None
    """A grammar of the answer: llguidance's Lark with a rule `start`, or llama.cpp's GBNF with a rule `root`."""
    tool_choice: str | Mapping[str, Any] | None
    """In a chat with tools: "auto"; "required" (calls and nothing else); "none"; the name of the tool to call, or
    OpenAI's object with it. Held by a grammar of the model's own dialect."""
    parallel_tool_calls: bool | None
    """False: `tool_choice` and strict tools allow one call."""
    echo: bool | None
    """Begin the text with the prompt's (not in `chat`)."""
    priority: int | None
    """Requests of a higher priority go first; those of the same in order of arrival."""
    timeout: float | None
    """Seconds after which the answer ends with what there is, finish_reason "timeout"."""
    ignore_eos: bool | None
    """Continue past the model's end of text."""
    context_shift: bool | None
    """When the context is full, drop its older half instead of ending."""
    n_keep: int | None
    """Number of first tokens that a context shift keeps."""


class LoadOptions(TypedDict, total=False):
    """Keyword options of `pyllm.load`."""

    backend: str | None
    """"auto": all GPUs, and the cpu for the rest; "cuda" or "mlx": GPUs of that kind, and the cpu; "cpu": the cpu
    alone; "reference": plain numpy, slow and exact."""
    n_ctx: int | None
    """Longest prompt and answer together, in tokens; default: the model's trained length, at most 4096; 0: the trained
    length."""
    n_threads: int | None
    """Threads; default: `PYLLM_THREADS`, else one per physical core that the process may use."""
    kv_dtype: KVDtype | None
    """Type of the KV cache: "f16"; "f32" for twice the memory and slightly more precision; or "q8_0" for about half,
    where the backend supports it."""
    max_seqs: int | None
    """Most sequences in one step; further requests wait. Fewer, where their recurrent states would take more than an
    eighth of the machine's memory."""
    n_kv: int | None
    """Positions in the KV cache, which all sequences share; default: `n_ctx` for one, and 512 for each further."""
    n_batch: int | None
    """Most tokens in one step; long prompts are read in pieces of that size."""
    n_rows: int | None
    """Most output rows of one step, which matters only to scoring; with more than 128, output rows of prompts take the
    prefill path."""
    spec: str | None
    """Speculation: next tokens are guessed, and several verified in one step, so that answers come sooner and stay the
    same. "ngram": guesses are what followed the last tokens where they stood before; "mtp": also those of a head that
    the file, or a file mtp-*.gguf beside it, has for that; "draft=MODEL": also those of a smaller model of the same
    vocabulary or of a head made for the model (EAGLE-3), a path or a name; "auto": "mtp" where there is a head, else
    "ngram"; "off". Guesses that do not pay are not made."""
    adapters: Sequence[AdapterChoice] | None
    """LoRA adapters to apply, GGUF files, each alone or with a scale: `[(path, 0.5)]`."""
    max_waiting: int | None
    """Most requests that wait for others to end; further ones are refused with a QueueFullError. Default: any
    number."""
    cache_dir: FilePath | None
    """Folder in which the prefix cache outlives the process; models and processes may share it. Default: none."""
    cache_size: Size | None
    """Most bytes in `cache_dir`; what was used longest ago is removed."""
    progress: Progress | None
    """`progress(what, share)` is called while downloading, compiling and packing; `share` goes from 0 to 1."""
    n_gpu_layers: GPULayers | None
    """Layers that run on GPUs, counted from the end; the output counts as one more, and a larger number, or "all",
    includes the token table. "auto" or -1: as many as fit the free memory. Without a GPU this has no effect."""
    devices: Sequence[str] | None
    """GPUs that take layers, "cuda0", "mlx0"; none named: all."""
    override_tensors: Sequence[tuple[str, str]] | None
    """(regular expression, device) pairs: ops whose weights' names match run on the device; the first match counts."""
    n_cpu_moe: int | None
    """Number of layers, from the first, whose experts stay on the cpu."""
    main_gpu: int | None
    """Index, among the GPUs in use, of the one with the last layers and the output; ignored where layers are split in
    proportion."""
    tensor_split: Sequence[float] | None
    """Each GPU's share of the layers, in proportion; none named: by free memory."""
    kv_offload: bool | None
    """Attention and its KV cache are on their layer's device; False: on the cpu."""
