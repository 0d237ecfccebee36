"""Streams as they are written: what waits is one write, in order, and nothing is held back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyllm.server.begun import Begun
from pyllm.server.live import COMMENT, EVENT_STREAM, Framing, Live


class Client:
    """Takes what is sent, one write at a time as long as it is slow."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            self.writes.append(message["body"])
            await self.reads.wait()


def live(frames: AsyncIterator[bytes], failed: list[BaseException], cut: bool = False) -> Live:
    framing = Framing(EVENT_STREAM, lambda: COMMENT, lambda problem: b"error " + problem.code.encode())
    return Live(frames, framing, ping_every=1000, failed=failed.append, cut=lambda: cut)


async def queued(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (frame := await queue.get()) is not None:
        yield frame


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def nothing() -> Any:
    raise AssertionError("nothing is received")


def test_what_waits_for_a_slow_client_is_one_write() -> None:
    async def run() -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        client, failed = Client(), []
        frames = [b"data: %d\n\n" % i for i in range(40)]
        task = asyncio.create_task(live(queued(queue), failed)({}, nothing, client.send))
        for frame in frames[:3]:
            queue.put_nowait(frame)
            await turns()
        assert client.writes == frames[:3]  # each at once
        client.reads.clear()
        for frame in frames[3:]:
            queue.put_nowait(frame)
            await turns()
        assert client.writes == frames[:4]
        client.reads.set()
        await turns()
        assert client.writes == [*frames[:4], b"".join(frames[4:])]
        queue.put_nowait(None)
        await task
        assert len(client.writes) == 5
        assert not failed

    asyncio.run(run())


def test_writes_are_bounded() -> None:
    async def frames() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    async def run() -> None:
        client = Client()
        await live(frames(), [])({}, nothing, client.send)
        assert sum(map(len, client.writes)) == 1_000_000
        assert max(map(len, client.writes)) < 80_000
        assert len(client.writes) < 20

    asyncio.run(run())


def test_an_error_comes_after_what_was_there_before_it() -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        raise ValueError

    async def run() -> None:
        client = Client()
        failed: list[BaseException] = []
        await live(frames(), failed)({}, nothing, client.send)
        assert b"".join(client.writes) == b"aberror internal_error"
        assert len(failed) == 1

    asyncio.run(run())


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_is_cancelled_ends_what_makes_its_frames(slow: bool, cut: bool) -> None:
    ended = []

    async def frames() -> AsyncIterator[bytes]:
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def run() -> None:
        client = Client()
        if slow:
            client.reads.clear()
        task = asyncio.create_task(live(frames(), [], cut)({}, nothing, client.send))
        await turns()
        task.cancel()
        if cut:
            client.reads.set()
            await task
            assert client.writes[-1] == b"error shutting_down"
        else:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ended == [True]

    asyncio.run(run())


def test_what_was_begun_gives_its_result_its_error_or_waits() -> None:
    async def at_once() -> int:
        return 1

    async def fails() -> int:
        raise KeyError("a")

    async def later(gate: asyncio.Event) -> int:
        await asyncio.sleep(0)
        await gate.wait()
        return 2

    async def run() -> None:
        assert (Begun(at_once()).done, await Begun(at_once())) == (True, 1)
        failing = Begun(fails())
        assert failing.done
        with pytest.raises(KeyError):
            await failing
        gate = asyncio.Event()
        waiting = Begun(later(gate))
        assert not waiting.done
        await turns()
        gate.set()
        assert await waiting == 2
        stopped = Begun(later(asyncio.Event()))
        await stopped.stop()
        await stopped.stop()
        assert stopped.done

    asyncio.run(run())
