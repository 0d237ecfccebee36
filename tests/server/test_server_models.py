"""`Models`, with a loader that loads nothing: what is loaded, for whom, and for how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pyllm.config.serving import ServeOptions
from pyllm.errors import ModelError, OutOfMemoryError
from pyllm.server.known import Known, Shelf
from pyllm.server.loader import Plan
from pyllm.server.models import Models, Served
from pyllm.server.problems import ProblemError

pytestmark = pytest.mark.usefixtures("no_models")


class Fake:
    """A model that is none."""

    devices = ("cpu",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Loader:
    """Loads fakes; each takes 10 of `free` bytes."""

    def __init__(self, free: int = 100) -> None:
        self.free = free
        self.fakes: list[Fake] = []
        self.errors: dict[str, list[Exception]] = {}
        """What loading a model raises, one after the other, before it works."""
        self.gate = threading.Event()
        """Loading waits for it."""
        self.gate.set()
        self.cancelled = False

    @property
    def names(self) -> list[str]:
        """Models in the order of their loading."""
        return [fake.name for fake in self.fakes]

    @property
    def open(self) -> list[str]:
        return [fake.name for fake in self.fakes if not fake.closed]

    def memory(self) -> dict[str, int]:
        return {"cpu": self.free}

    def cancel(self) -> None:
        self.cancelled = True

    def plan(self, known: Known, memory: Mapping[str, int]) -> Plan:
        return Plan(512, {"cpu": 10}, 512)

    def load(self, known: Known, plan: Plan) -> Any:
        assert self.gate.wait(60)
        if self.errors.get(known.name):
            raise self.errors[known.name].pop(0)
        self.fakes.append(Fake(known.name))
        return self.fakes[-1]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PYLLM_DATA", str(tmp_path / "data"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files a, b and c."""
    paths = [tmp_path / f"{name}.gguf" for name in "abc"]
    for path in paths:
        path.write_bytes(b"GGUF")
    return [str(path) for path in paths]


def play(
    files: list[str], loader: Loader, act: Callable[[Models], Awaitable[None]], begun: bool = False, **options: Any
) -> None:
    """Run `act` on models that are served; `begun`: those that were named are loaded at the start."""
    settings = ServeOptions(models=tuple(files), **options)

    async def run() -> None:
        models = Models(settings, Shelf(settings), loader)  # type: ignore[arg-type]
        if begun:
            await models.start()
        else:
            models._sweeper = asyncio.create_task(models._sweep())
        try:
            await act(models)
        finally:
            await models.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert loader.open == []


async def use(models: Models, name: str, keep_alive: float | None = None) -> Served:
    async with models.lease(name, keep_alive) as served:
        assert not served.llm.llm.closed  # type: ignore[attr-defined]
        return served


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def names(models: Models) -> list[str]:
    return [served.known.name for served in models.loaded]


async def refused(models: Models, name: str) -> ProblemError:
    with pytest.raises(ProblemError) as raised:
        await use(models, name)
    return raised.value


def test_a_model_is_loaded_when_it_is_first_asked_for(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        assert names(models) == []
        await use(models, "b")
        await use(models, "b")
        await use(models, "")  # the first is the default
        assert loader.names == ["b", "a"]
        assert (await refused(models, "d")).problem.status == 404

    play(files, loader, act)


def test_models_that_were_named_are_loaded_at_the_start_as_far_as_they_fit(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        assert models.starting
        await until(lambda: not models.starting)
        assert loader.names == ["c", "a"]
        assert [served.known.name for served in models.loaded if served.pinned] == ["c"]

    play(files, loader, act, begun=True, max_loaded=2, pinned=("c",))


@pytest.mark.parametrize("options", [{"max_loaded": 2}, {}], ids=["count", "memory"])
def test_the_model_unused_longest_goes_first(files: list[str], options: dict[str, Any]) -> None:
    loader = Loader(free=29)

    async def act(models: Models) -> None:
        await use(models, "a")
        await use(models, "b")
        await use(models, "a")
        await use(models, "c")
        assert names(models) == ["c", "a"]
        assert loader.open == ["a", "c"]

    play(files, loader, act, **options)


def test_pinned_models_stay(files: list[str]) -> None:
    async def act(models: Models) -> None:
        await use(models, "a")
        await use(models, "b")
        await use(models, "c")
        assert names(models) == ["c", "a"]
        await use(models, "a", keep_alive=0)
        await use(models, "c", keep_alive=0)
        await until(lambda: names(models) == ["a"])

    play(files, Loader(), act, max_loaded=2, pinned=("a",))


def test_a_model_that_nobody_uses_goes_when_its_time_is_over(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        served = await use(models, "a")
        assert served.seconds_left <= 0.02
        async with models.lease("b") as held:
            await until(lambda: names(models) == ["b"])
            assert held.seconds_left == float("inf")
        await until(lambda: not loader.open)

    play(files, loader, act, keep_alive=0.02)


def test_a_time_of_nothing_unloads_after_the_request_and_not_before(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        await asyncio.gather(*(use(models, "a") for _ in range(5)))
        await until(lambda: not models.loaded)
        assert loader.names == ["a"]

    play(files, loader, act, keep_alive=0)


def test_a_negative_time_is_for_good(files: list[str]) -> None:
    async def act(models: Models) -> None:
        served = await use(models, "a", keep_alive=-1)
        assert served.seconds_left == float("inf")
        await use(models, "b")
        await until(lambda: names(models) == ["a"])

    play(files, Loader(), act, keep_alive=0.01)


def test_requests_share_a_loading(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        served = await asyncio.gather(*(use(models, "a") for _ in range(9)))
        assert len(set(map(id, served))) == 1
        assert loader.names == ["a"]

    play(files, loader, act)


def test_a_request_that_goes_away_does_not_end_the_loading(files: list[str]) -> None:
    loader = Loader()
    loader.gate.clear()

    async def act(models: Models) -> None:
        gone, stays = (asyncio.create_task(use(models, "a")) for _ in range(2))
        await until(lambda: bool(models.loading))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        loader.gate.set()
        served = await stays
        assert served.n_users == 0
        assert loader.names == ["a"]

    play(files, loader, act)


def test_a_model_waits_while_all_others_are_used(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        async with models.lease("a"):
            waiting = asyncio.create_task(use(models, "b"))
            await until(lambda: bool(models.loading))
            await asyncio.wait({waiting}, timeout=0.05)
            assert not waiting.done()
            await use(models, "a")  # others go on
        await waiting
        assert loader.names == ["a", "b"]
        assert names(models) == ["b"]

    play(files, loader, act, max_loaded=1)


def test_two_models_with_room_for_one_are_each_loaded_once_for_many_requests(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        await asyncio.gather(*(use(models, name) for name in "ababab"))
        assert sorted(loader.names) == ["a", "b"]

    play(files, loader, act, max_loaded=1)


def test_a_failure_is_told_with_its_reason_for_that_model_alone(files: list[str]) -> None:
    loader = Loader()
    loader.errors["a"] = [ModelError("no such architecture")]

    async def act(models: Models) -> None:
        for found in await asyncio.gather(*(refused(models, "a") for _ in range(3))):
            assert found.problem.status == 503
            assert found.problem.code == "model_failed"
            assert found.problem.message == "a could not be loaded: no such architecture"
            assert 0 < (found.problem.retry_after or 0) <= 10
        await use(models, "b")
        assert names(models) == ["b"]

    play(files, loader, act)


def test_a_failed_model_is_tried_again_after_a_while_and_not_before(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader()
    loader.errors["a"] = [ModelError("first"), ModelError("second")]

    async def act(models: Models) -> None:
        for _ in range(5):
            assert "first" in (await refused(models, "a")).problem.message
        now = models._failed[models.shelf.find("a")][0]
        monkeypatch.setattr("pyllm.server.models.monotonic", lambda: now)
        assert "second" in (await refused(models, "a")).problem.message
        monkeypatch.setattr("pyllm.server.models.monotonic", lambda: now + 10)
        await use(models, "a")

    play(files, loader, act)


def test_a_fault_in_loading_is_logged_and_tells_clients_nothing_of_it(
    files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader()
    loader.errors["a"] = [NameError("secret"), NameError("again")]

    async def act(models: Models) -> None:
        with caplog.at_level("ERROR", "pyllm.server"):
            found = await refused(models, "a")
            assert found.problem.status == 500
            assert "secret" not in found.problem.message
            assert (await refused(models, "a")).problem.status == 500
        await use(models, "b")

    play(files, loader, act)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], NameError)


def test_memory_that_is_short_after_all_costs_unused_models(files: list[str]) -> None:
    loader = Loader()
    loader.errors["c"] = [OutOfMemoryError("cpu is full")]

    async def act(models: Models) -> None:
        await use(models, "a")
        await use(models, "b")
        await use(models, "c")
        assert names(models) == ["c", "b"]

    play(files, loader, act)


def test_what_failed_for_want_of_memory_is_tried_again_when_a_model_has_gone(files: list[str]) -> None:
    loader = Loader()
    loader.errors["b"] = [OutOfMemoryError("cpu is full")]

    async def act(models: Models) -> None:
        async with models.lease("a"):
            assert "cpu is full" in (await refused(models, "b")).problem.message
            assert "cpu is full" in (await refused(models, "b")).problem.message
        await models.unload("a")
        await until(lambda: not models.loaded)
        await use(models, "b")

    play(files, loader, act)


def test_unloading_waits_for_those_that_use_a_model(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        assert await models.unload("a") is False
        async with models.lease("a") as served:
            assert await models.unload("a") is True
            await asyncio.sleep(0.02)
            assert names(models) == ["a"]
            assert served.n_users == 1
        await until(lambda: not loader.open)
        with pytest.raises(ProblemError, match="there is no model 'd' here; there are: a, b, c"):
            await models.unload("d")

    play(files, loader, act, pinned=("a",))


def test_the_end_closes_what_is_being_loaded_and_refuses_those_that_wait(files: list[str]) -> None:
    loader = Loader()
    loader.gate.clear()

    async def act(models: Models) -> None:
        waiting = [asyncio.create_task(refused(models, name)) for name in "aab"]
        await until(lambda: len(models.loading) == 2)
        closing = asyncio.create_task(models.close())
        for found in await asyncio.gather(*waiting):
            assert found.problem.code == "shutting_down"
        assert not closing.done()
        assert loader.cancelled
        loader.gate.set()  # a loading that cannot be cancelled
        await closing
        assert loader.names == ["a"]
        assert loader.open == []

    play(files, loader, act)


def test_what_has_a_model_goes_on_while_the_server_ends(files: list[str]) -> None:
    loader = Loader()

    async def act(models: Models) -> None:
        async with models.lease("a"):
            models.drain()
            await use(models, "a")
            assert (await refused(models, "b")).problem.code == "shutting_down"
        assert loader.names == ["a"]

    play(files, loader, act)


def test_the_end_does_not_wait_for_room(files: list[str]) -> None:
    async def act(models: Models) -> None:
        async with models.lease("a"):
            waiting = asyncio.create_task(refused(models, "b"))
            await until(lambda: bool(models.loading))
            await models.close()
            assert (await waiting).problem.code == "shutting_down"

    play(files, Loader(), act, max_loaded=1)
