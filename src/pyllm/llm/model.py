"""`LLM`: a loaded model that completes, chats, embeds and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from pyllm.arguments import FilePath, TokenIds, checked
from pyllm.chat.messages import Messages, Tools
from pyllm.env import user_path
from pyllm.errors import RequestError, TokenizerError
from pyllm.llm import preparing
from pyllm.llm.embedding import Embeds
from pyllm.llm.history import Truncate
from pyllm.llm.loading import Compiled, TokenizerLoader
from pyllm.llm.prompts import Prompt, Prompts, PromptsOrChats, is_iterator
from pyllm.llm.results import Completion
from pyllm.llm.streams import CompletionStream, EventStream

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from pyllm.cache import CacheFolder, Layout
    from pyllm.chat import ChatTemplate
    from pyllm.config import SamplingParams
    from pyllm.config.options import GenerateOptions
    from pyllm.engine import Engine
    from pyllm.engine.encoding import Encoder
    from pyllm.engine.speculation import Drafter
    from pyllm.gguf import GGUFFile
    from pyllm.llm.adapters import Adapter
    from pyllm.llm.calls import Call
    from pyllm.llm.recipes import Recipe
    from pyllm.llm.saving import CacheCounts
    from pyllm.sampling import Vocabulary
    from pyllm.tokenizers import Tokenizer

Stream = bool | Literal["events"]
"""Whether an answer is read as it comes: as text, or as events."""


class LLM(Embeds):
    """A loaded model, made by `pyllm.load`. Use it in a `with` block, or `close` it.

    All methods may be called from several threads at once; their requests then share steps. A background thread
    computes while there is work. `AsyncLLM` is the same for event loops.
    """

    def __init__(
        self,
        file: GGUFFile,
        tokenizer: TokenizerLoader,
        compiled: Compiled,
        n_ctx: int,
        adapters: Sequence[Adapter] = (),
        max_waiting: int | None = None,
        recipe: Recipe | None = None,
        drafters: Sequence[Drafter] = (),
        folder: CacheFolder | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        from pyllm.engine import Engine
        from pyllm.sampling import advised

        self._file = file
        self._adapters = adapters
        self._compiled = compiled
        self._executable = compiled.executable
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None
        self._template_read = False
        self.sampling: SamplingParams = advised(file.metadata)
        """Sampling of requests that name none: what the file advises (`general.sampling.*`), else the defaults."""
        self.recipe = recipe
        """What a named model adds to calls; None: nothing."""
        self.architecture = compiled.architecture
        self.n_ctx = n_ctx
        self.devices = tuple(device.name for device in compiled.devices)
        """Names of the devices that compute: "cpu", "cuda0", …"""
        self.n_gpu_layers = compiled.n_gpu_layers
        """Layers with a part on a GPU, the output counted as one: up to `architecture.n_layers` + 1."""
        self.engine: Engine = Engine(
            compiled.executable,
            n_ctx=n_ctx,
            n_vocab=self.n_vocab,
            max_waiting=max_waiting,
            drafters=drafters,
            folder=folder,
            encoder=encoder,
        )

    @property
    def path(self) -> Path:
        return Path(self._file.path)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, by GGUF key."""
        return self._file.metadata

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """LoRA adapters that are applied, each with its `path` and `scale`."""
        return tuple(self._adapters)

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

            own = None if self.recipe is None else self.recipe.template(self.tokenizer)
            self._template = own or chat.from_gguf(self.metadata, self.tokenizer)
            self._template_read = True
        return self._template

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | None) -> None:
        """Replace the model's template: `ChatTemplate({"default": text}, llm.tokenizer)`."""
        self._template, self._template_read = template, True

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What sampling may ask of tokens; the same for all requests. None without a tokenizer."""
        from pyllm.sampling import Vocabulary

        return Vocabulary.of(self.tokenizer, self.n_vocab) if self.has_tokenizer else None

    def memory(self) -> dict[str, int]:
        """Bytes held, by purpose: "weights", "kv", "work"; those of a draft model or an encoder included."""
        parts = [self._executable.memory(), *self.engine.memory_beside()]
        return {purpose: sum(part.get(purpose, 0) for part in parts) for part in parts for purpose in part}

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
    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Literal["events"],
        parse_special: bool = ...,
        **options: Unpack[GenerateOptions],
    ) -> EventStream: ...
    @checked
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Stream = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion | CompletionStream | EventStream:
        """Continue a text as it is, without a chat template; up to 256 tokens unless `max_tokens` is given.

        `stream`: return an iterator over the text, or with "events" over `pyllm.llm.events`. `parse_special`: text such
        as `<|im_start|>` means that token. `options`: see `GenerateOptions`. Raises RequestError, ContextFullError,
        QueueFullError, TokenizerError.
        """
        return self._run(preparing.completion(self, "complete", prompt, parse_special, options), stream)

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = ...,
        tools: Tools | None = ...,
        variables: Mapping[str, Any] | None = ...,
        truncate: Truncate | None = ...,
        continue_final_message: bool = ...,
        chat_template: ChatTemplate | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[True],
        tools: Tools | None = ...,
        variables: Mapping[str, Any] | None = ...,
        truncate: Truncate | None = ...,
        continue_final_message: bool = ...,
        chat_template: ChatTemplate | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> CompletionStream: ...
    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal["events"],
        tools: Tools | None = ...,
        variables: Mapping[str, Any] | None = ...,
        truncate: Truncate | None = ...,
        continue_final_message: bool = ...,
        chat_template: ChatTemplate | None = ...,
        **options: Unpack[GenerateOptions],
    ) -> EventStream: ...
    @checked
    def chat(
        self,
        messages: Messages,
        *,
        stream: Stream = False,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        truncate: Truncate | None = None,
        continue_final_message: bool = False,
        chat_template: ChatTemplate | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion | CompletionStream | EventStream:
        """Answer the last of `messages` ({"role": …, "content": …}; a text alone is one message of the user).

        The answer ends when the model is done or the context is full, or after `max_tokens`. `tools` and `variables`
        are passed to the model's template. `truncate="oldest"`: where the messages leave no room for an answer, the
        oldest turns are left out (a message of the user with its answers), but never the system's messages nor the last
        turn; the result's `n_dropped` counts the messages left out. The room for an answer is `max_tokens`, at most
        half the context; without `max_tokens` a quarter. `continue_final_message`: the last message is the assistant's
        and unfinished; the answer continues it. `chat_template`: in place of the model's. `stream`, `options`: as for
        `complete`. Raises RequestError (no chat template, messages that a text model cannot read), TemplateError,
        ContextFullError (the messages alone are too long), TokenizerError.
        """
        call = preparing.chat(
            self, "chat", messages, tools, variables, truncate, options, continue_final_message, chat_template
        )
        return self._run(call, stream)

    @checked
    def chat_tokens(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> list[int]:
        """The prompt of `chat` as token ids: messages through the model's template, tokenized."""
        messages = preparing.with_recipe(self, messages)
        return preparing.chat_tokens(self, messages, tools, variables, continue_final_message, chat_template)

    @overload
    def generate(
        self,
        prompts: PromptsOrChats,
        *,
        parse_special: bool = ...,
        progress: Callable[[int, int | None], object] | None = ...,
        as_completed: Literal[False] = ...,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompts: PromptsOrChats,
        *,
        parse_special: bool = ...,
        progress: Callable[[int, int | None], object] | None = ...,
        as_completed: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[tuple[int, Completion]]: ...
    @checked
    def generate(
        self,
        prompts: PromptsOrChats,
        *,
        parse_special: bool = False,
        progress: Callable[[int, int | None], object] | None = None,
        as_completed: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion] | Iterator[tuple[int, Completion]]:
        """Complete many prompts, or answer many chats (lists of messages), side by side; results are in order.

        Much faster than one after another, and common prefixes are computed once. `as_completed`: return an iterator
        over (number of the prompt, result), as they are done. Prompts may come from an iterator of any length: they are
        taken as sequences end, so that with `as_completed` memory stays bounded. `progress(done, total)` is called
        after each; total is None where it is not known. Options and errors as for `complete`; an error ends all.
        """
        from pyllm.llm.calls import batch

        total = None if is_iterator(prompts) else len(list(prompts))

        def call(prompt: Any) -> Call:
            if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
                return preparing.chat(self, "generate", prompt, None, None, None, options)
            return preparing.completion(self, "generate", prompt, parse_special, options)

        side = 2 * self._executable.options.max_seqs
        done = batch(self.engine, map(call, prompts), side, total, progress)
        return done if as_completed else [completion for _, completion in sorted(done, key=itemgetter(0))]

    @checked
    def logits(self, tokens: TokenIds) -> NDArray[np.float32]:
        """float32 [n_tokens, n_vocab]: row i holds the logits of the token after `tokens[i]`.

        The sequence starts at position 0. Raises ContextFullError, RequestError (an id outside the vocabulary).
        """
        return self.engine.logits(list(tokens))

    @checked
    def save_cache(self, path: FilePath, prompts: Prompts | None = None) -> CacheCounts:
        """Write the prefix cache to a file, so that `load_cache` spares a later process the prompts that it has read.

        The file holds all that the cache has in memory, answers included, or only the beginnings of `prompts`, as far
        as they are there; in whole pages of 32 tokens. It is replaced when it is complete. Requests go on meanwhile.
        Raises CacheError where it cannot be written, TokenizerError.
        """
        from pyllm.llm import saving

        wanted = None if prompts is None else [preparing.prompt_tokens(self, prompt, False) for prompt in prompts]
        return saving.save(self.engine, self._cache_layout, user_path(path), wanted)

    @checked
    def load_cache(self, path: FilePath) -> CacheCounts:
        """Read a file that `save_cache` wrote, as much as fits into the cache; what was used last comes first.

        Answers are the same as without it, to the bit. A damaged file costs a PyllmWarning, and what is whole in it is
        used. Raises CacheError where it is of another model, adapter, `kv_dtype`, device or version of pyllm, no such
        file, or cannot be read.
        """
        from pyllm.llm import saving

        return saving.load(self.engine, self._cache_layout, user_path(path))

    @cached_property
    def _cache_layout(self) -> Layout:
        from pyllm.llm import saving

        return saving.layout_of(self._file, self._adapters, self._compiled)

    def close(self) -> None:
        """Free weights, cache and threads, and close the files. Running requests end with ClosedError."""
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

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            "an LLM cannot be pickled or copied: its memory and threads are this process's own; hand on its path, and "
            "load the model there"
        )

    def __repr__(self) -> str:
        return f"<LLM {self.path.name}: {self.architecture.name}, {self.n_ctx} positions>"

    @checked
    def completing(self, prompt: Prompt, parse_special: bool, options: Mapping[str, Any]) -> Call:
        """A call of `complete`, ready to start; what `AsyncLLM` makes in a thread."""
        return preparing.completion(self, "complete", prompt, parse_special, options)

    @checked
    def chatting(
        self,
        messages: Messages,
        tools: Tools | None,
        variables: Mapping[str, Any] | None,
        truncate: Truncate | None,
        options: Mapping[str, Any],
        continue_final_message: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> Call:
        """A call of `chat`, ready to start; what `AsyncLLM` makes in a thread."""
        return preparing.chat(
            self, "chat", messages, tools, variables, truncate, options, continue_final_message, chat_template
        )

    def _run(self, call: Call, stream: Stream) -> Completion | CompletionStream | EventStream:
        from pyllm.llm.calls import whole

        if stream:
            reading = call.stream(self.engine)
            return EventStream(reading) if stream == "events" else CompletionStream(reading)
        return whole(call, call.start(self.engine))
