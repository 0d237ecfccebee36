"""The CUDA backend: what it runs on, and how it compiles. cupy is imported when a card is opened."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext

from pyllm import env
from pyllm.backends.base import Backend, DeviceInfo, Executable, Probe
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program

_MOST = 65535
"""Blocks that a grid can have in its second and third dimension."""


class CUDABackend(Backend):
    """Kernels compiled for the card at hand; a step is launched as one graph."""

    name = "cuda"
    requires = ("cupy",)
    install = 'pip install "pyllm[cuda]"'
    kv_dtypes = ("f16", "f32", "q8_0")
    replaces_weights = keeps_recurrent_states = True

    def installed(self) -> bool:
        return bool(env.cuda_emulator()) or super().installed()

    def probe(self) -> Probe:
        from pyllm.backends.cuda import device

        return device.probe()

    def devices(self) -> list[DeviceInfo]:
        from pyllm.backends.cuda import device

        return device.devices()

    def shares_models(self) -> bool:
        return True

    def warm_up(self, index: int) -> AbstractContextManager[object]:
        from pyllm.backends.cuda.launcher import open_launcher

        return nullcontext() if env.cuda_emulator() else closing(open_launcher(index))

    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        from pyllm.backends.cuda import launcher
        from pyllm.backends.cuda.executable import CUDAExecutable

        self._check(program, options)
        return CUDAExecutable(program, weights, options, launcher.open_launcher(options.device))

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        from pyllm.backends.cuda import device
        from pyllm.backends.cuda.lowering import Lowering

        self._check(program, options)
        sizes = Lowering(program, weights, options, device.facts(options.device)).arrange()
        return {**sizes, "other": device.overhead(options.device)}

    def _check(self, program: Program, options: ExecutionOptions) -> None:
        self.check(program, options)
        most = max(options.max_tokens, options.max_seqs, options.max_rows)
        if most > _MOST:
            raise BackendError(f"the CUDA backend takes steps of up to {_MOST} tokens and sequences, not of {most}")
