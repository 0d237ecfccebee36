"""Compilation of kernels: a file's includes, NVRTC, and the disk cache.

A result is cached on disk (`jit.objects`) under a digest of its inputs: the file and its includes, defines, options,
compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyllm import env
from pyllm.backends.cuda.failures import missing_library
from pyllm.backends.cuda.launcher import Defines, Request
from pyllm.errors import BackendError
from pyllm.jit import objects
from pyllm.records import dataclass

KERNELS = Path(__file__).parent / "kernels"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel file and all its includes, by name."""

    name: str
    text: str
    headers: dict[str, str]

    def digest(self, *more: object) -> str:
        """Hexadecimal digest of the text and of `more` inputs of the result."""
        h = hashlib.sha256(repr((self.name, self.text, sorted(self.headers.items()), more)).encode())
        return h.hexdigest()[:24]


def source(name: str) -> Source:
    """The file `name` of kernels/ as it is now. Raises BackendError where it or an include is missing."""
    text = _read(name)
    headers: dict[str, str] = {}
    todo = _INCLUDE.findall(text)
    while todo:
        header = todo.pop()
        if header not in headers and header != "cuda_emu.h":
            headers[header] = _read(header)
            todo += _INCLUDE.findall(headers[header])
    return Source(name, text, headers)


def _read(name: str) -> str:
    path = KERNELS / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BackendError(f"the kernel source {path} cannot be read: {error.strerror}; reinstall pyllm") from error


def options_of(defines: Defines) -> list[str]:
    """Compiler options of defines, in a fixed order."""
    return [f"-D{name}={int(v) if isinstance(v, bool) else v}" for name, v in sorted(defines.items())]


def cache_folder() -> Path:
    """Folder of compiled kernels; it may not exist."""
    return env.kernel_cache_dir() / "cuda"


def side_by_side(
    work: Callable[[Request], object], requests: Sequence[Request], progress: Callable[[float], None] | None
) -> None:
    """Run `work` on every request, on as many threads as there are processors; raises the first error."""
    with ThreadPoolExecutor(min(len(requests), os.cpu_count() or 1) or 1) as pool:
        futures = [pool.submit(work, r) for r in requests]
        try:
            for done, future in enumerate(futures):
                future.result()
                if progress:
                    progress((done + 1) / len(futures))
        finally:
            for future in futures:
                future.cancel()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A cubin, and ptxas's log of its compilation (empty where it was cached)."""

    cubin: bytes
    log: str


_PACKAGES = {12: "nvidia.cuda_nvrtc", 13: "nvidia.cu13"}


def _load_packaged(cuda: int | None) -> None:
    """Load NVRTC from NVIDIA's Python package, if installed: cupy 13 finds it only when it is loaded already.

    Builtins are loaded first: in the package for CUDA 13.0, NVRTC does not find them. `cuda`: the major version that
    cupy is built for; cupy 14 uses the newest that is loaded, and a driver may not run its code.
    """
    for package in [_PACKAGES[cuda]] if cuda in _PACKAGES else _PACKAGES.values():
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # no package of NVIDIA's at all
            continue
        for folder in (spec and spec.submodule_search_locations) or ():
            for name in ("libnvrtc-builtins.so.*", "libnvrtc.so.*"):
                for path in sorted(Path(folder, "lib").glob(name)):
                    with suppress(OSError):  # what cupy then says of it counts
                        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class Nvrtc:
    """NVRTC, through cupy. Threads may compile side by side."""

    def __init__(self, nvrtc: Any, cuda: int | None = None) -> None:
        """`nvrtc`: the module `cupy.cuda.nvrtc`; `cuda`: the major version of CUDA that cupy is built for, where known.

        Raises BackendError where the library is missing.
        """
        self._nvrtc = nvrtc
        _load_packaged(cuda)
        try:
            self.version: tuple[int, int] = tuple(nvrtc.getVersion())
            self._known = sorted(nvrtc.getSupportedArchs())
        except Exception as error:
            raise missing_library(error) or BackendError(f"NVRTC does not work: {error}") from error

    def arch(self, capability: tuple[int, int]) -> str:
        """The architecture to compile for on a card of this compute capability: "sm_90". Raises BackendError if NVRTC
        is too old.

        A card runs code of earlier architectures of its generation.
        """
        wanted = 10 * capability[0] + capability[1]
        fitting = [a for a in self._known if a // 10 == capability[0] and a <= wanted]
        if not fitting:
            raise BackendError(
                f"NVRTC {self.version[0]}.{self.version[1]} is too old for a card of compute capability "
                f"{capability[0]}.{capability[1]}: pip install --upgrade 'cupy-cuda{max(12, self.version[0])}x[ctk]'"
            )
        return f"sm_{fitting[-1]}"

    def cubin(self, name: str, defines: Defines, arch: str) -> bytes:
        """The kernels of a file as machine code, cached on disk. Raises BackendError with the compiler's output."""
        what = source(name)
        digest = what.digest(options_of(defines), _OPTIONS, arch, self.version)
        file = f"{Path(name).stem}-{arch}-{digest}.cubin"
        code = objects.find(cache_folder(), file)
        if code is None:
            code = self.compile(what, defines, arch).cubin
            objects.keep(cache_folder(), file, code)
        return code

    def compile(self, what: Source, defines: Defines, arch: str) -> Compiled:
        """Compile without the cache; the log has ptxas's report of each kernel's registers and spills."""
        nvrtc, names = self._nvrtc, sorted(what.headers)
        program = nvrtc.createProgram(
            what.text, Path(what.name).name, [what.headers[n].encode() for n in names], [n.encode() for n in names]
        )
        try:
            options = [f"-arch={arch}", *_OPTIONS, *options_of(defines)]
            try:
                nvrtc.compileProgram(program, options)
            except Exception as error:
                log = nvrtc.getProgramLog(program).strip() or str(error)
                raise BackendError(
                    f"{what.name} with {dict(defines)} does not compile for {arch} (NVRTC "
                    f"{self.version[0]}.{self.version[1]}):\n{log[:4000]}"
                ) from error
            # cupy drops the last byte as the end of a string; it is zero, and one more is harmless
            return Compiled(bytes(nvrtc.getCUBIN(program)) + b"\0", str(nvrtc.getProgramLog(program)))
        finally:
            nvrtc.destroyProgram(program)


_OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--device-as-default-execution-space")
