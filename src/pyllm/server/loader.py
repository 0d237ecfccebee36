"""Loads models for a server: what one takes, with which context, and the loading itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyllm.config import ExecutionOptions, LoadSettings
from pyllm.config.serving import ServeOptions
from pyllm.llm import LLM
from pyllm.llm.fit import parts
from pyllm.llm.loading import ModelFile, default_n_ctx, execution_options
from pyllm.llm.opening import load
from pyllm.llm.speculating import beside
from pyllm.server.known import Known
from pyllm.server.problems import ENDING, ProblemError

_LEAST_CTX = 2048
_SHARE = 0.9
"""Of the free memory; the rest is for what comes and goes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A model's context and the memory that it then takes."""

    n_ctx: int
    needs: Mapping[str, int]
    """Bytes by device."""
    trained: int
    """The context that it was trained for."""


class Loader:
    """Loads models as a server's options say."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._settings = LoadSettings.of("load", {**options.load, "max_seqs": options.max_seqs})
        self._backend, self._placement = self._settings.backend, self._settings.placement
        self._cancelled = threading.Event()

    def memory(self) -> dict[str, int]:
        """Bytes that models may take, by device, now. Devices that do not say are left out."""
        from pyllm.backends import devices

        found = devices.choose(self._backend, self._placement)
        return {d.name: int(d.memory_free * _SHARE) for d in found if d.memory_free is not None}

    def plan(self, known: Known, memory: Mapping[str, int]) -> Plan:
        """The largest context, up to the trained one, with which the model fits `memory`; the least one if none does.

        The cache of keys and values takes at most half of it. Raises GGUFError, ModelError, BackendError.
        """
        from pyllm.gguf import open_gguf

        with open_gguf(known.path) as file:
            trained = default_n_ctx(file.metadata, most=None)
            n_ctx = self._options.n_ctx or trained
            while True:
                needs, kv = self._needs(file, n_ctx)
                fits = all(needs[d] <= memory[d] and kv[d] <= memory[d] // 2 for d in needs if d in memory)
                if fits or self._options.n_ctx or n_ctx <= _LEAST_CTX:
                    return Plan(n_ctx, needs, trained)
                n_ctx = max(_LEAST_CTX, n_ctx // 2)

    def load(self, known: Known, plan: Plan) -> LLM:
        """Load it. Raises as `pyllm.load`, HubError where a named model's files have changed, and ProblemError after
        `cancel`."""
        options = self._options
        more = dict(options.load)
        if known.named is not None and known.named.adapters:
            known.named.check()
            more["adapters"] = [*more.get("adapters", ()), *(file.path for file in known.named.adapters)]
        return load(
            known.path,
            n_ctx=plan.n_ctx,
            max_seqs=options.max_seqs,
            max_waiting=options.max_waiting,
            progress=self._go_on,
            **more,
        )

    def cancel(self) -> None:
        """End what is being loaded, between two kernels or two matrices, and load nothing further."""
        self._cancelled.set()

    def _go_on(self, what: str, share: float) -> None:
        if self._cancelled.is_set():
            raise ProblemError(ENDING)

    def _needs(self, file: ModelFile, n_ctx: int) -> tuple[dict[str, int], dict[str, int]]:
        with beside(self._settings, file, n_ctx) as draft:
            found = parts(file, n_ctx, self._execution(n_ctx), self._backend, self._placement, draft)
        return {d.device.name: d.total for d in found}, {d.device.name: d.kv for d in found}

    def _execution(self, n_ctx: int) -> ExecutionOptions:
        return replace(execution_options(n_ctx, self._settings), progress=None)
