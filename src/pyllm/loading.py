"""From a path or a name to a compiled model: what `pyllm.load` and the benchmark share."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm import env
from pyllm.errors import BackendError, ModelError, TokenizerError

if TYPE_CHECKING:
    from pyllm.archs import Architecture
    from pyllm.backends.base import Executable
    from pyllm.config import ExecutionOptions, Progress
    from pyllm.gguf import GGUFFile
    from pyllm.tokenizers import Tokenizer

DEFAULT_N_CTX = 4096


def find_model(model: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file of a model: a path that exists, else a name that `pyllm.hub` knows (which may download it)."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the GGUF file in it")
    if not isinstance(model, str) or path.suffix.lower() == ".gguf" or path.is_absolute():
        raise ModelError(f"there is no file {path}")
    from pyllm import hub

    return hub.resolve(model, progress=progress)


def compile_model(
    file: GGUFFile, n_ctx: int, options: ExecutionOptions, backend: str
) -> tuple[Architecture, Executable]:
    """Record the model's pass for contexts up to `n_ctx` and compile it. Raises ModelError, BackendError."""
    from pyllm import archs, backends

    architecture = archs.load(file.metadata, file.tensors, n_ctx)
    chosen = backends.get(backend)
    probe = chosen.probe()
    if not probe.available:
        raise BackendError(f"backend {backend!r} cannot be used here: {probe.reason}")
    return architecture, chosen.compile(architecture.program, file.tensors, options)


class TokenizerLoader:
    """Builds a file's tokenizer in a thread of its own, while the weights are packed."""

    def __init__(self, file: GGUFFile) -> None:
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._build, args=(file,), name="pyllm-tokenizer", daemon=True)
        self._thread.start()

    def _build(self, file: GGUFFile) -> None:
        try:
            from pyllm import tokenizers

            self._tokenizer = tokenizers.from_gguf(file.metadata)
        except BaseException as error:
            self._error = error

    def get(self) -> tuple[Tokenizer | None, TokenizerError | None]:
        """The tokenizer, or why there is none; anything else that went wrong is raised."""
        self.wait()
        if self._error is not None and not isinstance(self._error, TokenizerError):
            raise self._error
        return self._tokenizer, self._error

    def wait(self) -> None:
        """Until the thread no longer reads the file."""
        self._thread.join()


def default_n_ctx(metadata: Mapping[str, Any]) -> int:
    """The length that the model was trained for, but at most `DEFAULT_N_CTX`: memory for the rest is seldom needed."""
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)
    return min(int(trained), DEFAULT_N_CTX) if isinstance(trained, int) and trained > 0 else DEFAULT_N_CTX


def default_threads() -> int:
    """`PYLLM_THREADS`, else one per physical core that this process may use (affinity and cgroup quota count)."""
    if n := env.n_threads():
        return n
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        n = len({_siblings(cpu) for cpu in cpus})
    else:
        n = _physical_cores()
    quota = _cgroup_quota()
    return max(1, min(n, int(quota + 0.5)) if quota else n)


def _siblings(cpu: int) -> str:
    """The hardware threads of the core that `cpu` is on, as the kernel names them; else `cpu` alone."""
    return _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _cgroup_quota() -> float | None:
    """Processors' worth of time that the process's control group grants, or None where it sets no limit."""
    if limit := _read("/sys/fs/cgroup/cpu.max").split():  # version 2: "200000 100000" or "max 100000"
        return int(limit[0]) / int(limit[1]) if len(limit) == 2 and limit[0].isdigit() else None
    quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _physical_cores() -> int:
    """Physical cores where the system keeps no affinity: macOS says so, elsewhere hardware threads are counted."""
    import subprocess
    import sys

    if sys.platform == "darwin":
        for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip().isdigit():
                return int(done.stdout)
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
