"""`AsyncLLM` over a tiny model on the reference backend: the same answers as `LLM`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyllm
from arch_models import ArchModel
from pyllm.llm.events import Finish

MODEL = ArchModel.load("llama-dense")
PROMPTS = [MODEL.tokens[: 4 + 3 * i] for i in range(6)]


@pytest.fixture(scope="module")
def llm(arch_file: Callable[[str], Path]) -> Iterator[pyllm.LLM]:
    with pyllm.load(arch_file("llama-dense"), backend="reference", n_ctx=128, kv_dtype="f32", max_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: pyllm.LLM) -> list[tuple[int, ...]]:
    return [llm.complete(p, max_tokens=6, temperature=0).tokens for p in PROMPTS]


def test_awaited_side_by_side(llm: pyllm.LLM, alone: list[tuple[int, ...]]) -> None:
    model = pyllm.AsyncLLM(llm)

    async def main() -> list[pyllm.Completion]:
        return await asyncio.gather(*(model.complete(p, max_tokens=6, temperature=0) for p in PROMPTS))

    for _ in range(2):  # one event loop after the other
        assert [r.tokens for r in asyncio.run(main())] == alone


def test_streams(llm: pyllm.LLM, alone: list[tuple[int, ...]]) -> None:
    model = pyllm.AsyncLLM(llm)

    async def main() -> None:
        streams = [model.complete(p, max_tokens=6, temperature=0, stream="events") for p in PROMPTS]
        for stream, tokens in zip(streams, alone, strict=True):
            async with stream:
                events = [event async for event in stream]
            result = await stream.result()
            assert events[-1] == Finish("length", result.usage)
            assert result.tokens == tokens
        text = model.complete(PROMPTS[0], max_tokens=6, temperature=0, stream=True)
        assert [piece async for piece in text] == []
        assert (await text.result()).tokens == alone[0]

    asyncio.run(main())


def test_a_cancelled_task_frees_its_pages(llm: pyllm.LLM) -> None:
    model = pyllm.AsyncLLM(llm)

    async def main() -> None:
        tasks = [asyncio.create_task(model.complete(p, max_tokens=100, ignore_eos=True)) for p in PROMPTS]
        stream = model.complete(PROMPTS[0], max_tokens=100, stream="events")
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.05)
        for task in (*tasks, reading):
            task.cancel()
        results = await asyncio.gather(*tasks, reading, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError | pyllm.Completion) or r is not None for r in results)
        await stream.aclose()

    asyncio.run(main())
    llm.engine.check()
    assert not llm.engine.scheduler.running


def test_errors_come_where_it_is_awaited(llm: pyllm.LLM) -> None:
    model = pyllm.AsyncLLM(llm)

    async def main() -> None:
        for wrong in ([llm.n_vocab], [1] * 500):
            with pytest.raises(pyllm.RequestError):
                await model.complete(wrong)
            with pytest.raises(pyllm.RequestError):
                async for _ in model.complete(wrong, stream=True):
                    pass
        with pytest.raises(pyllm.RequestError, match="topk"):
            await model.complete([1], topk=3)  # type: ignore[call-overload]
        with pytest.raises(pyllm.TokenizerError):
            await model.chat("Hello")
        assert (await model.embed([[1, 2], [3]])).shape == (2, llm.n_embd)

    asyncio.run(main())


def test_load_and_close(arch_file: Callable[[str], Path]) -> None:
    async def main() -> None:
        async with await pyllm.AsyncLLM.load(arch_file("llama-dense"), backend="reference", n_ctx=64) as model:
            assert repr(model).startswith("<AsyncLLM llama-dense.gguf")
            assert len((await model.complete([1, 2], max_tokens=3, ignore_eos=True)).tokens) == 3
        with pytest.raises(pyllm.ClosedError):
            await model.complete([1, 2])

    asyncio.run(main())
