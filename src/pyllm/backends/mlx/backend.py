"""The mlx backend: what it runs on, and how it compiles."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from pyllm.backends.base import Backend, DeviceInfo, Executable, Probe
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program
from pyllm.units import size

_OLDEST = (0, 32)
"""The first version of mlx with all functions used here."""
_INSTALL = "`pip install -U mlx` on Apple's processors, `pip install -U 'mlx[cpu]'` on Linux"


class MLXBackend(Backend):
    """Metal where available; else mlx's CPU build, which is for tests and not fast."""

    name = "mlx"
    requires = ("mlx",)
    install = 'pip install "pyllm[mlx]"'
    unified_memory = replaces_weights = keeps_recurrent_states = reads_sources = True

    def probe(self) -> Probe:
        if find_spec("mlx") is None:
            return Probe(self.name, False, f"mlx is not installed; {_INSTALL} installs it")
        try:
            return _probe()
        except ImportError as error:
            return Probe(self.name, False, f"mlx does not load ({error}); {_INSTALL} may mend it")
        except Exception as error:  # a session without a screen, or a sandbox, may have no Metal device
            return Probe(self.name, False, f"mlx finds nothing to compute on ({error})")

    def devices(self) -> list[DeviceInfo]:
        probe = self.probe()
        if not probe.available:
            return []
        gpu = probe.details["metal"] == "yes"
        total = int(_device_info(gpu).get("memory_size", 0)) or None
        return [DeviceInfo("mlx0", self.name, 0, probe.device, probe.memory_free, total, gpu)]

    def gpus(self) -> list[DeviceInfo]:
        # Elsewhere mlx has no Metal, and importing it to find out would slow down every start.
        return super().gpus() if sys.platform == "darwin" else []

    def shares_models(self) -> bool:
        """The CPU build does too, for tests of split models on other machines."""
        return True

    def compile(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> Executable:
        from pyllm.backends.mlx.executable import MLXExecutable
        from pyllm.backends.mlx.lowering import Lowering

        self._check(program, options)
        metal = _has_metal()
        lowering = Lowering(program, weights, options, half=metal)
        _check_free(lowering.sizes())
        return MLXExecutable(lowering, compiled=metal)  # on the CPU mlx would start a C++ compiler

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        from pyllm.backends.mlx.lowering import Lowering

        self._check(program, options)
        return Lowering(program, weights, options, half=_has_metal()).sizes()

    def _check(self, program: Program, options: ExecutionOptions) -> None:
        self.check(program, options)
        if not (probe := self.probe()).available:
            raise BackendError(f"backend 'mlx' cannot be used here: {probe.reason}")
        if options.device != 0:
            raise BackendError(f"mlx has one device, mlx0; there is no mlx{options.device}")


def _probe() -> Probe:
    import mlx.core as mx

    version = tuple(int(part) for part in mx.__version__.split(".")[:2])
    if version < _OLDEST:
        reason = f"mlx {mx.__version__} is too old, {'.'.join(map(str, _OLDEST))} or newer is needed; {_INSTALL}"
        return Probe("mlx", False, reason)
    metal = _has_metal()
    info = _device_info(metal)
    details = {"version": mx.__version__, "metal": "yes" if metal else "no"}
    if not metal:
        from pyllm.jit.memory import free_memory

        device = f"{info.get('device_name') or 'CPU'} (mlx's CPU build, no Metal)"
        return Probe("mlx", True, "", device, free_memory(), details)
    details["architecture"] = str(info.get("architecture", ""))
    usable = int(info.get("max_recommended_working_set_size", 0))
    free = max(0, usable - int(mx.get_active_memory())) if usable else None
    return Probe("mlx", True, "", f"{info.get('device_name', 'Apple GPU')} (Metal)", free, details)


@cache
def _has_metal() -> bool:
    import mlx.core as mx

    return bool(mx.metal.is_available())


def _device_info(metal: bool) -> dict[str, Any]:
    import mlx.core as mx

    return dict(mx.device_info(mx.gpu if metal else mx.cpu))  # whatever device the program has made the default


def _check_free(sizes: Mapping[str, int]) -> None:
    """Raise OutOfMemoryError, with figures, where the device's memory does not hold this."""
    free, total = _probe().memory_free, sum(sizes.values())
    if free is not None and total > free:
        parts = ", ".join(f"{name} {size(n)}" for name, n in sizes.items())
        raise OutOfMemoryError(
            f"mlx0 needs {size(total)} ({parts}), {size(free)} are free; "
            "a shorter context, fewer layers or a smaller quantization takes less"
        )
