"""`AsyncLLM`: an `LLM` for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from pyllm.llm.model import LLM, Stream
from pyllm.llm.streams import AsyncCompletionStream, AsyncEventStream, Reading

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from pyllm.arguments import FilePath
    from pyllm.chat import ChatTemplate
    from pyllm.chat.messages import Messages, Tools
    from pyllm.config.options import GenerateOptions, LoadOptions
    from pyllm.llm.calls import Call
    from pyllm.llm.embedding import Ranked
    from pyllm.llm.history import Truncate
    from pyllm.llm.prompts import Prompt, PromptOrPrompts, Prompts
    from pyllm.llm.results import Completion
    from pyllm.llm.saving import CacheCounts


class AsyncLLM:
    """An `LLM` whose answers are awaited: `AsyncLLM(llm)`, or `await AsyncLLM.load(…)` with `pyllm.load`'s arguments.

        async with await AsyncLLM.load("qwen2.5-coder:0.5b") as llm:
            print((await llm.chat("Why is the sky blue?")).text)
            async for piece in llm.complete("Once upon a time", stream=True):
                print(piece, end="")

    Nothing blocks the event loop: prompts are tokenized in a thread, and steps are computed in the engine's. An answer
    starts when it is awaited, and is cancelled with the task that awaits it. Several event loops may use one model at
    once, and threads its `llm`.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        """The model itself, for all that need not be awaited."""

    @classmethod
    async def load(cls, model: FilePath, **options: Unpack[LoadOptions]) -> AsyncLLM:
        """Load a model in a thread; arguments and errors as `pyllm.load`."""
        from pyllm.llm.opening import load

        return cls(await asyncio.to_thread(load, model, **options))

    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = ...,
        parse_special: bool = ...,
        **options: Unpack[GenerateOptions],
    ) -> Coroutine[Any, Any, Completion]: ...
    @overload
    def complete(
        self, prompt: Prompt, *, stream: Literal[True], parse_special: bool = ..., **options: Unpack[GenerateOptions]
    ) -> AsyncCompletionStream: ...
    @overload
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Literal["events"],
        parse_special: bool = ...,
        **options: Unpack[GenerateOptions],
    ) -> AsyncEventStream: ...
    def complete(
        self,
        prompt: Prompt,
        *,
        stream: Stream = False,
        parse_special: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Coroutine[Any, Any, Completion] | AsyncCompletionStream | AsyncEventStream:
        """`LLM.complete`: to be awaited, or with `stream` an asynchronous iterator. Errors come where it is awaited."""
        return self._run(lambda: self.llm.completing(prompt, parse_special, options), stream)

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
    ) -> Coroutine[Any, Any, Completion]: ...
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
    ) -> AsyncCompletionStream: ...
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
    ) -> AsyncEventStream: ...
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
    ) -> Coroutine[Any, Any, Completion] | AsyncCompletionStream | AsyncEventStream:
        """`LLM.chat`: to be awaited, or with `stream` an asynchronous iterator. Errors come where it is awaited."""
        return self._run(
            lambda: self.llm.chatting(
                messages, tools, variables, truncate, options, continue_final_message, chat_template
            ),
            stream,
        )

    async def embed(
        self,
        text: PromptOrPrompts,
        *,
        pooling: Literal["mean", "cls", "last"] | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        prompt_name: str | None = None,
    ) -> NDArray[np.float32]:
        """`LLM.embed`, in a thread."""
        options = {"pooling": pooling, "normalize": normalize, "dimensions": dimensions, "prompt_name": prompt_name}
        return await asyncio.to_thread(partial(self.llm.embed, text, **options))

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, normalize: bool = True
    ) -> list[Ranked]:
        """`LLM.rerank`, in a thread."""
        return await asyncio.to_thread(self.llm.rerank, query, documents, top_n=top_n, normalize=normalize)

    async def classify(self, text: PromptOrPrompts) -> dict[str, float] | list[dict[str, float]]:
        """`LLM.classify`, in a thread."""
        return await asyncio.to_thread(self.llm.classify, text)

    async def save_cache(self, path: FilePath, prompts: Prompts | None = None) -> CacheCounts:
        """`LLM.save_cache`, in a thread."""
        return await asyncio.to_thread(self.llm.save_cache, path, prompts)

    async def load_cache(self, path: FilePath) -> CacheCounts:
        """`LLM.load_cache`, in a thread."""
        return await asyncio.to_thread(self.llm.load_cache, path)

    async def aclose(self) -> None:
        """`LLM.close`."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Async{repr(self.llm)[1:]}"

    def _run(
        self, make: Callable[[], Call], stream: Stream
    ) -> Coroutine[Any, Any, Completion] | AsyncCompletionStream | AsyncEventStream:
        if not stream:
            return self._whole(make)

        async def open_stream() -> Reading:
            return (await asyncio.to_thread(make)).stream(self.llm.engine)

        return AsyncEventStream(open_stream) if stream == "events" else AsyncCompletionStream(open_stream)

    async def _whole(self, make: Callable[[], Call]) -> Completion:
        from pyllm.llm.calls import whole_async

        call = await asyncio.to_thread(make)
        return await whole_async(call, call.start(self.llm.engine))
