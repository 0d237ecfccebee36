"""Processes that compile kernels: kept for the next ones, ended when unused, and gone when one fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import env
from pyllm.errors import BackendError
from pyllm.jit import compiler, objects, workers
from pyllm.jit.compiler import Kernel, Library, compile_missing, kernel, source_files
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.threads import KERNEL_TYPE


def elementwise(kind: str) -> Kernel:
    return kernel("backends.cpu.kernels.elementwise", "elementwise", kind=kind)


def test_a_worker_is_kept_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_KEPT", 0.0)
    workers._end_unused()
    monkeypatch.setattr(workers, "_KEPT", 600.0)
    compile_missing([elementwise("add")], tmp_path)
    (first,) = workers._idle
    compile_missing([elementwise("scale")], tmp_path)
    assert workers._idle == [first]
    assert len(list(tmp_path.glob("*.o"))) == 2
    monkeypatch.setattr(workers, "_KEPT", 0.0)
    workers._end_unused()
    assert not workers._idle
    assert first._process.poll() is not None


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(?s)compiling a kernel failed.*KeyError"):
        compile_missing([elementwise("nonsense"), elementwise("add")], tmp_path)
    compile_missing([elementwise("scale")], tmp_path)
    assert any("scale" in path.name for path in tmp_path.glob("*.o"))


def doubled(address: int) -> float:
    """What an "add" kernel makes of 1.5 and itself."""
    values = aligned_zeros((3, 16), np.float32)
    values[:2] = 1.5
    step, block, counter = (aligned_zeros((n,), np.int64) for n in (32, 16, 8))
    step[1] = 1
    slots = (step, counter, values[0], 64, values[1], 64, values[2], 64)
    block[:8] = [slot if isinstance(slot, int) else slot.ctypes.data for slot in slots]
    block[9:12] = 16, step.ctypes.data, 0
    KERNEL_TYPE(address)(block.ctypes.data, 0, 1)
    return float(values[2, 0])


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", bytes(5000)], ids=["empty", "cut", "zeros"])
def test_a_damaged_kernel_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    monkeypatch.setattr(compiler, "cache_folder", lambda target: tmp_path)
    add = elementwise("add")
    Library().load([add])
    (path,) = tmp_path.glob("*.o")
    whole = path.read_bytes()
    path.write_bytes(damage)
    library = Library()  # whose code is gone when it is
    assert doubled(library.load([add])[add]) == 3.0
    assert objects.read(path) is not None
    assert len(path.read_bytes()) == len(whole)


def test_processes_that_compile_at_once_get_right_kernels(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from pyllm.jit.compiler import compile_missing, kernel\n"
        "kernels = [kernel('backends.cpu.kernels.elementwise', 'elementwise', kind=k) for k in ('add', 'scale')]\n"
        "print(sorted(map(len, compile_missing(kernels, Path(sys.argv[1]), n_workers=1).values())))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=600)[0] for process in running}
    assert len(said) == 1
    kept = sorted(len(objects.read(path) or b"") for path in tmp_path.iterdir())
    assert said == {f"{kept}\n"}
    assert kept[0] > 0


def test_without_a_program_to_start_kernels_are_compiled_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a frozen program, and where the system lets no more processes start."""
    compiled = compile_missing([elementwise("add")], tmp_path)
    monkeypatch.setattr(env, "python", lambda: None)
    monkeypatch.setattr(workers, "_idle", [])
    (again,) = compile_missing([elementwise("add")], tmp_path / "frozen").values()
    assert again in compiled.values()

    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.undo()
    monkeypatch.setattr(workers, "_idle", [])
    monkeypatch.setattr(subprocess, "Popen", refuse)
    (again,) = compile_missing([elementwise("add")], tmp_path / "crowded").values()
    assert again in compiled.values()
    with pytest.raises(BackendError, match=r"compiling a kernel failed.*nonsense"):
        compile_missing([elementwise("nonsense")], tmp_path)


def test_compiling_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LONGEST", 0.0)
    with pytest.raises(BackendError, match="given up"):
        compile_missing([elementwise("mul")], tmp_path)


def imported(path: Path) -> set[Path]:
    """Files of the package that a file imports by name, as Python's own parser sees it."""
    root, found = Path(pyllm.__file__).parent, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = root.parent.joinpath(*name.split("."))
            found |= {p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}
    return found - {root / "__init__.py"}


def test_a_kernel_is_made_of_all_that_its_module_imports() -> None:
    root = Path(pyllm.__file__).parent
    folders = ("backends/cpu/kernels", "quant/kernels", "evaluation/scoring")
    modules = [path for folder in folders for path in sorted((root / folder).glob("*.py")) if path.stem != "__init__"]
    assert len(modules) > 20
    for module in modules:
        want, todo = set(), {module}
        while todo:
            want |= todo
            todo = {found for path in todo for found in imported(path)} - want
        found = source_files(".".join(module.relative_to(root).with_suffix("").parts))
        assert want <= {Path(path) for path in found}, module


@pytest.mark.parametrize(
    "text",
    [
        "from pyllm.{0} import x",
        "import pyllm.{0}",
        "import pyllm.{0} as other, os",
        "if True: import os, pyllm.{0}",
        "    from pyllm.{0} import (x,  # a (comment)\n        y)",
        "from pyllm.backends.cpu import (\n    # a ) comment\n    made_up as other,\n)",
        "from pyllm.backends.cpu import other, \\\n    made_up",
        "from pyllm.backends.cpu import other; from pyllm.backends.cpu import made_up",
        "from .made_up import x",
        "from . import made_up",
        "from ..cpu import made_up",
    ],
)
def test_imports_are_seen_however_they_are_written(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pyllm"
    folder = package / "backends/cpu"
    folder.mkdir(parents=True)
    monkeypatch.setattr(compiler, "_PACKAGE", package.as_posix())
    (folder / "made_up.py").write_text("")
    (folder / "kernels.py").write_text(f"'''A kernel.'''\n{text.format('backends.cpu.made_up')}\n")
    assert (folder / "made_up.py").as_posix() in source_files("backends.cpu.kernels")
