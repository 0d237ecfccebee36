"""`LLM`: a loaded model that completes, chats, embeds and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from pyllm.arguments import TokenIds, checked
from pyllm.chat.messages import Messages, Tools
from pyllm.errors import RequestError, TokenizerError
from pyllm.llm.history import Truncate, room_for_answer, shortened
from pyllm.llm.loading import (
    Compiled,
    TokenizerLoader,
)
from pyllm.llm.prompts import Prompt, PromptOrPrompts, Prompts
from pyllm.llm.results import Completion, CompletionStream
from pyllm.llm.settings import GenerateOptions, GenerateSettings

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from pyllm.chat import ChatTemplate
    from pyllm.engine import Engine
    from pyllm.gguf import GGUFFile
    from pyllm.llm.adapters import Adapter
    from pyllm.tokenizers import Tokenizer

_OF_TEMPLATES = ("self", "messages", "tools", "special_in_messages")
"""Names that cannot be variables of a chat template, because they are arguments of its rendering."""


class LLM:
    """A loaded model, made by `pyllm.load`. Use it in a `with` block, or `close` it.

    All methods may be called from several threads at once; their requests then share steps. The waiting threads
    compute; there is no background thread.
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
        """Layers with a part on a GPU, the output counted as one: up to `architecture.n_layers` + 1."""
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
        """Replace the model's template: `ChatTemplate({"default": text}, llm.tokenizer)`."""
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
    @checked
    def complete(
        self, prompt: Prompt, *, stream: bool = False, parse_special: bool = False, **options: Unpack[GenerateOptions]
    ) -> Completion | CompletionStream:
        """Continue a text as it is, without a chat template; at most 256 tokens, unless `max_tokens` is given.

        `stream`: return an iterator over pieces of text. `parse_special`: text such as `<|im_start|>` means that token.
        `options`: see `GenerateOptions`. Raises RequestError, ContextFullError, TokenizerError.
        """
        settings = GenerateSettings.of("complete", 256, options)
        running = self._start(self._encode(prompt, parse_special), settings, continues=bool(prompt))
        return running if stream else running.result

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = ...,
        tools: Tools | None = ...,
        variables: Mapping[str, Any] | None = ...,
        truncate: Truncate | None = ...,
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
        **options: Unpack[GenerateOptions],
    ) -> CompletionStream: ...
    @checked
    def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        tools: Tools | None = None,
        variables: Mapping[str, Any] | None = None,
        truncate: Truncate | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion | CompletionStream:
        """Answer the last of `messages` ({"role": …, "content": …}; a text alone is one message of the user).

        The answer ends when the model is done or the context is full, or after `max_tokens`. `tools` and `variables`
        are passed to the model's template. `truncate="oldest"`: where the messages leave no room for an answer, the
        oldest turns are left out (a message of the user with its answers), but never the system's messages nor the last
        turn; the result's `n_dropped` counts the messages left out. The room for an answer is `max_tokens`, at most
        half the context; without `max_tokens` a quarter. `stream`, `options`: as for `complete`. Raises RequestError
        (no chat template), TemplateError, ContextFullError (the messages alone are too long), TokenizerError.
        """
        settings = GenerateSettings.of("chat", None, options)
        encode = partial(self._encode_chat, tools=tools, variables=variables)
        n_dropped = 0
        if truncate is None:
            tokens = encode(messages)
        else:
            room = room_for_answer(self.engine.n_ctx, settings.max_tokens)
            assert isinstance(messages, list)
            tokens, n_dropped = shortened(messages, self.engine.n_ctx - room, encode)
        running = self._start(tokens, settings, continues=False, n_dropped=n_dropped)
        return running if stream else running.result

    @checked
    def chat_tokens(
        self, messages: Messages, *, tools: Tools | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """The prompt of `chat` as token ids: messages through the model's template, tokenized."""
        return self._encode_chat(messages, tools, variables)

    @checked
    def generate(
        self, prompts: Prompts, *, parse_special: bool = False, **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Complete several prompts side by side, much faster than one by one; results are in order.

        Common prefixes are computed once. More than `max_seqs` prompts are queued. Options and errors as for
        `complete`; an error in one prompt ends all.
        """
        settings = GenerateSettings.of("generate", 256, options)
        tokens = [self._encode(prompt, parse_special) for prompt in prompts]
        running: list[CompletionStream] = []
        try:
            for prompt, ids in zip(prompts, tokens, strict=True):
                running.append(self._start(ids, settings, continues=bool(prompt)))
            waiting = list(reversed(running))
            active: list[CompletionStream] = []
            while active or waiting:
                # Only running ones are asked: asking a waiting one would let the others run on
                # past their stop strings.
                while waiting and len(active) < self._executable.options.max_seqs:
                    active.append(waiting.pop())
                active = [s for s in active if s.advance() is not None]
        finally:
            for stream in running:
                stream.close()
        return [stream.result for stream in running]

    @checked
    def logits(self, tokens: TokenIds) -> NDArray[np.float32]:
        """float32 [n_tokens, n_vocab]: row i holds the logits of the token after `tokens[i]`.

        The sequence starts at position 0. Raises ContextFullError, RequestError (an id outside the vocabulary).
        """
        return self.engine.logits(list(tokens))

    @checked
    def embed(self, text: PromptOrPrompts, *, normalize: bool = True) -> NDArray[np.float32]:
        """Embedding of a text, float32 [n_embd], or of several, [n_texts, n_embd].

        The mean of the final normed hidden states of all tokens (BOS included, where the model adds one), scaled to
        length 1 unless `normalize` is False. Token ids are accepted in place of text.
        """
        import numpy as np

        if isinstance(text, str) or (isinstance(text, list) and text and isinstance(text[0], int)):
            return self._embed_one(text, normalize)
        rows = [self._embed_one(one, normalize) for one in text]  # type: ignore[arg-type]
        return np.stack(rows) if rows else np.empty((0, self.n_embd), np.float32)

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

    def _encode(self, prompt: Prompt, parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True, parse_special=parse_special)
        return list(prompt)

    def _encode_chat(self, messages: Messages, tools: Tools | None, variables: Mapping[str, Any] | None) -> list[int]:
        template = self.chat_template
        if template is None:
            raise RequestError(f"{self.path.name} has no chat template; use complete()")
        if not messages:
            raise RequestError("messages must hold one message at least, which is to be answered")
        if taken := [name for name in variables or () if name in _OF_TEMPLATES]:
            raise RequestError(f"variables must not hold {taken[0]!r}, which is an argument of its own")
        return template.encode(messages, tools=tools, **(variables or {}))

    def _start(
        self, tokens: list[int], settings: GenerateSettings, continues: bool, n_dropped: int = 0
    ) -> CompletionStream:
        from pyllm.engine import GenerationRequest

        tokenizer = self.tokenizer if self.has_tokenizer else None
        if tokenizer is None and settings.stop:
            raise RequestError("stop strings need a tokenizer, and this model has none that is usable")
        request = GenerationRequest(
            tokens=tokens,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop_ids=frozenset() if tokenizer is None or settings.ignore_eos else tokenizer.stop_ids,
            logprobs=settings.logprobs,
            context_shift=settings.context_shift,
            n_keep=settings.n_keep,
        )
        return CompletionStream(self.engine.submit(request), tokenizer, settings, continues, n_dropped)

    def _embed_one(self, prompt: Prompt, normalize: bool) -> NDArray[np.float32]:
        import numpy as np

        tokens = self._encode(prompt, parse_special=False)
        if not tokens:
            raise RequestError("an empty text has no embedding with this model")
        mean = self.engine.hidden(tokens).mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean)) if normalize else 1.0
        return (mean / (length or 1.0)).astype(np.float32)
