"""Many streams for minutes, with cancels, slow readers and deadlines: answers, pages and memory are checked.

    python benchmarks/streams.py -m MODEL [--minutes 10] [-s 64] [-t 2]

Greedy answers must be those that each prompt gets alone, as far as they were read; at the end no page is held. Prints
memory of the process every tenth of the time; `growth` compares the last with the first after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from time import monotonic

import pyllm
from pyllm.jit.memory import resident
from pyllm.jit.processors import default_threads

TOPICS = ("whales", "clocks", "bread", "volcanoes", "chess", "rivers", "glass", "bees")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("-s", "--streams", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=default_threads())
    a = parser.parse_args()
    prompts = [
        f"{verb} {topic}" for verb in ("Tell me about", "Who knows", "A poem on", "Why are there") for topic in TOPICS
    ]
    with pyllm.load(a.model, n_ctx=512, n_threads=a.threads, backend="cpu") as llm:
        alone = {p: llm.complete(p, max_tokens=48, temperature=0, ignore_eos=True).tokens for p in prompts}
        asyncio.run(run(llm, alone, a.streams, a.minutes * 60))
        llm.engine.check()
        assert llm.engine.pool.n_available == llm.engine.pool.n_pages, "pages are still held"


async def run(llm: pyllm.LLM, alone: dict[str, tuple[int, ...]], n_streams: int, seconds: float) -> None:
    model, end = pyllm.AsyncLLM(llm), monotonic() + seconds
    count = {"whole": 0, "left": 0, "cancelled": 0, "timeout": 0}

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        while monotonic() < end:
            prompt, n = rng.choice(list(alone)), rng.randrange(1, 49)
            timeout = rng.choice([None, None, None, 0.5])
            stream = model.complete(
                prompt, stream="events", max_tokens=n, temperature=0, ignore_eos=True, timeout=timeout
            )
            how = rng.choice(["whole", "whole", "left", "cancelled", "slow"])
            try:
                async with asyncio.timeout(rng.random() if how == "cancelled" else None), stream:
                    async for _ in stream:
                        if how == "slow":
                            await asyncio.sleep(0.05)
                        elif how == "left" and rng.random() < 0.1:
                            break
            except TimeoutError:
                count["cancelled"] += 1
                continue
            result = await stream.result()
            assert result.tokens == alone[prompt][: len(result.tokens)], f"{prompt!r} got other tokens than alone"
            kind = {"length": "whole", "timeout": "timeout"}.get(result.finish_reason, "left")
            assert kind != "whole" or len(result.tokens) == n
            count[kind] += 1

    async def watch() -> None:
        first = 0
        for tenth in range(10):
            await asyncio.sleep(seconds / 10)
            first = first or resident()
            print(f"{(tenth + 1) * seconds / 10:6.0f} s {resident() >> 20} MiB {count}", flush=True)
        print(f"growth {resident() / first - 1:+.2%}")

    await asyncio.gather(watch(), *(client(i) for i in range(n_streams)))


if __name__ == "__main__":
    main()
