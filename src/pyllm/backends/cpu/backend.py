"""The CPU backend: what it runs on, and how it compiles."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pyllm.backends.base import Backend, DeviceInfo, Executable, Probe
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program


class CPUBackend(Backend):
    """Kernels compiled for this processor by numba and llvmlite, which are imported when they are needed."""

    name = "cpu"
    collects_importance = replaces_weights = keeps_recurrent_states = reads_sources = exact_in_company = True

    def probe(self) -> Probe:
        from pyllm.jit.memory import free_memory

        device = _processor()
        try:
            from pyllm.jit.target import host

            target = host()
        except Exception as e:  # a broken library may raise anything
            reason = f"llvmlite does not load ({e}); `pip install llvmlite numba` would make it available"
            return Probe(self.name, False, reason, device, free_memory())
        if target.isa == "generic":
            reason = f"there are no kernels for {platform.machine()}; x86-64 and arm64 have them"
            return Probe(self.name, False, reason, device, free_memory())
        n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        details = {"instructions": target.isa, "cpu": target.cpu, "processors": str(n)}
        return Probe(self.name, True, "", device, free_memory(), details)

    def gpus(self) -> list[DeviceInfo]:
        return []

    def warm_up(self, index: int) -> AbstractContextManager[object]:
        from pyllm.jit.compiler import LIBRARY
        from pyllm.jit.threads import Pool

        LIBRARY.load(Pool.KERNELS)
        return nullcontext()

    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        from pyllm.backends.cpu.executable import CPUExecutable

        self.check(program, options)
        return CPUExecutable(program, weights, options)

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        from pyllm.backends.cpu import lane

        self.check(program, options)
        return lane.sizes(lane.plan(program, weights, options))

    def memory_beside(
        self,
        program: Program,
        weights: Mapping[str, TensorInfo],
        options: ExecutionOptions,
        other: Program,
        its_weights: Mapping[str, TensorInfo],
    ) -> dict[str, int]:
        from pyllm.backends.cpu import lane

        self.check(program, options)
        packed = lane.plan(other, its_weights, options)[0].weights
        return lane.sizes(lane.plan(program, weights, options, packed))


def _processor() -> str:
    """The processor's name as its system gives it."""
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    elif sys.platform == "darwin":
        from pyllm.jit.processors import sysctl

        if name := sysctl("machdep.cpu.brand_string"):
            return name
    # Elsewhere than on Windows `platform.processor` runs a program by its name.
    return (platform.processor() if sys.platform == "win32" else "") or platform.machine()
