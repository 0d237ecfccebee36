"""`pyllm doctor`: pyllm's view of this machine, and why something is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pyllm.cli import _command

_PACKAGES = ("numpy", "numba", "llvmlite", "gguf", "tokenizers", "huggingface_hub")
"""Packages whose versions are shown, beside those required by backends."""
_FEATURES = (
    "sse2 ssse3 sse4.2 avx f16c fma avx2 avxvnni avx512f avx512bw avx512vl avx512vnni avx512bf16 avx512fp16 amx-int8 "
    "neon dotprod i8mm fullfp16 bf16 sve sve2"
)
"""Instruction sets that kernels use, by LLVM's names."""


@_command.command("doctor", short_help="Show this machine as pyllm sees it.")
def command() -> None:
    """Show versions, processor, memory, backends (and why one is missing), folders and settings."""
    from pyllm.cli._output import table, write

    for title, section in (
        ("versions", _versions),
        ("machine", _machine),
        ("backends", _backends),
        ("devices", _devices),
        ("folders", _folders),
        ("environment", _environment),
    ):
        rows = list(section())
        if rows:
            write(f"{title}\n" + "".join(f"  {line}\n" for line in table(rows).splitlines()))


def _versions() -> Iterator[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    from pyllm import __version__
    from pyllm.backends import devices

    yield "pyllm", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}) in {sys.prefix}"
    homes = packages_distributions()
    for package in (*_PACKAGES, *(p for backend in devices.importable() for p in backend.requires)):
        for distribution in dict.fromkeys(homes.get(package, [])):
            try:
                yield distribution, version(distribution)
            except PackageNotFoundError:
                continue


def _machine() -> Iterator[tuple[str, str]]:
    from pyllm.errors import RequestError
    from pyllm.jit.processors import default_threads
    from pyllm.units import size

    yield "system", platform.platform()
    yield from _processor()
    try:
        n = str(default_threads())
    except RequestError as error:  # PYLLM_THREADS
        n = f"({error})"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield (
        "threads",
        f"{n} by default; {os.cpu_count()} hardware threads, {usable} usable by this process",
    )
    memory = _memory()
    if memory is not None:
        yield "memory", f"{size(memory[0])}, {size(memory[1])} available"


def _processor() -> Iterator[tuple[str, str]]:
    """LLVM's name of the processor."""
    try:
        from llvmlite import binding
    except ImportError as error:
        yield "processor", f"{platform.machine()}; llvmlite cannot be imported: {error}"
        return
    features = binding.get_host_cpu_features()
    yield "processor", f"{platform.machine()}, {binding.get_host_cpu_name()}"
    yield "features", " ".join(f for f in _FEATURES.split() if features.get(f)) or "none that kernels use"


def _memory() -> tuple[int, int] | None:
    """Bytes of memory, and of those available, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
        return kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    except (OSError, KeyError, ValueError):
        pass
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _backends() -> Iterator[tuple[str, str]]:
    from pyllm import backends
    from pyllm.errors import PyllmError
    from pyllm.units import size

    for name in backends.names():
        try:
            backend = backends.get(name)
        except PyllmError as error:
            yield name, f"not available: {error}"
            continue
        if not backend.installed():
            yield name, f"not available: {', '.join(backend.requires)} is not installed; {backend.install}"
            continue
        probe = backend.probe()
        if not probe.available:
            yield name, f"not available: {probe.reason}"
            continue
        free = f", {size(probe.memory_free)} free" if probe.memory_free is not None else ""
        yield name, f"available: {probe.device or name}{free}"
        for key, value in probe.details.items():
            yield "", f"{key}: {value}"


def _devices() -> Iterator[tuple[str, ...]]:
    """Devices for --device and --override-tensor, with their memory."""
    from pyllm.backends import devices
    from pyllm.units import size

    for backend in devices.importable():
        if not backend.installed() or not (backend.name == "cpu" or backend.shares_models()):
            continue
        for device in backend.devices():
            sizes = [
                f"{size(n)} {word}"
                for n, word in ((device.memory_total, "memory"), (device.memory_free, "free"))
                if n is not None
            ]
            kind = "" if device.is_gpu or backend.name == "cpu" else "not a GPU: used only where --device names it"
            yield device.name, ", ".join(part for part in (device.description, *sizes, kind) if part)


def _folders() -> Iterator[tuple[str, str]]:
    from pyllm import env

    yield "models", _folder(env.models_dir())
    yield "kernels", _folder(env.kernel_cache_dir())
    yield "data", _folder(env.data_dir())


def _folder(path: Path) -> str:
    from pyllm.units import size

    try:
        used = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        existing = next(p for p in (path, *path.parents) if p.exists())
        room = f"{size(used)} used, {size(shutil.disk_usage(existing).free)} free"
        return f"{path} ({room}{'' if os.access(existing, os.W_OK) else ', not writable'})"
    except OSError as error:
        return f"{path} ({error.strerror})"


def _environment() -> Iterator[tuple[str, str]]:
    from pyllm import env

    yield from env.settings().items()
