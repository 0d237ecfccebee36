"""`Models`: which models are loaded, for whom, and for how long. A request holds a lease while it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic, time
from typing import TYPE_CHECKING

from pyllm.config.serving import ServeOptions
from pyllm.errors import OutOfMemoryError, PyllmError
from pyllm.llm.asynchronous import AsyncLLM
from pyllm.llm.recipes import template_of
from pyllm.server.known import Known, Shelf
from pyllm.server.logs import complain, say
from pyllm.server.problems import ENDING, Problem, ProblemError
from pyllm.units import size

if TYPE_CHECKING:
    from pyllm.chat import ChatTemplate
    from pyllm.server.loader import Loader, Plan

MAX_TEMPLATES = 16
"""Of a model, kept ready."""
FAILED_FOR = 10.0
"""Seconds for which a model that could not be loaded is refused without another try."""


@dataclass(eq=False, slots=True)
class Served:
    """A loaded model."""

    known: Known
    llm: AsyncLLM
    plan: Plan
    pinned: bool
    keep_alive: float
    loaded_at: float = field(default_factory=time)
    """Unix seconds."""
    n_users: int = 0
    """Requests that hold it."""
    used_at: float = field(default_factory=monotonic)
    names: set[str] = field(default_factory=set)
    """By which it was asked for: its own, and those of named models that are made of it."""
    templates: dict[str, ChatTemplate] = field(default_factory=dict)
    """Chat templates of requests and named models, by their texts; the one used last comes last."""

    @property
    def expires_at(self) -> float:
        """When it is unloaded if nobody uses it, on `monotonic`'s clock."""
        return math.inf if self.pinned or self.n_users or self.keep_alive < 0 else self.used_at + self.keep_alive

    def template(self, text: str) -> ChatTemplate | None:
        """A chat template in place of the model's own; None for "". Raises TemplateError."""
        if not text.strip():
            return None
        found = self.templates.pop(text, None) or template_of(text, self.llm.llm.tokenizer)
        self.templates[text] = found
        while len(self.templates) > MAX_TEMPLATES:
            self.templates.pop(next(iter(self.templates)), None)
        return found

    @property
    def seconds_left(self) -> float:
        """Seconds until then; infinite while it is used."""
        return max(0.0, self.expires_at - monotonic())


class Models:
    """Loads models when they are first asked for, and unloads the one unused longest when another needs its place."""

    def __init__(self, options: ServeOptions, shelf: Shelf, loader: Loader) -> None:
        self._options = options
        self.shelf = shelf
        self._loader = loader
        self._loaded: dict[Known, Served] = {}
        self._loading: dict[Known, asyncio.Task[Problem | None]] = {}
        self._failed: dict[Known, tuple[float, Problem]] = {}
        """What could not be loaded: until when it is refused, and why."""
        self._claims: Counter[Known] = Counter()
        """Requests that wait for a model. It stays until they have it, whatever its time."""
        self._one = asyncio.Lock()
        """One model is loaded at a time."""
        self._changed = asyncio.Event()
        """A model was released, loaded or unloaded."""
        self._memory: Mapping[str, int] = loader.memory()
        self._sweeper: asyncio.Task[None] | None = None
        self._starter: asyncio.Task[None] | None = None
        self.starting = True
        """Models that are loaded at the start are not all there yet."""
        self._ends = asyncio.Event()
        """Nothing is loaded any more."""
        self._closed = False

    async def start(self) -> None:
        """Begin to load the models that were named, and to unload those that nobody uses."""
        self._sweeper = asyncio.create_task(self._sweep())
        self._starter = asyncio.create_task(self._load_first())

    def drain(self) -> None:
        """Load nothing any more: what waits for a model that is not there is refused, what has one goes on."""
        self._ends.set()
        self._loader.cancel()
        self._wake()

    async def started(self) -> None:
        """Wait for what is loaded at the start, as far as it could be."""
        if self._starter is not None:
            await asyncio.shield(self._starter)

    async def close(self) -> None:
        """Unload all. Answers under way end with ClosedError."""
        self._closed = True
        self.drain()
        if self._starter is not None:
            self._starter.cancel()
        # What is being loaded or unloaded is in a thread, which cannot be cancelled.
        tasks = [task for task in (self._sweeper, self._starter) if task is not None]
        await asyncio.gather(*tasks, *self._loading.values(), return_exceptions=True)
        for served in list(self._loaded.values()):
            await self._unload(served)

    @property
    def loaded(self) -> list[Served]:
        """Loaded models, the one used last first."""
        return sorted(self._loaded.values(), key=lambda served: -served.used_at)

    @property
    def loading(self) -> list[Known]:
        """Models that are being loaded."""
        return list(self._loading)

    @contextlib.asynccontextmanager
    async def lease(self, model: str | Known, keep_alive: float | None = None) -> AsyncIterator[Served]:
        """Hold a model, by its name, "" for the default, loaded first if need be; afterwards it stays for `keep_alive`
        seconds (None: as the server is set; negative: for good).

        Raises ProblemError: 404 for an unknown name, 503 where the model cannot be loaded.
        """
        known = model if isinstance(model, Known) else self.shelf.find(model)
        served = await self._taken(self.shelf.weights(known))
        served.names.add(known.name)
        try:
            yield served
        finally:
            served.n_users -= 1
            served.used_at = monotonic()
            if keep_alive is not None:
                served.keep_alive = keep_alive
            self._wake()

    async def unload(self, name: str) -> bool:
        """Unload a model when its last request has ended; whether it was loaded. Raises ProblemError (404)."""
        served = self._loaded.get(self.shelf.weights(self.shelf.find(name)))
        if served is None:
            return False
        served.pinned = False
        served.keep_alive = 0.0
        self._wake()
        return True

    async def _taken(self, known: Known) -> Served:
        """A model with one user more, loaded first if need be. Raises ProblemError."""
        self._claims[known] += 1
        try:
            served = await self._get(known)
            served.n_users += 1
            return served
        finally:
            self._claims[known] -= 1
            if not self._claims[known]:
                del self._claims[known]
            self._wake()

    async def _get(self, known: Known) -> Served:
        while True:
            if (served := self._loaded.get(known)) is not None and not self._closed:
                return served
            if self._ends.is_set():
                raise ProblemError(ENDING)
            if (failed := self._failed.get(known)) is not None and (left := failed[0] - monotonic()) > 0:
                raise ProblemError(replace(failed[1], retry_after=left))
            task = self._loading.get(known)
            if task is None:
                task = self._loading[known] = asyncio.create_task(self._load(known))
            # A request that goes away does not end the loading, which others may wait for.
            ends = asyncio.create_task(self._ends.wait())
            try:
                await asyncio.wait({task, ends}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ends.cancel()
            if task.done() and (problem := task.result()) is not None:
                raise ProblemError(problem)

    async def _load(self, known: Known) -> Problem | None:
        """Load a model; what kept it from that, if something did."""
        self._failed.pop(known, None)
        try:
            async with self._one:
                await self._make_room_and_load(known)
            return None
        except ProblemError as error:
            return error.problem
        except PyllmError as error:
            problem = Problem(503, "model_failed", f"{known.name} could not be loaded: {error}", "model", FAILED_FOR)
            say("not loaded", model=known.name, reason=str(error))
        except Exception as error:
            text = f"{known.name} could not be loaded; the server's log says why"
            problem = Problem(500, "internal_error", text, "model")
            complain("not loaded", error, model=known.name)
        finally:
            del self._loading[known]
            self._wake()
        self._failed[known] = (monotonic() + FAILED_FOR, problem)
        return problem

    async def _make_room_and_load(self, known: Known) -> None:
        plan = await asyncio.to_thread(self._loader.plan, known, self._memory)
        await self._make_room(plan)
        began = monotonic()
        while True:
            if self._ends.is_set():
                raise ProblemError(ENDING)
            try:
                llm = await asyncio.to_thread(self._loader.load, known, plan)
                break
            except OutOfMemoryError:
                # Other programs took memory since the start.
                if (victim := self._unused()) is None:
                    raise
                await self._unload(victim)
        pinned = known in self._pinned()
        served = self._loaded[known] = Served(known, AsyncLLM(llm), plan, pinned, self._options.keep_alive)
        _say_loaded(served, monotonic() - began, self._options.n_ctx)

    async def _make_room(self, plan: Plan) -> None:
        """Unload the models unused longest until the plan fits; wait for requests where all are used."""
        while not self._fits(plan):
            if (victim := self._unused()) is not None:
                await self._unload(victim)
                continue
            if not any(self._is_held(served) for served in self._loaded.values()):
                return  # pinned models alone are left; the loading says what is missing
            if self._ends.is_set():
                raise ProblemError(ENDING)
            self._changed.clear()
            await self._changed.wait()

    def _fits(self, plan: Plan) -> bool:
        if not self._loaded:
            return True
        if self._options.max_loaded is not None and len(self._loaded) >= self._options.max_loaded:
            return False
        for device, free in self._memory.items():
            held = sum(served.plan.needs.get(device, 0) for served in self._loaded.values())
            if held + plan.needs.get(device, 0) > free:
                return False
        return True

    def _unused(self) -> Served | None:
        """The model unused longest, but for those that are pinned."""
        free = [served for served in self._loaded.values() if not self._is_held(served) and not served.pinned]
        return min(free, key=lambda served: served.used_at, default=None)

    def _is_held(self, served: Served) -> bool:
        return served.n_users > 0 or served.known in self._claims

    async def _unload(self, served: Served) -> None:
        del self._loaded[served.known]
        self._failed.clear()  # there is more memory now
        say("unloaded", model=served.known.name)
        await served.llm.aclose()
        self._wake()

    async def _sweep(self) -> None:
        """Unload models whose time is over, until the end."""
        while not self._closed:
            self._changed.clear()
            for served in list(self._loaded.values()):
                if served.expires_at <= monotonic() and not self._is_held(served):
                    await self._unload(served)
            free = [served for served in self._loaded.values() if not self._is_held(served)]
            following = min((served.expires_at for served in free), default=math.inf)
            seconds = None if following == math.inf else max(0.0, following - monotonic())
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with its result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    async def _load_first(self) -> None:
        """Load pinned models and those that were named, as far as they fit beside each other."""
        try:
            wanted = self._pinned()
            if self._options.keep_alive != 0:  # else they would not stay
                wanted += [known for known in self._named() if known not in wanted]
            for known in wanted[: self._options.max_loaded or len(wanted)]:
                with contextlib.suppress(ProblemError):
                    await self._get(known)
        finally:
            self.starting = False

    def _pinned(self) -> list[Known]:
        return [self.shelf.weights(known) for known in self.shelf.pinned]

    def _named(self) -> list[Known]:
        return [self.shelf.weights(known) for known in self.shelf.given]

    def _wake(self) -> None:
        self._changed.set()


def _say_loaded(served: Served, seconds: float, asked: int | None) -> None:
    """Log what was loaded; and why its context is less than trained, if it is."""
    plan = served.plan
    more = {}
    if plan.n_ctx < plan.trained:
        more["note"] = "the context is as --ctx says" if asked else "memory allows no longer context"
    say(
        "loaded",
        model=served.known.name,
        seconds=round(seconds, 2),
        context=plan.n_ctx,
        trained=plan.trained,
        **more,
        memory={device: size(n) for device, n in plan.needs.items()},
        devices=",".join(served.llm.llm.devices),
    )
