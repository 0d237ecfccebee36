"""`LLM`: a loaded model that completes, chats, embeds and scores; what a user of the library sees."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from pyllm.config import GPULayers, KVDtype, PlacementOptions, Progress
from pyllm.errors import RequestError, TokenizerError
from pyllm.llm.loading import (
    Compiled,
    TokenizerLoader,
    check_placement,
    compile_model,
    default_n_ctx,
    execution_options,
    find_model,
    token_rows,
)
from pyllm.llm.results import Completion, CompletionStream
from pyllm.llm.settings import GenerateOptions, GenerateSettings

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from pyllm.chat import ChatTemplate
    from pyllm.engine import Engine
    from pyllm.gguf import GGUFFile
    from pyllm.llm.adapters import Adapter, AdapterChoice
    from pyllm.tokenizers import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""
Message = Mapping[str, Any]
"""One message of a chat: "role" ("system", "user", "assistant", "tool") and "content"."""


def load(
    model: str | os.PathLike[str],
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
    progress: Progress | None = None,
) -> LLM:
    """Load a model to run it.

    `model`: path of a GGUF file, or a name that `pyllm pull` knows; a model that is not here yet is downloaded.
    `backend`: "auto", the GPUs that are there and the cpu for the rest; "cuda" or "mlx", that kind of GPU and the cpu;
    "cpu", that alone; "reference" (plain numpy, slow, exact).
    `n_ctx`: longest prompt and answer together, in tokens; default: what the model was trained for, at most 4096.
    `n_threads`: default: `PYLLM_THREADS`, else one per physical core that the process may use.
    `kv_dtype`: "f16", "f32" for twice the memory and slightly closer numbers, or "q8_0" for about half, where
    the backend has it.
    `max_seqs`: most sequences in one step; further requests wait.
    `n_kv`: positions in the KV cache, which all sequences share; default: `n_ctx` for one, and 512 for each further.
    `n_batch`: most tokens in one step; long prompts are read in pieces of that size.
    `n_rows`: most rows of logits in one step, which matters to scoring only; with more than 128, those of prompts are
    computed as their other tokens are.
    `n_gpu_layers`: layers that run on GPUs, counted from the end; the output counts as one more, "all" is everything,
    "auto" as many as fit into the memory that is free. Where there is no GPU, all of this means nothing.
    `devices`: GPUs to use, "cuda0", "mlx0" (default: all). `tensor_split`: their shares of the layers (default: by free
    memory). `main_gpu`: the one of them that has what is not split.
    `override_tensors`: (regular expression, device) pairs: what uses weights of such names runs there.
    `n_cpu_moe`: the experts of so many of the first layers stay on the cpu. `kv_offload` False: attention does.
    `adapters`: LoRA adapters to apply, GGUF files, each alone or with a scale: `[(path, 0.5)]`.
    `progress(what, share)` is told how downloading, compiling and packing go.

    Raises GGUFError, ModelError, HubError, BackendError, OutOfMemoryError, RequestError (a setting out of bounds).
    """
    from pyllm.gguf import open_gguf

    if min(max_seqs, n_batch, n_rows, n_ctx or 1, n_threads or 1, n_kv or 1) < 1:
        raise RequestError("n_ctx, n_threads, max_seqs, n_kv, n_batch and n_rows must be 1 or more")
    if kv_dtype not in get_args(KVDtype):
        raise RequestError(f"kv_dtype must be one of {', '.join(get_args(KVDtype))}, not {kv_dtype!r}")
    placement = PlacementOptions(
        n_gpu_layers=n_gpu_layers,
        override_tensors=tuple((pattern, device) for pattern, device in override_tensors),
        n_cpu_moe=n_cpu_moe,
        main_gpu=main_gpu,
        tensor_split=tuple(tensor_split),
        kv_offload=kv_offload,
        devices=(devices,) if isinstance(devices, str) else tuple(devices),
    )
    check_placement(placement)
    file = open_gguf(find_model(model, progress))
    tokenizer = TokenizerLoader(file)
    opened: list[Adapter] = []
    try:
        if adapters:
            from pyllm.llm.adapters import open_adapters

            opened = open_adapters(adapters)
        n_ctx = n_ctx or default_n_ctx(file.metadata)
        options = execution_options(
            n_ctx, max_seqs=max_seqs, n_kv=n_kv, n_batch=n_batch, n_rows=n_rows, kv_dtype=kv_dtype, n_threads=n_threads
        )
        compiled = compile_model(file, n_ctx, replace(options, progress=progress), backend, opened, placement)
    except BaseException:
        tokenizer.wait()
        file.close()
        for adapter in opened:
            adapter.close()
        raise
    return LLM(file, tokenizer, compiled, n_ctx, opened)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file; the file need not hold a model. `path` may also be a name, as for `load`.

    Raises GGUFError, TokenizerError (the file has no vocabulary that pyllm can use), ModelError, HubError.
    """
    from pyllm import tokenizers
    from pyllm.gguf import open_gguf

    with open_gguf(find_model(path)) as file:
        return tokenizers.from_gguf(file.metadata, token_rows(file))


class LLM:
    """A loaded model; made by `pyllm.load`. Use it in a `with` block, or `close` it.

    All methods may be called from several threads at once: their requests then share steps. Whoever waits for a
    result drives the computation; there is no thread in the background.
    """

    def __init__(
        self,
        file: GGUFFile,
        tokenizer: TokenizerLoader,
        compiled: Compiled,
        n_ctx: int,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        from pyllm.engine import Engine

        self._file = file
        self._adapters = adapters
        self._executable = compiled.executable
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None
        self._template_read = False
        self.architecture = compiled.architecture
        self.n_ctx = n_ctx
        self.devices = tuple(device.name for device in compiled.devices)
        """Names of the devices that compute: "cpu", "cuda0", …"""
        self.n_gpu_layers = compiled.n_gpu_layers
        """Layers of which something runs on a GPU, the output counted as one: up to `architecture.n_layers` + 1."""
        self.engine: Engine = Engine(compiled.executable, n_ctx=n_ctx, n_vocab=self.n_vocab)

    @property
    def path(self) -> Path:
        return Path(self._file.path)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, by GGUF key."""
        return self._file.metadata

    @property
    def n_vocab(self) -> int:
        return self.architecture.n_vocab

    @property
    def n_embd(self) -> int:
        return self.architecture.n_embd

    @property
    def n_threads(self) -> int:
        return self._executable.options.n_threads

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises TokenizerError where it has none; such a model takes token ids only."""
        tokenizer, error = self._tokenizer.get()
        if tokenizer is None:
            raise TokenizerError(str(error)) from error
        return tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer.get()[0] is not None

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The model's own chat template, or None. Raises TemplateError where it does not parse."""
        if not self._template_read:
            from pyllm import chat

            self._template = chat.from_gguf(self.metadata, self.tokenizer)
            self._template_read = True
        return self._template

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | None) -> None:
        """Another template in place of the model's own: `ChatTemplate({"default": text}, llm.tokenizer)`."""
        self._template, self._template_read = template, True

    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose: "weights", "kv", "work"."""
        return self._executable.memory()

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = ...,
        parse_special: bool = ...,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def complete(
        self, prompt: Prompt, *, stream: Literal[True], parse_special: bool = ..., **options: Unpack[GenerateOptions]
    ) -> CompletionStream: ...
    def complete(
        self, prompt: Prompt, *, stream: bool = False, parse_special: bool = False, **options: Unpack[GenerateOptions]
    ) -> Completion | CompletionStream:
        """Continue a text, as it stands, without a chat template; up to 256 tokens unless `max_tokens` says otherwise.

        `stream`: return the text piece by piece, as an iterator. `parse_special`: text such as `<|im_start|>` means
        that token. `options`: see `GenerateOptions`. Raises RequestError, ContextFullError, TokenizerError.
        """
        settings = GenerateSettings.of("complete", 256, options)
        running = self._start(self._encode(prompt, parse_special), settings, continues=len(prompt) > 0)
        return running if stream else running.result

    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[False] = ...,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        variables: Mapping[str, Any] | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: Literal[True],
        tools: Sequence[Mapping[str, Any]] | None = ...,
        variables: Mapping[str, Any] | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> CompletionStream: ...
    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion | CompletionStream:
        """Answer the last of `messages` ({"role": …, "content": …}; a text alone is one message of the user).

        Goes on until the model is done, or the context is full, unless `max_tokens` is given. `tools` and `variables`
        are handed to the model's template. `stream`, `options`: as for `complete`. Raises RequestError (no chat
        template), TemplateError, ContextFullError, TokenizerError.
        """
        settings = GenerateSettings.of("chat", None, options)
        tokens = self.chat_tokens(messages, tools=tools, variables=variables)
        running = self._start(tokens, settings, continues=False)
        return running if stream else running.result

    def chat_tokens(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt that `chat` would read: messages through the model's template, tokenized."""
        template = self.chat_template
        if template is None:
            raise RequestError(f"{self.path.name} has no chat template; use complete()")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return template.encode(messages, tools=tools, **(variables or {}))

    def generate(
        self, prompts: Sequence[Prompt], *, parse_special: bool = False, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Complete several prompts side by side, which is much faster than one after another; results are in order.

        What prompts have in common at their beginning is computed once. More than `max_seqs` prompts are fine: the
        rest follow as the first are done. Options and errors as for `complete`; an error in one ends all.
        """
        settings = GenerateSettings.of("generate", 256, options)
        tokens = [self._encode(prompt, parse_special) for prompt in prompts]
        running: list[CompletionStream] = []
        try:
            for prompt, ids in zip(prompts, tokens, strict=True):
                running.append(self._start(ids, settings, continues=len(prompt) > 0))
            waiting = list(reversed(running))
            active: list[CompletionStream] = []
            while active or waiting:
                # Only those that can be in a step are asked: asking a waiting one would let the others run on
                # past their stop strings.
                while waiting and len(active) < self._executable.options.max_seqs:
                    active.append(waiting.pop())
                active = [s for s in active if s.advance() is not None]
        finally:
            for stream in running:
                stream.close()
        return [stream.result for stream in running]

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """float32 [n_tokens, n_vocab]: row i are the logits of the token after `tokens[i]`.

        The sequence starts at position 0. Raises ContextFullError, RequestError (an id outside the vocabulary).
        """
        return self.engine.logits(tokens)

    def embed(self, text: Prompt | Sequence[Prompt], *, normalize: bool = True) -> NDArray[np.float32]:
        """Embedding of a text, float32 [n_embd], or of several, [n_texts, n_embd].

        It is the mean of the final normed hidden state over all tokens (BOS included, where the model adds one),
        scaled to length 1 unless `normalize` is False. Token ids are taken in place of text.
        """
        import numpy as np

        if isinstance(text, str) or (len(text) > 0 and isinstance(text[0], int | np.integer)):
            return self._embed_one(text, normalize)  # type: ignore[arg-type]
        rows = [self._embed_one(one, normalize) for one in text]  # type: ignore[arg-type]
        return np.stack(rows) if rows else np.empty((0, self.n_embd), np.float32)

    def close(self) -> None:
        """Free weights, cache and threads, and close the files. What is running ends with ClosedError."""
        self.engine.close()
        self._executable.close()
        self._tokenizer.wait()
        self._file.close()
        for adapter in self._adapters:
            adapter.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.path.name}: {self.architecture.name}, {self.n_ctx} positions>"

    def _encode(self, prompt: Prompt, parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True, parse_special=parse_special)
        return [int(token) for token in prompt]

    def _start(self, tokens: list[int], settings: GenerateSettings, continues: bool) -> CompletionStream:
        from pyllm.engine import GenerationRequest

        tokenizer = self.tokenizer if self.has_tokenizer else None
        if tokenizer is None and settings.stop:
            raise RequestError("stop strings need a tokenizer, and this model has none that is usable")
        request = GenerationRequest(
            tokens=tokens,
            sampling=settings.sampling,
            max_tokens=settings.limit(room=self.engine.n_ctx + 1 - len(tokens)),
            stop_ids=frozenset() if tokenizer is None or settings.ignore_eos else tokenizer.stop_ids,
            logprobs=settings.logprobs,
            context_shift=settings.context_shift,
            n_keep=settings.n_keep,
        )
        return CompletionStream(self.engine.submit(request), tokenizer, settings, continues)

    def _embed_one(self, prompt: Prompt, normalize: bool) -> NDArray[np.float32]:
        import numpy as np

        tokens = self._encode(prompt, parse_special=False)
        if not tokens:
            raise RequestError("an empty text has no embedding with this model")
        mean = self.engine.hidden(tokens).mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean)) if normalize else 1.0
        return (mean / (length or 1.0)).astype(np.float32)
