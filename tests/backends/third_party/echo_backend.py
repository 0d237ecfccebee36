"""A package of somebody else with two backends: both let the reference backend compute, one of them as a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyllm import backends
from pyllm.backends.base import Backend, Batch, Crossing, DeviceInfo, Executable, HostCrossing, Probe
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value


class EchoExecutable(Executable):
    def __init__(self, inner: Executable) -> None:
        self.inner, self.program, self.options = inner, inner.program, inner.options

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        sent = self.inner.run_stage(stage, batch, given, wanted)
        return [HostCrossing(crossing.host()) for crossing in sent]

    def interrupt(self) -> None:
        self.inner.interrupt()

    def memory(self) -> dict[str, int]:
        return self.inner.memory()

    def close(self) -> None:
        self.inner.close()


class EchoBackend(Backend):
    name = "echo"
    exact_in_company = True

    def probe(self) -> Probe:
        return Probe(self.name, True, device="an echo")

    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        self.check(program, options)
        return EchoExecutable(backends.get("reference").compile(program, weights, options))


class CardBackend(EchoBackend):
    name = "card"

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo("card0", self.name, 0, "a card that is made up", 1 << 30, 1 << 30, True)]


BACKEND = EchoBackend()
