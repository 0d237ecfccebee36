"""Kernels: Python functions of any package, compiled once per processor, cached as object files, loaded by llvmlite.

numba turns a kernel's Python into LLVM IR; LLVM optimizes it for the target, the object code is written to the cache
folder, and later runs load it into memory. So a warm process never imports numba (0.3 s and 100 MB), and a cold one
compiles in worker processes.

A kernel is `void(int64 args, int64 thread, int64 n_threads)`; `args` is the address of 8-byte slots (`Args`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding as llvm

from pyllm import env
from pyllm.config import Progress
from pyllm.errors import BackendError
from pyllm.jit import objects, workers
from pyllm.jit.target import Target, host
from pyllm.records import dataclass

ENTRY = "pyllm_kernel"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))).replace(os.sep, "/")


@dataclass(frozen=True, slots=True, order=True)
class Kernel:
    """A kernel by name: `name(**params)` of `module` (below `pyllm`) returns it as a Python function."""

    module: str
    name: str
    params: tuple[tuple[str, int | str], ...] = ()

    @property
    def symbol(self) -> str:
        return "_".join([self.module.rpartition(".")[2], self.name, *(f"{k}{v}" for k, v in self.params)])


def kernel(module: str, name: str, **params: int | str) -> Kernel:
    """Name a kernel; nothing is imported or compiled."""
    return Kernel(module, name, tuple(sorted(params.items())))


class Library:
    """Loaded kernels. Code lives until the process ends: addresses may be in use by running threads."""

    def __init__(self) -> None:
        self._addresses: dict[Kernel, int] = {}
        self._engines: list[llvm.ExecutionEngine] = []

    def load(self, kernels: Iterable[Kernel], progress: Progress | None = None) -> dict[Kernel, int]:
        """Addresses of kernels; those missing from the cache are compiled first. Raises BackendError."""
        wanted = list(dict.fromkeys(kernels))
        new = [k for k in wanted if k not in self._addresses]
        if new:
            target, folder = host(), cache_folder(host())
            code = {k: found for k in new if (found := objects.find(folder, _object_name(k))) is not None}
            if missing := [k for k in new if k not in code]:
                code |= compile_missing(missing, folder, progress)
            for k in new:
                self._addresses[k] = self._add(target, code[k], k)
        return {k: self._addresses[k] for k in wanted}

    def is_compiled(self, kernels: Iterable[Kernel]) -> bool:
        """Whether all of these kernels are in the cache."""
        folder = cache_folder(host())
        return all(k in self._addresses or objects.path(folder, _object_name(k)) is not None for k in kernels)

    def _add(self, target: Target, code: bytes, k: Kernel) -> int:
        # One engine for each kernel: all objects have the same entry name, and a broken one harms no other.
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(f'target triple = "{target.triple}"'), target.machine())
        try:
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            address = engine.get_function_address(ENTRY)
        except RuntimeError as e:
            raise BackendError(f"compiled kernel {k.symbol} does not load ({e}); delete {cache_folder(target)}") from e
        if not address:
            raise BackendError(f"compiled kernel {k.symbol} is damaged; delete {cache_folder(target)}")
        self._engines.append(engine)
        return address


LIBRARY = Library()


@cache
def cache_folder(target: Target) -> Path:
    """Where this target's object files are: one folder per processor and version of the compiler."""
    # Each release of numba requires one of llvmlite, so llvmlite's version stands for both.
    key = repr((target, llvmlite.__version__))
    return env.kernel_cache_dir() / f"{target.cpu}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _object_name(k: Kernel) -> str:
    # Symbols can be longer than file names may be.
    digest = hashlib.sha256(f"{k.module} {k.symbol}".encode() + _sources(k.module)).hexdigest()[:20]
    return f"{k.symbol[:80]}-{digest}.o"


@cache
def _sources(module: str) -> bytes:
    """Digest of a kernel's sources: `source_files`, the compiler and the target."""
    files = {*source_files(module), f"{_PACKAGE}/jit/compiler.py", f"{_PACKAGE}/jit/target.py"}
    return hashlib.sha256(b"".join(_imports(path)[0] for path in sorted(files))).digest()


def source_files(module: str) -> set[str]:
    """Files of this package that a module (below `pyllm`) imports, wherever in the text; itself and `jit.simd` too."""
    found: set[str] = set()
    simd = f"{_PACKAGE}/jit/simd"
    todo = {f"{_PACKAGE}/{module.replace('.', '/')}.py", *(f"{simd}/{name}.py" for name in _modules(simd))}
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= _imports(path)[1] - found
    return found


@cache
def _imports(path: str) -> tuple[bytes, frozenset[str]]:
    """A file's content, and the files of this package that it imports.

    Found by regular expressions, since parsing takes longer than the rest of a warm start; an import shown in a
    docstring adds a file, which is harmless.
    """
    content = Path(path).read_bytes()
    text = _COMMENT.sub("", content.decode(errors="replace"))
    root, found = os.path.dirname(_PACKAGE), set()
    for dots, source, names in _FROM.findall(text):
        folder = path
        for _ in dots:
            folder = os.path.dirname(folder)
        place = "/".join([folder if dots else root, *filter(None, source.split("."))])
        if place.startswith(f"{_PACKAGE}/"):
            found |= {place, f"{place}/__init__"}
        if place == _PACKAGE or place.startswith(f"{_PACKAGE}/"):  # the package itself imports lazily
            found |= {f"{place}/{name}" for name in _modules(place).intersection(_WORD.findall(names))}
    for source in _IMPORT.findall(text):
        place = f"{root}/{source.replace('.', '/')}"
        found |= {place, f"{place}/__init__"}
    return content, frozenset(f"{p}.py" for p in found if os.path.basename(p) in _modules(os.path.dirname(p)))


@cache
def _modules(folder: str) -> frozenset[str]:
    """Names of the Python modules in a folder; empty where there is no such folder."""
    try:
        return frozenset(name[:-3] for name in os.listdir(folder) if name.endswith(".py"))
    except OSError:
        return frozenset()


_COMMENT = re.compile(r"#[^\n]*")
_FROM = re.compile(r"from\s+(\.*)([\w.]*)\s+import\b\s*(\([^)]*|(?:[^\n\\]|\\\n)*)")
_IMPORT = re.compile(r"(pyllm(?:\.\w+)+)(?=\s*(?:,|;|$|\\|as\b))", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")


def compile_missing(
    kernels: Sequence[Kernel], folder: Path, progress: Progress | None = None, n_workers: int | None = None
) -> dict[Kernel, bytes]:
    """Compile kernels for this processor, in as many processes as there are processors, and store them in `folder`.

    A kernel that another process has stored meanwhile is loaded instead. Raises BackendError.
    """
    jobs = [{"module": k.module, "name": k.name, "params": dict(k.params)} for k in kernels]
    compiled: dict[Kernel, bytes] = {}

    def watch() -> None:
        if progress:
            progress("compiling kernels for this processor (first run only)", len(compiled) / len(kernels))

    def ready(i: int) -> bool:
        code = objects.find(folder, _object_name(kernels[i]))
        if code is not None:
            compiled[kernels[i]] = code
        return code is not None

    def done(i: int, code: bytes) -> None:
        objects.keep(folder, _object_name(kernels[i]), code)
        compiled[kernels[i]] = code

    workers.run(jobs, n_workers, watch, ready, done)
    return compiled


def compile_job(job: workers.Job) -> bytes:
    """Object code of one kernel for this processor; run by workers."""
    return compile_object(kernel(job["module"], job["name"], **job["params"]), host())


def compile_object(k: Kernel, target: Target) -> bytes:
    """Object code of one kernel for a target. Imports numba."""
    return target.machine().emit_object(compile_module(k, target))


def assembly(k: Kernel, target: Target) -> str:
    """Assembly text of one kernel for a target, for reading and for tests of other targets."""
    return target.machine().emit_assembly(compile_module(k, target))


def compile_module(k: Kernel, target: Target) -> llvm.ModuleRef:
    """Optimized LLVM module whose only visible function is the kernel."""
    from pyllm.jit import simd

    simd.set_target(target)
    function = getattr(import_module(f"pyllm.{k.module}"), k.name)(**dict(k.params))
    text, name = _numba_ir(function)
    module = llvm.parse_assembly(text)
    # numba's own convention: a return slot, an exception slot, then the arguments. Kernels do not raise.
    module.link_in(
        llvm.parse_assembly(
            f"""
            declare i32 @"{name}"(ptr, ptr, i64, i64, i64)
            define void @{ENTRY}(i64 %args, i64 %thread, i64 %n_threads) {{
              %ret = alloca ptr
              %exc = alloca ptr
              %status = call i32 @"{name}"(ptr %ret, ptr %exc, i64 %args, i64 %thread, i64 %n_threads)
              ret void
            }}"""
        )
    )
    for f in module.functions:
        if not f.is_declaration and f.name != ENTRY:
            f.linkage = llvm.Linkage.internal
    for g in module.global_variables:
        if not g.is_declaration:
            g.linkage = llvm.Linkage.internal
    module.triple = target.triple
    machine = target.machine()
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    passes.run(module, builder)
    module.verify()
    return module


def _numba_ir(function: Any) -> tuple[str, str]:
    """LLVM IR of a Python kernel as numba types and lowers it, and the function's name there."""
    from numba import types
    from numba.core import compiler, registry
    from numba.core.compiler import Flags

    flags: Any = Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    cpu = registry.cpu_target
    cpu.typing_context.refresh()
    cpu.target_context.refresh()
    # The usual code generator would also emit machine code for this host, which is not used.
    usual = cpu.target_context._internal_codegen
    cpu.target_context._internal_codegen = _ir_codegen()
    try:
        result = compiler.compile_extra(
            cpu.typing_context, cpu.target_context, function, (types.int64,) * 3, types.none, flags, {}
        )
    finally:
        cpu.target_context._internal_codegen = usual
    return result.library.get_llvm_str(), result.fndesc.llvm_func_name


@cache
def _ir_codegen() -> Any:
    """numba's code generator without its last step: it stops at IR, and its addresses are never called."""
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

    class Library(JITCodeLibrary):
        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0

        # What is linked together is optimized once, as one module, in `compile_module`.
        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_specific(self) -> None:
            pass

    class Codegen(JITCPUCodegen):
        _library_class = Library

        def _add_module(self, module: Any) -> None:
            pass

        def set_env(self, env_name: str, env: Any) -> None:
            pass

    return Codegen(ENTRY)
