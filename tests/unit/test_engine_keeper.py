"""An engine whose prefix cache is kept in a folder: what another process finds there, and that nothing else changes.

The fake executable's logits depend on the content of each page, so a wrong one shows in the next token.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FakeExecutable, PausingExecutable, expected_greedy, submit_all
from test_engine_stress import read

from pyllm.cache import CacheFolder, Layout
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import PyllmWarning

N_VOCAB = 50
PAGE = 4
LAYOUT = Layout({"model": "fake"}, PAGE, 4 * PAGE)
GREEDY = SamplingParams(temperature=0)
PROMPT = [*range(4 * PAGE + 1)]

Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes engines that share a folder, and closes them."""
    made: list[Engine] = []

    def one(kind: type[FakeExecutable] = FakeExecutable, folder: bool = True, **options: int) -> Engine:
        kept = CacheFolder(tmp_path / "cache", 1 << 30, LAYOUT) if folder else None
        made.append(Engine(kind(N_VOCAB, **options), n_ctx=200, n_vocab=N_VOCAB, folder=kept))
        return made[-1]

    yield one
    for engine in made:
        engine.close()


def ask(engine: Engine, prompt: list[int], n: int = 3) -> int:
    """Check an answer; returns the tokens of the prompt that were not computed."""
    generation = engine.submit(GenerationRequest(prompt, GREEDY, max_tokens=n, unread=None))
    assert [token.id for token in generation] == expected_greedy(prompt, n, N_VOCAB)
    engine.check()
    return generation.n_cached


def executable(engine: Engine) -> Any:
    return engine.executable


def test_another_engine_reads_what_one_has_kept(make: Make) -> None:
    one = make()
    assert ask(one, PROMPT) == 0
    one.close()
    other = make()
    assert ask(other, PROMPT) == 4 * PAGE
    assert executable(other).n_written == 4
    assert ask(other, [*PROMPT[: 2 * PAGE], *reversed(PROMPT)]) == 2 * PAGE
    assert ask(other, [*PROMPT, 1, 2, 3]) == 4 * PAGE
    assert executable(other).n_written == 4, "what is in memory is not read again"


def test_answers_are_kept_too(make: Make) -> None:
    one = make()
    ask(one, PROMPT, 20)
    one.close()
    history = [*PROMPT, *expected_greedy(PROMPT, 20, N_VOCAB)]
    assert ask(make(), [*history, 7]) == (len(history) - 1) // PAGE * PAGE


def test_what_is_kept_is_there_before_the_end(make: Make, tmp_path: Path) -> None:
    engine = make()
    ask(engine, PROMPT)
    for _ in range(1000):
        if len(list(tmp_path.glob("cache/*/*.page"))) == 4:
            break
        threading.Event().wait(0.01)
    else:
        raise AssertionError("an idle engine does not write")
    assert ask(make(), PROMPT) == 4 * PAGE


def test_pages_that_were_read_are_not_written_again(make: Make) -> None:
    one = make()
    ask(one, PROMPT)
    one.close()
    other = make()
    ask(other, PROMPT)
    other.close()
    assert executable(other).n_read == 0


def test_damage_costs_a_warning_and_the_computation(make: Make, tmp_path: Path) -> None:
    one = make()
    ask(one, PROMPT)
    one.close()
    (path,) = tmp_path.glob("cache/*/000002-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(PyllmWarning, match="is damaged"):
        assert ask(make(), PROMPT) == 2 * PAGE


def test_a_folder_that_vanishes_costs_nothing_but_the_computation(make: Make, tmp_path: Path) -> None:
    one = make()
    ask(one, PROMPT)
    one.close()
    other = make()
    for path in [*tmp_path.glob("cache/*/*"), *tmp_path.glob("cache/*")]:
        path.rmdir() if path.is_dir() else path.unlink()

    def use() -> None:
        assert ask(other, PROMPT) == 0
        other.close()

    with pytest.warns(PyllmWarning, match="is not written"):
        use()


def test_many_prompts_wait_for_the_folder_together(make: Make) -> None:
    prompts = [[*range(i, i + 3 * PAGE + 2)] for i in range(8)]
    one = make(n_pages=200)
    for prompt in prompts:
        ask(one, prompt)
    one.close()
    other = make(n_pages=200)
    generations = submit_all(other, [GenerationRequest(p, GREEDY, max_tokens=4, unread=None) for p in prompts])
    for prompt, generation in zip(prompts, generations, strict=True):
        assert [token.id for token in generation] == expected_greedy(prompt, 4, N_VOCAB)
        assert generation.n_cached == 3 * PAGE
    other.check()


def test_a_prompt_larger_than_what_is_free_is_read_as_far_as_it_fits(make: Make) -> None:
    one = make()
    ask(one, [*PROMPT, *PROMPT])
    one.close()
    other = make(n_pages=12)
    busy = other.submit(GenerationRequest([3] * 9, GREEDY, max_tokens=100, unread=1))
    next(busy)
    assert ask(other, [*PROMPT, *PROMPT], 1) <= 8 * PAGE
    busy.cancel()
    other.check()


def test_a_cancelled_prompt_does_not_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    ask(one, PROMPT)
    one.close()
    held, let_go = threading.Event(), threading.Event()
    read_pages = CacheFolder.read

    def slow(self: CacheFolder, *given: Any) -> Iterator[Any]:
        for page in read_pages(self, *given):
            held.set()
            assert let_go.wait(60)
            yield page

    monkeypatch.setattr(CacheFolder, "read", slow)
    other = make()
    waiting = other.submit(GenerationRequest(PROMPT, GREEDY, max_tokens=3, unread=None))
    assert held.wait(60)
    assert other.load().n_waiting == 1
    assert ask(other, [9, 9]) == 0, "others do not wait"
    waiting.cancel()
    assert waiting.finish_reason == "cancelled"
    other.check()
    let_go.set()
    assert ask(other, PROMPT) == 4 * PAGE


def test_closing_while_a_prompt_is_read(make: Make) -> None:
    one = make()
    ask(one, PROMPT)
    one.close()
    for _ in range(10):
        other = make()
        other.submit(GenerationRequest(PROMPT, GREEDY, max_tokens=3, unread=None))
        other.close()


@pytest.mark.parametrize("kind", [FakeExecutable, PausingExecutable])
@pytest.mark.parametrize("n_pages", [30, 200])
def test_many_streams_beside_the_folder(make: Make, kind: type[FakeExecutable], n_pages: int) -> None:
    for seed in range(2):
        engine = make(kind, n_pages=n_pages)
        failures: list[BaseException] = []

        def reader(number: int, engine: Engine = engine, failures: list[BaseException] = failures) -> None:
            try:
                read(engine, number, 12)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=reader, args=(10 * seed + i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            engine.check()
            threading.Event().wait(random.Random(seed).uniform(0, 0.01))
        for thread in threads:
            thread.join(300)
        assert not failures
        engine.check()
        engine.close()
