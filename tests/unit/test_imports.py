"""Imports point one way, and what is heavy is not imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyllm

SOURCE = Path(pyllm.__file__).parent

LAYERS = [
    {"errors", "arguments", "config", "entry_points", "env", "records", "temporary", "units"},
    {"jit"},
    {"gguf", "quant", "tokenizers", "chat", "hub"},
    {"program", "archs", "backends", "cache", "sampling", "constraints"},
    {"engine"},
    {"llm"},
    {"quant.calibrate", "evaluation", "bench", "testing", "server"},
    {"ray"},
    {"cli", "__main__"},
]
"""Rooms of the package; each layer may import from itself and from those above it in this list."""
INNER = {"quant.calibrate"}
"""Rooms within a room that have a place of their own."""
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
APART = [
    ("archs", {"backends"}),
    ("backends", {"archs"}),
    ("quant", {"tokenizers", "chat", "hub"}),
    ("gguf", {"tokenizers", "chat", "hub"}),
    ("tokenizers", {"chat", "hub"}),
    ("chat", {"hub"}),
    ("hub", {"gguf", "quant", "tokenizers", "chat"}),
    ("sampling", {"archs", "backends", "program", "cache"}),
    ("cache", {"archs", "backends", "program", "sampling"}),
    ("constraints", {"archs", "backends", "program", "sampling", "cache", "gguf", "hub"}),
]
"""Rooms of one layer, or lower ones, that must not know of each other."""
HEAVY = (
    "numba",
    "llvmlite",
    "cupy",
    "mlx",
    "numpy",
    "torch",
    "llguidance",
    "starlette",
    "uvicorn",
    "msgspec",
    "prometheus_client",
    "opentelemetry",
    "pyllm.backends",
    "pyllm.engine",
    "pyllm.llm",
)


def rooms_imported(path: Path) -> Iterator[str]:
    """Rooms that a file imports from, wherever in the file."""
    package = path.relative_to(SOURCE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "pyllm" and len(parts) > 1:
                inner = ".".join(parts[1:3])
                yield inner if inner in INNER else parts[1]


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    inner = ".".join(parts[:2])
    return inner if inner in INNER else parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{room} has no place in LAYERS"
    imported = {r for r in rooms_imported(path) if r in RANK}
    assert not {r for r in imported if RANK[r] > RANK[room]}
    for name, others in APART:
        if name == room:
            assert not imported & others


def test_every_import_names_a_room() -> None:
    public = set(pyllm.__all__)
    for path in modules():
        assert {r for r in rooms_imported(path) if r not in RANK} <= public, path


BACKENDS = ("cuda", "mlx")
"""Backends that other rooms know nothing of; tests emulate the devices of one of them."""
OWN = {"cuda": ("backends/cuda/", "testing/cuda/"), "mlx": ("backends/mlx/",)}


def names_of_backends(path: Path) -> Iterator[str]:
    """Names of backends, and of their devices, that a file's code has as text or imports. What it says is free."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        words: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = [node.value.lower().rstrip("0123456789")]
        elif isinstance(node, ast.Import):
            words = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        yield from set(words) & set(BACKENDS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_backend_is_named_outside_its_room(path: Path) -> None:
    place = path.relative_to(SOURCE).as_posix()
    assert not [name for name in names_of_backends(path) if not place.startswith(OWN[name])]


def test_names_of_backends_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('import mlx.core\nfrom pyllm.backends import cuda\nif name == "CUDA0": pass\n"""cuda or mlx"""\n')
    assert sorted(names_of_backends(file)) == ["cuda", "cuda", "mlx"]


def heavy_after(code: str) -> list[str]:
    """Heavy modules that are loaded in a fresh interpreter after running `code`."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "pyllm" in loaded
    return [m for m in loaded if any(m == h or m.startswith(h + ".") for h in HEAVY)]


def test_import_pyllm_is_light() -> None:
    assert heavy_after("import pyllm") == []


def test_loading_a_file_needs_no_names() -> None:
    code = "import pyllm.llm.opening, sys; print([name for name in sys.modules if name.startswith('pyllm.hub')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


def test_what_ray_needs_is_named_where_it_is_missing() -> None:
    code = "import sys; sys.modules['ray'] = None; import pyllm.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert 'pip install "pyllm[ray]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["list"]])
def test_command_line_is_light(arguments: list[str]) -> None:
    assert heavy_after(f"from pyllm.cli import main; main({arguments})") == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_quick(arguments: list[str]) -> None:
    """In modules that are loaded, which do not depend on how busy the machine is: a few more than click's own."""

    def loaded(code: str) -> int:
        counted = "import atexit, sys; atexit.register(lambda: print(len(sys.modules), file=sys.stderr))"
        done = subprocess.run([sys.executable, "-c", f"{counted}; {code}"], capture_output=True, text=True, timeout=300)
        return int(done.stderr.split()[-1])

    assert loaded(f"from pyllm.cli import main; main({arguments})") < loaded("import click") + 95
